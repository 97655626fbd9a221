"""The loop that both phases share: batches by count, Accelerate for device, precision and processes, exact resume.

What a step does depends on the seed, the step's number and the weights, and on nothing else: the order of samples is a
pure function (`order.py`), the learning rate is one (`schedule.py`), and dropout draws from a generator that is seeded
anew for every step. A run that is killed and resumed therefore repeats itself bit for bit on the same machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, InitProcessGroupKwargs
from torch import nn

from madkit.core.console import Progress, info, stdout_clear, warn
from madkit.core.errors import RunError
from madkit.core.interrupts import StopSignals
from madkit.core.launcher import asked_accumulation, job_hidden, launched, world_size
from madkit.core.metrics_log import MetricsLog
from madkit.distill.batches.order import Indices, Order
from madkit.distill.loop.ahead import Ahead
from madkit.distill.loop.contract import Attack, Look, LoopResult, LoopSettings, StepLoss
from madkit.distill.loop.journal import Journal
from madkit.distill.loop.optimizer import make_optimizer
from madkit.distill.loop.step import Stepper
from madkit.distill.loop.trackers import Trackers
from madkit.distill.loop.training_state import TrainingState
from madkit.distill.loop.weight_mean import WeightMean

__all__ = ["Attack", "LoopResult", "LoopSettings", "Look", "Precision", "StepLoss", "make_accelerator", "run_loop"]

Precision = Literal["fp32", "bf16"]
# Processes wait for the first one while it fits a probe, reads a large data set or writes a run: longer, on real data,
# than the ten minutes after which NCCL gives a process up.
PATIENCE = timedelta(hours=2)


def make_accelerator(precision: Precision) -> Accelerator:
    """An Accelerator for this process: CUDA where there is a device, else CPU.

    Raises RunError for bf16 without CUDA.
    """
    cuda = torch.cuda.is_available()
    if precision == "bf16" and not cuda:
        raise RunError("Precision bf16 needs a CUDA device, and this machine has none.", hint="--set precision=fp32")
    mixed = "bf16" if precision == "bf16" else "no"
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed:
        AcceleratorState._reset_state()  # an earlier run of this process; Accelerate refuses to change its mind
    # heads of a student that a phase does not use get no gradient: DDP has to be told
    handlers: list[Any] = [
        DistributedDataParallelKwargs(find_unused_parameters=True),
        InitProcessGroupKwargs(timeout=PATIENCE),
    ]
    # on CPUs alone Accelerate joins the processes of `torchrun` only where it is told that CPUs are meant
    several = not cuda and world_size() > 1
    if (passes := asked_accumulation()) > 1:
        warn(
            f"Gradients are not accumulated over {passes} passes, as the launcher asks: optim.micro_tokens cuts steps."
        )
    # a step weighs its micro-batches itself; left to the launcher's variable, Accelerate would divide gradients again
    one = GradientAccumulationPlugin(num_steps=1)
    with stdout_clear() if launched() else job_hidden():
        return Accelerator(
            mixed_precision=mixed, cpu=several, kwargs_handlers=handlers, gradient_accumulation_plugin=one
        )


def run_loop(
    folder: Path,
    module: nn.Module,
    order: Order,
    make_batch: Callable[[Indices, int], Any],
    ids: Sequence[str],
    lengths: Indices,
    sequences: Indices,
    settings: LoopSettings,
    accelerator: Accelerator,
    *,
    look: Callable[[int], Look] | None = None,
    fresh: Callable[[str], bool] = lambda name: False,
    adversary: Attack | None = None,
    weights: Sequence[WeightMean] = (),
    trackers: Trackers | None = None,
    marks: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> LoopResult:
    """Train `module` for `settings.steps` steps in `folder`, going on from its last checkpoint where there is one.

    Args:
        folder: gets `metrics.jsonl` and `checkpoints/`.
        module: called with a micro-batch, returns a StepLoss. It is moved to the accelerator's device.
        order: the global batches.
        make_batch: (indices, step counted from 0) -> micro-batch with a `to(device)` method. Where it has an attribute
            `reads` that is true, or on a GPU, the next step's are made in a thread while a step is computed.
        ids: sample ids, for the journal and for messages.
        lengths: [n] tokens per sequence, for the accumulation.
        sequences: [n] sequences per example.
        settings: how long, how fast, how often.
        accelerator: device, precision and processes.
        look: scores held-out data after a step, with `module` in evaluation mode; called every `look_every` steps.
        fresh: names of parameters that take `fresh_rate` times the learning rate.
        adversary: makes several passes of each micro-batch, whose losses are differentiated one after the other, in
            place of the one that `module` makes; see `adversarial.Adversary`.
        weights: whom `module` asks for the mean weight of the global batch, where it weighs examples.
        trackers: fed from the journal after each checkpoint.
        marks: what must not have changed since the checkpoint that it goes on from, by a name for the message.
        progress: advanced by one per step.

    Raises:
        RunError: the loss, the gradient or what a look finds is not a number, or the loss has diverged (names the
            samples), or the disk refuses a write.
        StoppedResumable, KeyboardInterrupt: a signal, after a checkpoint was written.
    """
    device = accelerator.device
    module.to(device)
    plain = make_optimizer(module, settings.optimizer, settings.learning_rate, device, fresh)
    wrapped, optimizer = accelerator.prepare(module, plain)
    state = TrainingState(folder, module, plain, settings, accelerator, weights, marks or {})
    state.resume()
    result = state.result
    if progress is not None and 0 < result.step < settings.steps:
        info(f"Going on from step {result.step:,}, where the last checkpoint was written.")
    if progress is not None and result.step:
        progress.advance(result.step)
    log = MetricsLog(folder / "metrics.jsonl", after_step=result.step) if accelerator.is_main_process else None
    if trackers is not None:
        trackers.feed(result.step)
    reads = device.type == "cuda" or bool(getattr(make_batch, "reads", False))
    try:
        with StopSignals() as signals, Ahead(make_batch, on=reads, device=device) as batches:
            make_step = Stepper(
                module, wrapped, plain, optimizer, settings, accelerator, batches, lengths, sequences,
                adversary=adversary, weights=weights,
            )  # fmt: skip
            journal = Journal(log, accelerator, state.watch, lambda: signals.requested)
            while result.step < settings.steps and not result.stopped_early:
                index = result.step
                batch = order.at(state.consumed)
                following = order.at(state.consumed + len(batch)) if reads and index + 1 < settings.steps else None
                made = make_step(index, batch, following)
                state.stepped(len(batch))
                step = result.step
                rate = settings.learning_rate * settings.rate(index)
                samples = [ids[int(place)] for place in batch]
                journal.add(step, rate, samples, made.loss, made.terms, made.norm)
                last = step == settings.steps
                if look is not None and (last or (settings.look_every and step % settings.look_every == 0)):
                    journal.flush()
                    journal.look(state.look(look, samples))
                    last = last or result.stopped_early
                if progress is not None:
                    progress.advance(1)
                    progress.update("; ".join(filter(None, (state.note(), journal.note))))
                if journal.stop or last or step % settings.checkpoint_every == 0:
                    stop = journal.stop  # before the flush, which may bring news of other processes' signals
                    journal.flush()
                    state.save()
                    if trackers is not None:
                        trackers.feed(step)
                    if stop and not last:
                        raise signals.error()
    finally:
        if log is not None:
            log.__exit__(None, None, None)
    return state.finish()
