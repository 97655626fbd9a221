"""The training loop: exact resume, looks at the development split that choose the step and stop the training.

What a step does depends on the seed, its number and the weights alone: the order of items is a pure function, so is the
rate, and dropout draws from a generator that is seeded anew for every step.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from madkit.adapt.checkpoint import (
    latest_checkpoint,
    load_optimizer,
    optimizer_tensors,
    read_tensors,
    write_checkpoint,
    write_tensors,
)
from madkit.adapt.config import AdaptConfig
from madkit.adapt.development import Match
from madkit.adapt.items import Item
from madkit.adapt.objective import contrast
from madkit.adapt.order import BatchOrder
from madkit.adapt.trained_pair import TrainedPair
from madkit.adapt.vectors import Vectors
from madkit.core.console import Progress, warn
from madkit.core.errors import RunError
from madkit.core.interrupts import StopSignals
from madkit.core.metrics_log import MetricsLog
from madkit.core.seeds import derive_seed

CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
OLD_BEST = "best.safetensors"
"""The best weights of runs begun by versions that kept them in one file, whatever their step."""


@dataclass(slots=True)
class Progression:
    """How far a training is.

    Attributes:
        step: steps done.
        looks: rows of the looks so far, the one before the first step included.
        best_step: the step with the best development score; 0 is the untouched teacher.
        best_score: its score.
        since: looks since then.
        stopped_early: whether it was stopped for want of a gain.
        resumed_from: the step of the checkpoint that this process began with.
    """

    step: int = 0
    looks: list[dict[str, Any]] = field(default_factory=list)
    best_step: int = 0
    best_score: float = -math.inf
    since: int = 0
    stopped_early: bool = False
    resumed_from: int = 0


def rate_factor(step: int, steps: int, warmup: float) -> float:
    """Factor on the learning rate: from 0 up to 1 over the first share of steps, then linearly down to 0."""
    rising = max(1, round(steps * warmup))
    return (step + 1) / rising if step < rising else (steps - step) / max(1, steps - rising)


class Training:
    """One training in its folder."""

    def __init__(
        self,
        folder: Path,
        pair: TrainedPair,
        vectors: Vectors,
        items: Sequence[Item],
        config: AdaptConfig,
        seed: int,
        accelerator: Accelerator,
    ) -> None:
        optim = config.optim
        assert optim.steps is not None
        assert optim.learning_rate is not None
        self.folder, self.pair, self.vectors, self.items = folder, pair, vectors, items
        self.config, self.seed, self.accelerator = config, seed, accelerator
        self.steps, self.rate = optim.steps, optim.learning_rate
        self.order = BatchOrder(len(items), optim.batch_size, seed)
        self.names = {id(parameter): name for name, parameter in pair.trained.items()}
        self.plain = torch.optim.AdamW(_groups(pair, optim.weight_decay), lr=self.rate, betas=optim.betas, fused=True)
        self.optimizer: Any = accelerator.prepare(self.plain)
        self._checked = False

    def run(self, look: Callable[[], tuple[Match, Match]], progress: Progress) -> Progression:
        """Train, going on from the last checkpoint; afterwards the pair holds the weights of the best step.

        Args:
            look: matches on the training subset and on the development split.
            progress: advanced by one per step.

        Raises:
            RunError: the loss is no number (names the examples), or the disk refuses a write.
            StoppedResumable, KeyboardInterrupt: a signal, after a checkpoint was written.
        """
        done = self._resume()
        progress.advance(done.step)
        after = done.step if done.resumed_from else -1
        with MetricsLog(self.folder / METRICS, after_step=after) as journal, StopSignals() as signals:
            if not done.looks:
                self._look(done, look, journal, progress)
            every = self.config.eval.every or self.steps
            while done.step < self.steps and not done.stopped_early:
                journal.write(self._step(done.step))
                done.step += 1
                if done.step % every == 0 or done.step == self.steps:
                    self._look(done, look, journal, progress)
                last = done.step == self.steps or done.stopped_early
                if done.step % self.config.checkpoint_every == 0 or last or signals.requested:
                    self._save(done)
                progress.advance()
                if signals.requested and not last:
                    raise signals.error()
        self._take_best(done)
        return done

    def _step(self, step: int) -> dict[str, Any]:
        items = [self.items[place] for place in self.order.at(step)]
        factor = rate_factor(step, self.steps, self.config.optim.warmup)
        for group in self.plain.param_groups:
            group["lr"] = self.rate * factor
        torch.manual_seed(derive_seed(self.seed, "adapt step", step))
        self.pair.eval()
        self.pair.start_step()
        with self.accelerator.autocast():
            images, words, pairing = self.vectors.of(items)
        outcome = contrast(images, words, self.pair.scale, pairing, self.config.objective)
        ids = [example for item in items for example in item.ids]
        loss = float(outcome.loss.detach())
        if not math.isfinite(loss):
            raise self._no_number(f"The loss of step {step + 1} is {loss}", step)
        self.accelerator.backward(outcome.loss)
        self._check_gradients()
        if self.config.optim.clip:
            self.accelerator.clip_grad_norm_(list(self.pair.trained.values()), self.config.optim.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.pair.clamp_scale()
        return {
            "step": step + 1,
            "loss": loss,
            "terms": {name: float(term.detach()) for name, term in outcome.terms.items()},
            "accuracy": float(outcome.right) / outcome.decided if outcome.decided else None,
            "lr": self.rate * factor,
            "ids": hashlib.sha256("\n".join(ids).encode()).hexdigest()[:8],
            "n": len(items),
        }

    def _no_number(self, what: str, step: int) -> RunError:
        """The error where `what` a sentence says is infinite or not a number, in a step (from 0) or after it."""
        ids = [example for place in self.order.at(step) for example in self.items[place].ids]
        shown = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
        return RunError(
            f"{what}; the examples of that step are {shown}.",
            hint="look at those examples, or lower the rate: --set optim.learning_rate=...",
        )

    def _check_gradients(self) -> None:
        """Warn, once, of low-rank matrices beside layers that the network never calls: they would stay as they are."""
        if self._checked:
            return
        self._checked = True
        low_rank = {name: value for name, value in self.pair.trained.items() if "/lora_b/" in name}
        still = [name.replace("/lora_b", "") for name, value in low_rank.items() if value.grad is None]
        if still:
            warn(
                f"{len(still)} of {len(low_rank)} low-rank updates get no gradient, for the teacher's network reads "
                f"these weights without calling their layers (first: {still[0]}). --train all trains them."
            )

    def _look(
        self, done: Progression, look: Callable[[], tuple[Match, Match]], journal: MetricsLog, progress: Progress
    ) -> None:
        with self.accelerator.autocast():
            train, dev = look()
        for what, match in (("the training subset", train), ("the development split", dev)):
            if math.isfinite(match.loss) and math.isfinite(match.score):
                continue
            if not done.step:
                raise RunError(
                    f"The loss on {what} is {match.loss} before the first step: the teacher's vectors are no numbers.",
                    hint="look at its weights, or at the images and texts",
                )
            raise self._no_number(f"The loss on {what} is {match.loss} after step {done.step}", done.step - 1)
        row = {"step": done.step, "train": train.as_row(), "dev": dev.as_row()}
        journal.write(row)
        done.looks.append(row)
        if dev.score > done.best_score:  # of equals the earliest: nothing is changed without a gain
            done.best_score, done.best_step, done.since = dev.score, done.step, 0
            if done.step:
                write_tensors(self._best(done.step), self._tensors(), {"step": done.step})
        else:
            done.since += 1
            done.stopped_early = done.since >= self.config.eval.patience
        first = done.looks[0]["dev"]
        before = first["retrieval"] if first["accuracy"] is None else first["accuracy"]
        progress.update(f"train {train.score:.3f}, dev {dev.score:.3f}, at first {before:.3f}")

    def _best(self, step: int) -> Path:
        return self.folder / CHECKPOINTS / f"best-{step:06d}.safetensors"

    def _tensors(self) -> dict[str, Tensor]:
        return dict(self.pair.trained)

    def _save(self, done: Progression) -> None:
        state = {
            "looks": done.looks,
            "best_step": done.best_step,
            "best_score": done.best_score,
            "since": done.since,
            "stopped_early": done.stopped_early,
        }
        tensors = {**self._tensors(), **optimizer_tensors(self.plain, self.names)}
        write_checkpoint(self.folder / CHECKPOINTS, done.step, tensors, state)
        for path in (self.folder / CHECKPOINTS).glob("best-*.safetensors"):
            if path != self._best(done.best_step):  # an older best is needed until a checkpoint knows of the newer
                path.unlink(missing_ok=True)

    def _resume(self) -> Progression:
        self._rename_old_best()
        found = latest_checkpoint(self.folder / CHECKPOINTS)
        if found is None:
            return Progression()
        tensors, state = found
        load_trained(self.pair, tensors)
        load_optimizer(self.plain, self.pair.trained, tensors)
        return Progression(**state, resumed_from=int(state["step"]))

    def _rename_old_best(self) -> None:
        old = self.folder / CHECKPOINTS / OLD_BEST
        found = read_tensors(old)
        if found is not None:
            old.replace(self._best(int(found[1]["step"])))

    def _take_best(self, done: Progression) -> None:
        if done.best_step in (0, done.step):
            return
        found = read_tensors(self._best(done.best_step))
        if found is None:
            raise RunError(
                f"The weights of the best step in {self._best(done.best_step)} are damaged or gone.",
                hint=f"remove {self.folder} and run the same command again",
            )
        load_trained(self.pair, found[0])


@torch.no_grad()
def load_trained(pair: TrainedPair, tensors: dict[str, Tensor]) -> None:
    """Put trained weights into a pair."""
    for name, parameter in pair.trained.items():
        parameter.copy_(tensors[name])


def _groups(pair: TrainedPair, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices are decayed, biases, norms and the scale are not."""
    parameters = list(pair.trained.values())
    return [
        {"params": [parameter for parameter in parameters if (parameter.ndim >= 2) is decayed], "weight_decay": decay}
        for decayed, decay in ((True, weight_decay), (False, 0.0))
        if any((parameter.ndim >= 2) is decayed for parameter in parameters)
    ]
