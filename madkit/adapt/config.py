"""What an adaptation may be told: one typed schema behind ``--config`` files, ``--set`` and the flags.

The rates and lengths below were chosen on the development split of the embedded benchmark, whose teacher is small; for
a large one lower rates are the custom (METER, arXiv 2111.02387, fine-tunes CLIP's encoders at 5e-6).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from madkit.core.config import StrictModel, load_config

Train = Literal["heads", "lora", "all"]

LEARNING_RATES: dict[str, float] = {"heads": 1e-3, "lora": 5e-4, "all": 5e-5}


class LoraConfig(StrictModel):
    """Low-rank updates (Hu et al., arXiv 2106.09685), trained through the library ``peft``."""

    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0, description="the product of the two matrices counts alpha / rank times")
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: Literal["attention", "mlp", "all"] | list[str] = Field(
        "all", description="linear layers of the encoders' blocks: a kind, or ends of their names"
    )


class OptimConfig(StrictModel):
    """Length, batches and optimiser. A batch counts items: questions, or images with their hypotheses."""

    learning_rate: float | None = Field(None, gt=0, description="none: LEARNING_RATES of what is trained")
    steps: int | None = Field(None, ge=1, description="optimiser steps; none: from epochs, min_steps and max_steps")
    epochs: float = Field(5.0, gt=0)
    min_steps: int = Field(100, ge=1)
    max_steps: int = Field(2000, ge=1)
    batch_size: int = Field(32, ge=2)
    warmup: float = Field(0.1, ge=0, le=1, description="share of the steps over which the rate rises from 0")
    weight_decay: float = Field(0.05, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = Field(1.0, ge=0, description="largest norm of the gradient; 0 does not clip")


class EvalConfig(StrictModel):
    """How the development split stops the training and chooses the step. No test suite is ever read."""

    every: int | None = Field(None, ge=1, description="steps between two looks; none: a tenth of all")
    limit: int = Field(500, ge=1, description="items of the development split, and as many of the training subset")
    patience: int = Field(3, ge=1, description="looks without a gain after which it stops")


class ObjectiveConfig(StrictModel):
    """Weights of the three terms, and how texts are made of an example."""

    image_to_text: float = Field(1.0, ge=0, description="the right texts among all texts of the batch")
    text_to_image: float = Field(1.0, ge=0, description="the right image among the images of the batch")
    candidates: float = Field(1.0, ge=0, description="the right texts among the example's own")
    text: Literal["joined", "candidate"] = Field(
        "joined", description="a candidate behind its question (joined), or alone"
    )
    positive_label: str | None = Field(
        None, description="classification: the class of a text that is true of its image; none: entailment, if any"
    )
    wrong_answers: int = Field(15, ge=1, description="VQA: at most so many answers of other questions of the same type")
    logit_scale: Literal["fixed", "learned"] | None = Field(None, description="none: fixed where the teacher has one")


class AdaptConfig(StrictModel):
    """Everything that an adaptation can be told beside its teacher, task, shots and seed."""

    train: Train = "lora"
    lora: LoraConfig = Field(default_factory=LoraConfig)
    optim: OptimConfig = Field(default_factory=OptimConfig)
    eval: EvalConfig = Field(default_factory=EvalConfig)
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig)
    head_dim: int | None = Field(
        None, ge=1, description="width of the common space that unrelated teachers get; none: the narrower one's"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="auto: 16 bit on CUDA devices")
    gradient_checkpointing: bool = Field(False, description="compute activations twice and keep fewer of them")
    image_memory_mb: int = Field(512, ge=0, description="decoded images that are kept in memory")
    checkpoint_every: int = Field(50, ge=1, description="steps between two checkpoints")


# What does not change the numbers of a run does not change its folder either.
OUTSIDE_DIGEST = ("gradient_checkpointing", "image_memory_mb", "checkpoint_every")


def load_adapt_config(path: Path | None, overrides: dict[str, Any]) -> AdaptConfig:
    """Defaults, then a YAML file, then overrides. Raises NotFoundError or ConfigError; see `load_config`."""
    return load_config(AdaptConfig, path, overrides)


def resolve(config: AdaptConfig, n_items: int) -> AdaptConfig:
    """`config` with every open value filled: steps from the size of the subset, the rate by what is trained."""
    optim = config.optim
    steps = optim.steps
    if steps is None:
        per_epoch = math.ceil(n_items / min(optim.batch_size, n_items))
        steps = min(max(round(optim.epochs * per_epoch), optim.min_steps), max(optim.max_steps, optim.min_steps))
    rate = optim.learning_rate or LEARNING_RATES[config.train]
    every = config.eval.every or max(1, steps // 10)
    return config.model_copy(
        update={
            "optim": optim.model_copy(update={"steps": steps, "learning_rate": rate}),
            "eval": config.eval.model_copy(update={"every": every}),
        }
    )
