"""The loop that both phases share: batches by count, Accelerate for device, precision and processes, exact resume.

What a step does depends on the seed, the step's number and the weights, and on nothing else: the order of samples is a
pure function (`order.py`), the learning rate is one (`schedule.py`), and dropout draws from a generator that is seeded
anew for every step. A run that is killed and resumed therefore repeats itself bit for bit on the same machine.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn

from madkit.core.console import Progress, info
from madkit.core.errors import RunError
from madkit.core.files import write_bytes_atomic
from madkit.core.interrupts import StopSignals
from madkit.core.metrics_log import MetricsLog, disk_problem
from madkit.core.seeds import derive_seed
from madkit.distill.ahead import Ahead
from madkit.distill.checkpoint import latest_checkpoint, write_checkpoint
from madkit.distill.optimizer import OptimizerSettings, make_optimizer
from madkit.distill.order import Indices, Order, micro_batches, rank_slice
from madkit.distill.schedule import Shape, rate_factor

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """How long, how fast and how often; see `config.OptimConfig` for the meaning of each."""

    steps: int
    learning_rate: float
    warmup: float
    optimizer: OptimizerSettings
    clip: float
    micro_tokens: int
    seed: int
    checkpoint_every: int
    checkpoint_keep: int
    look_every: int = 0
    keep: Literal["last", "best"] = "last"
    patience: int = 0
    fresh_rate: float = 1.0
    schedule: Shape = "linear"
    milestones: tuple[float, ...] = ()

    def rate(self, step: int) -> float:
        """Factor on the learning rate in a step counted from 0."""
        return rate_factor(step, self.steps, self.warmup, shape=self.schedule, milestones=self.milestones)


@dataclass(frozen=True, slots=True)
class StepLoss:
    """What the trained module returns for a micro-batch: a mean over its examples, and its parts for the journal."""

    loss: Tensor
    terms: dict[str, Tensor]


Attack = Callable[[Any], Iterator[tuple[StepLoss, bool]]]
"""From a micro-batch to its passes: each pass's loss, and whether more of them follow."""


@dataclass(frozen=True, slots=True)
class Look:
    """One look at held-out data: `score` (higher is better) decides, `values` go to the journal."""

    score: float
    values: dict[str, Any]


@dataclass(slots=True)
class LoopResult:
    """How a loop ended. `step` is the last one done, `kept_step` the one whose weights the module holds."""

    step: int
    kept_step: int
    looks: list[dict[str, Any]] = field(default_factory=list)
    resumed_from: int = 0
    stopped_early: bool = False


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
    handlers: list[Any] = [DistributedDataParallelKwargs(find_unused_parameters=True)]
    return Accelerator(mixed_precision=mixed, kwargs_handlers=handlers)


def digest_ids(ids: Sequence[str]) -> str:
    """Eight hex digits that stand for the ids of a batch, in order."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:8]


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
        progress: advanced by one per step.

    Raises:
        RunError: the loss is not a number (names the samples), or the disk refuses a write.
        StoppedResumable, KeyboardInterrupt: a signal, after a checkpoint was written.
    """
    device = accelerator.device
    module.to(device)
    plain = make_optimizer(module, settings.optimizer, settings.learning_rate, device, fresh)
    wrapped, optimizer = accelerator.prepare(module, plain)
    run = _Running(folder, module, wrapped, plain, settings, accelerator, adversary)
    result = run.resume()
    if progress is not None and 0 < result.step < settings.steps:
        info(f"Going on from step {result.step:,}, where the last checkpoint was written.")
    if progress is not None and result.step:
        progress.advance(result.step)
    journal = MetricsLog(folder / "metrics.jsonl", after_step=result.step) if accelerator.is_main_process else None
    reads = device.type == "cuda" or bool(getattr(make_batch, "reads", False))
    try:
        with StopSignals() as signals, Ahead(make_batch, on=reads) as batches:
            while result.step < settings.steps and not result.stopped_early:
                index = result.step
                batch = order.at(run.consumed)
                following = order.at(run.consumed + len(batch)) if reads and index + 1 < settings.steps else None
                run.step(index, batch, following, batches, ids, lengths, sequences, optimizer)
                run.consumed += len(batch)
                result.step = step = index + 1
                if len(run.pending) >= run.lag:
                    run.flush(journal)
                last = step == settings.steps
                if look is not None and (last or (settings.look_every and step % settings.look_every == 0)):
                    run.flush(journal)
                    run.look(look, step, result, journal)
                    last = last or result.stopped_early
                if progress is not None:
                    progress.advance(1)
                    progress.update(run.note)
                if signals.requested or last or step % settings.checkpoint_every == 0:
                    run.flush(journal)
                    run.save(result)
                if signals.requested and not last:
                    raise signals.error()
    finally:
        if journal is not None:
            journal.__exit__(None, None, None)
    run.finish(result)
    return result


class _Running:
    """The state of one loop between its steps."""

    def __init__(
        self,
        folder: Path,
        module: nn.Module,
        wrapped: Any,
        optimizer: torch.optim.Optimizer,
        settings: LoopSettings,
        accelerator: Accelerator,
        adversary: Attack | None,
    ) -> None:
        self.adversary = adversary
        self.folder = folder
        self.module = module
        self.wrapped = wrapped
        self.optimizer = optimizer
        self.settings = settings
        self.accelerator = accelerator
        self.consumed = 0
        self.best_score = -math.inf
        self.best_step = 0
        self.since_best = 0
        self.note = ""
        self.pending: list[tuple[dict[str, Any], list[str], Tensor, dict[str, Tensor]]] = []
        # reading a loss waits for the device: on CUDA a few steps are queued before their lines are written
        self.lag = 16 if accelerator.device.type == "cuda" else 1

    # -- one step ---------------------------------------------------------------------------------------------------

    def step(
        self,
        index: int,
        batch: Indices,
        following: Indices | None,
        make_batch: Ahead,
        ids: Sequence[str],
        lengths: Indices,
        sequences: Indices,
        optimizer: Any,
    ) -> None:
        settings, accelerator = self.settings, self.accelerator
        factor = settings.rate(index)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * factor * (settings.fresh_rate if group["fresh"] else 1.0)
        # dropout is a function of (seed, step, rank): no generator state has to survive a kill
        torch.manual_seed(derive_seed(settings.seed, "step", index, accelerator.process_index))
        self.wrapped.train()
        pieces = self._pieces(batch, lengths, sequences)
        total = torch.zeros((), device=accelerator.device)
        terms: dict[str, Tensor] = {}
        for number, piece in enumerate(pieces):
            part = len(piece) / len(batch)
            last = number == len(pieces) - 1
            inputs = make_batch(piece, index).to(accelerator.device)
            if last and following is not None:
                make_batch.announce(self._pieces(following, lengths, sequences), index + 1)
            for out, more in self._passes(inputs, last):
                # DDP averages gradients over processes: undo it, so that the sum is the mean over the global batch
                accelerator.backward(out.loss * (part * accelerator.num_processes), retain_graph=more)
                total += out.loss.detach() * part
                for name, value in out.terms.items():
                    terms[name] = terms.get(name, 0.0) + value.detach() * part
        if self.adversary is not None and accelerator.num_processes > 1:
            self._average_gradients()
        if accelerator.num_processes > 1:
            total = accelerator.reduce(total, reduction="sum")
            terms = {name: accelerator.reduce(value, reduction="sum") for name, value in sorted(terms.items())}
        if settings.clip:
            accelerator.clip_grad_norm_(self.module.parameters(), settings.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        batch_ids = [ids[int(place)] for place in batch]
        row = {"step": index + 1, "lr": settings.learning_rate * factor, "n": len(batch)}
        self.pending.append((row, batch_ids, total, terms))

    def _pieces(self, batch: Indices, lengths: Indices, sequences: Indices) -> list[Indices]:
        """This process's share of a global batch, in micro-batches."""
        share = rank_slice(batch, self.accelerator.process_index, self.accelerator.num_processes)
        return micro_batches(share, lengths, sequences, self.settings.micro_tokens)

    def _passes(self, inputs: Any, last: bool) -> Iterator[tuple[StepLoss, bool]]:
        """The passes of a micro-batch: one, or an adversary's. Gradients are exchanged after the last of a step."""
        accelerator = self.accelerator
        if self.adversary is None:
            with accelerator.autocast(), nullcontext() if last else accelerator.no_sync(self.wrapped):
                out: StepLoss = self.wrapped(inputs)
            yield out, False
            return
        attack = self.adversary(inputs)
        while True:
            with accelerator.autocast():  # not around the backward pass, which runs between two of these
                found = next(attack, None)
            if found is None:
                return
            yield found

    def _average_gradients(self) -> None:
        """What DDP does in a plain step: its bookkeeping does not bear several backward passes through one forward."""
        trained = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        used = torch.tensor([float(parameter.grad is not None) for parameter in trained]).to(self.accelerator.device)
        anywhere = self.accelerator.reduce(used, reduction="sum").tolist()
        for parameter, processes in zip(trained, anywhere, strict=True):
            if processes:
                grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = self.accelerator.reduce(grad, reduction="mean")

    def flush(self, journal: MetricsLog | None) -> None:
        """Read the pending losses from the device, write their lines, stop at the first that is not a number."""
        for row, batch_ids, total, terms in self.pending:
            loss = float(total)
            if not math.isfinite(loss):
                self._stop_at_nan(row["step"], loss, batch_ids)
            values = {name: float(value) for name, value in terms.items()}
            if journal is not None:
                line = {"step": row["step"], "loss": loss, "terms": values, "lr": row["lr"]}
                journal.write({**line, "ids": digest_ids(batch_ids), "n": row["n"]})
            self._note(loss, values)
        self.pending.clear()

    def _stop_at_nan(self, step: int, loss: float, batch_ids: list[str]) -> None:
        shown = ", ".join(batch_ids[:8]) + (f" and {len(batch_ids) - 8} more" if len(batch_ids) > 8 else "")
        raise RunError(
            f"The loss of step {step} is {loss}; the samples of that step are {shown}.",
            hint="look at those samples, or lower the rate: --set optim.learning_rate=...",
        )

    def _note(self, loss: float, terms: dict[str, float]) -> None:
        parts = [f"loss {loss:.3f}"]
        if len(terms) > 1:
            parts += [f"{name} {value:.3f}" for name, value in terms.items()]
        if math.isfinite(self.best_score):
            parts.append(f"best held-out {self.best_score:.4g} at {self.best_step}")
        self.note = ", ".join(parts)

    # -- held-out looks ---------------------------------------------------------------------------------------------

    def look(self, look: Callable[[int], Look], step: int, result: LoopResult, journal: MetricsLog | None) -> None:
        self.module.eval()
        with torch.inference_mode(), self.accelerator.autocast():
            seen = look(step)
        row = {"step": step, "dev": seen.values}
        result.looks.append(row)
        if journal is not None:
            journal.write(row)
        if seen.score > self.best_score:
            self.best_score, self.best_step, self.since_best = seen.score, step, 0
            if self.settings.keep == "best" and self.accelerator.is_main_process:
                self._write_best()
        else:
            self.since_best += 1
            if self.settings.patience and self.since_best >= self.settings.patience:
                result.stopped_early = True

    def _write_best(self) -> None:
        import io

        buffer = io.BytesIO()
        torch.save({"step": self.best_step, "module": self.module.state_dict()}, buffer)
        try:
            write_bytes_atomic(self.folder / "checkpoints" / "best.pt", buffer.getbuffer())
        except OSError as error:
            raise disk_problem(error, self.folder / "checkpoints" / "best.pt") from None

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def save(self, result: LoopResult) -> None:
        """Write a checkpoint; every process waits for it."""
        if self.accelerator.is_main_process:
            state = {
                "module": self.module.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "step": result.step,
                "consumed": self.consumed,
                "seed": self.settings.seed,
                "looks": result.looks,
                "best": {"score": self.best_score, "step": self.best_step, "since": self.since_best},
                "stopped_early": result.stopped_early,
                "rng": torch.get_rng_state(),
                "rng_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            }
            root = self.folder / "checkpoints"
            write_checkpoint(root, result.step, state, keep=self.settings.checkpoint_keep)
        self.accelerator.wait_for_everyone()

    def resume(self) -> LoopResult:
        """Load the last whole checkpoint, if any, into module and optimiser."""
        result = LoopResult(step=0, kept_step=0)
        found = latest_checkpoint(self.folder / "checkpoints", self.accelerator.device)
        if found is None:
            return result
        _, state = found
        if state["seed"] != self.settings.seed:
            raise RunError(
                f"The checkpoint in {self.folder} was made with seed {state['seed']}, not {self.settings.seed}.",
                hint=f"remove {self.folder} to train it anew.",
            )
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.consumed = int(state["consumed"])
        best = state["best"]
        self.best_score, self.best_step, self.since_best = best["score"], best["step"], best["since"]
        torch.set_rng_state(state["rng"].cpu())
        if torch.cuda.is_available() and state["rng_cuda"]:
            torch.cuda.set_rng_state_all([generator.cpu() for generator in state["rng_cuda"]])
        result.step = result.resumed_from = int(state["step"])
        result.looks = list(state["looks"])
        result.stopped_early = bool(state["stopped_early"])
        return result

    def finish(self, result: LoopResult) -> None:
        """Leave the weights to keep in the module: the last ones, or the best that a look has found."""
        result.kept_step = result.step
        best = self.folder / "checkpoints" / "best.pt"
        if self.settings.keep == "best" and best.exists() and self.best_step != result.step:
            state = torch.load(best, map_location=self.accelerator.device, weights_only=True)
            self.module.load_state_dict(state["module"])
            result.kept_step = int(state["step"])
        self.module.eval()
