"""What a loop has learnt so far, on disk and in memory: checkpoints, the best weights, the average of the weights."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from madkit.core.errors import RunError
from madkit.core.files import write_bytes_atomic
from madkit.core.metrics_log import disk_problem
from madkit.distill.loop.checkpoint import latest_checkpoint, write_checkpoint
from madkit.distill.loop.contract import Look, LoopResult, LoopSettings
from madkit.distill.loop.divergence import DivergenceWatch, no_number
from madkit.distill.loop.ema import WeightAverage
from madkit.distill.loop.weight_mean import WeightMean


class TrainingState:
    """Weights and counts of one loop between its steps."""

    def __init__(
        self,
        folder: Path,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: LoopSettings,
        accelerator: Accelerator,
        weights: Sequence[WeightMean],
        marks: Mapping[str, str],
    ) -> None:
        self.root = folder / "checkpoints"
        self.module = module
        self.optimizer = optimizer
        self.settings = settings
        self.accelerator = accelerator
        self.weights = weights
        self.marks = dict(marks)
        self.watch = DivergenceWatch(settings.divergence)
        self.average = None if settings.ema is None else WeightAverage(module, settings.ema)
        self.result = LoopResult(step=0, kept_step=0)
        self.consumed = 0
        self.best_score = -math.inf
        self.best_step = 0
        self.since_best = 0
        self.last_score: float | None = None

    def stepped(self, samples: int) -> None:
        """Count a step that was made with so many samples."""
        self.consumed += samples
        self.result.step += 1
        if self.average is not None:
            self.average.update(self.result.step)

    # -- held-out looks ---------------------------------------------------------------------------------------------

    def look(self, look: Callable[[int], Look], samples: Sequence[str]) -> dict[str, Any]:
        """Score held-out data with the weights that would be exported now. Returns the journal's line.

        Raises RunError, which names the `samples` of the last step, where a score is not a number: weights that a step
        has blown up show here before any loss does.
        """
        step, result = self.result.step, self.result
        with contextlib.nullcontext() if self.average is None else self.average.applied():
            self.module.eval()
            with torch.inference_mode(), self.accelerator.autocast():
                seen = look(step)
            if self.accelerator.num_processes > 1:  # a device may round differently, and all must decide alike
                (seen,) = broadcast_object_list([seen])
            for name, value in {**seen.values, "score": seen.score}.items():
                if isinstance(value, float) and not math.isfinite(value):
                    raise no_number(f"On held-out data {name} is {value} after step {step}", samples)
            self.last_score = seen.score
            row = {"step": step, "dev": seen.values}
            result.looks.append(row)
            if seen.score > self.best_score:
                self.best_score, self.best_step, self.since_best = seen.score, step, 0
                if self.settings.keep == "best" and self.accelerator.is_main_process:
                    self._write_best()
            else:
                self.since_best += 1
                if self.settings.patience and self.since_best >= self.settings.patience:
                    result.stopped_early = True
        return row

    def note(self) -> str:
        """The last look and the best in a few words; empty before the first."""
        if not math.isfinite(self.best_score):
            return ""
        best = f"best {self.best_score:.4g} at {self.best_step:,}"
        return f"held-out {best}" if self.last_score is None else f"held-out {self.last_score:.4g} ({best})"

    def _best(self, step: int) -> Path:
        return self.root / f"best-{step:06d}.pt"

    def _write_best(self) -> None:
        buffer = io.BytesIO()
        torch.save({"step": self.best_step, "module": self.module.state_dict()}, buffer)
        path = self._best(self.best_step)
        try:
            write_bytes_atomic(path, buffer.getbuffer())
        except OSError as error:
            raise disk_problem(error, path) from None

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint; every process waits for it.

        Generators have no part in it: each step seeds them anew, so a run goes on alike on any number of devices.
        """
        if self.accelerator.is_main_process:
            result = self.result
            state = {
                "module": self.module.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "step": result.step,
                "consumed": self.consumed,
                "seed": self.settings.seed,
                "marks": self.marks,
                "looks": result.looks,
                "best": {"score": self.best_score, "step": self.best_step, "since": self.since_best},
                "stopped_early": result.stopped_early,
                "average": None if self.average is None else self.average.state(),
                "weights": [mean.state() for mean in self.weights],
                "watch": self.watch.state(),
            }
            write_checkpoint(self.root, result.step, state, keep=self.settings.checkpoint_keep)
            for path in self.root.glob("best-*.pt"):  # an older best is needed until a checkpoint knows of the newer
                if path != self._best(self.best_step):
                    path.unlink(missing_ok=True)
        self.accelerator.wait_for_everyone()

    def resume(self) -> None:
        """Load the last whole checkpoint, if any, into module and optimiser.

        Raises RunError for one of another seed, or with other marks, and where processes find different ones.
        """
        self._load_last()
        if self.accelerator.num_processes > 1:
            self._agree()

    def _agree(self) -> None:
        """Raise RunError, in all processes, where they go on from different steps."""
        step = self.result.step
        sums = torch.tensor([step, step * step], device=self.accelerator.device)
        total, squares = self.accelerator.reduce(sums, reduction="sum").tolist()
        if self.accelerator.num_processes * squares != total * total:  # Cauchy-Schwarz: equal if and only if all are
            raise RunError(
                f"The processes would go on from different steps, this one from {step}: they do not all see the "
                f"checkpoints in {self.root}.",
                hint="give all machines one folder with --workspace.",
            )

    def _load_last(self) -> None:
        found = latest_checkpoint(self.root)
        if found is None:
            return
        _, state = found
        if state["seed"] != self.settings.seed:
            raise RunError(
                f"The checkpoint in {self.root.parent} was made with seed {state['seed']}, not {self.settings.seed}.",
                hint=f"remove {self.root.parent} to train it anew.",
            )
        for name, value in state.get("marks", {}).items():
            if self.marks.get(name, value) != value:
                raise RunError(
                    f"The checkpoint in {self.root.parent} was made with another {name}.",
                    hint=f"bring the old one back, or remove {self.root.parent} to train it anew.",
                )
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.consumed = int(state["consumed"])
        best = state["best"]
        self.best_score, self.best_step, self.since_best = best["score"], best["step"], best["since"]
        if self.average is not None:
            self.average.load(state["average"])
        for mean, kept in zip(self.weights, state.get("weights", ()), strict=False):
            mean.load(kept)
        if state.get("watch") is not None:
            self.watch.load(state["watch"])
        result = self.result
        result.step = result.resumed_from = int(state["step"])
        result.looks = list(state["looks"])
        result.stopped_early = bool(state["stopped_early"])

    def finish(self) -> LoopResult:
        """Leave the weights to keep in the module: the last ones (averaged, if so), or the best that a look has found.

        Raises RunError where the best ones are gone.
        """
        result = self.result
        result.kept_step = result.step
        if self.settings.keep == "best" and self.best_step not in (0, result.step):
            path = self._best(self.best_step)
            if not path.exists():
                raise RunError(
                    f"The weights of step {self.best_step}, the best of this run, are gone: there is no {path}.",
                    hint=f"remove {self.root.parent} to train it anew.",
                )
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.module.load_state_dict(state["module"])
            result.kept_step = int(state["step"])
        elif self.average is not None:
            self.average.exchange()
        self.module.eval()
        return result
