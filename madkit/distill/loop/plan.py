"""From a run's configuration to what its loop is told: how long, how fast, and in which order."""

from __future__ import annotations

from madkit.distill.batches.examples import ExampleSet
from madkit.distill.batches.order import BucketOrder, Order, PlainOrder
from madkit.distill.loop.contract import LoopSettings
from madkit.distill.loop.optimizer import OptimizerSettings
from madkit.distill.settings.config import LEARNING_RATE, DistillConfig


def loop_settings(config: DistillConfig, seed: int) -> LoopSettings:
    """The settings of the supervised phase, from a resolved configuration."""
    optim, checkpoint, evaluation = config.optim, config.checkpoint, config.eval
    assert optim.steps is not None
    return LoopSettings(
        steps=optim.steps,
        learning_rate=optim.learning_rate or LEARNING_RATE,
        warmup=optim.warmup,
        optimizer=OptimizerSettings(optim.optimizer, optim.betas, optim.momentum, optim.weight_decay),
        schedule=optim.schedule,
        milestones=optim.milestones,
        clip=optim.clip,
        micro_tokens=optim.micro_tokens,
        seed=seed,
        checkpoint_every=checkpoint.every,
        checkpoint_keep=checkpoint.keep,
        look_every=evaluation.every,
        keep=evaluation.keep,
        patience=evaluation.patience,
        fresh_rate=optim.head_rate or 1.0,
        ema=optim.ema,
        divergence=config.divergence,
    )


def training_order(config: DistillConfig, examples: ExampleSet, seed: int) -> Order:
    """The global batches: of so many examples, or of so many padded tokens."""
    optim = config.optim
    if optim.token_budget is None:
        return PlainOrder(len(examples), optim.batch_size, "order", seed)
    lengths, sequences = examples.lengths.tolist(), examples.sequences.tolist()
    regions = examples.region_counts.tolist()
    return BucketOrder(
        lengths, sequences, optim.token_budget, optim.bucket, "order", seed,
        regions=regions, piece=optim.micro_tokens,
    )  # fmt: skip
