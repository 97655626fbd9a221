"""What a loop writes down of its steps: lines of `metrics.jsonl`, the note beside its progress, and what stops it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from madkit.core.metrics_log import MetricsLog
from madkit.distill.loop.divergence import DivergenceWatch, no_number


def digest_ids(ids: Sequence[str]) -> str:
    """Eight hex digits that stand for the ids of a batch, in order."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:8]


@dataclass(frozen=True, slots=True)
class _Step:
    """A step that is not written yet: what its line says, its samples, and this process's part of its numbers."""

    row: dict[str, Any]
    ids: list[str]
    loss: Tensor
    norm: Tensor
    terms: dict[str, Tensor]


class Journal:
    """Keeps losses on the device for a few steps, then adds them over processes, checks and writes them.

    Args:
        log: the file; None in processes that do not write.
        accelerator: adds over processes.
        watch: sees every loss.
        asked: whether this process has been told to stop. Signals reach processes at different steps, and all must
            stop after the same one: what any of them was told becomes known with the losses.
    """

    def __init__(
        self, log: MetricsLog | None, accelerator: Accelerator, watch: DivergenceWatch, asked: Callable[[], bool]
    ) -> None:
        self.note = ""
        self._asked = asked
        self._anyone_asked = False
        self._log = log
        self._accelerator = accelerator
        self._watch = watch
        self._pending: list[_Step] = []
        # reading a loss waits for the device: on CUDA a few steps are queued before their lines are written
        self._lag = 16 if accelerator.device.type == "cuda" else 1

    def add(
        self, step: int, rate: float, ids: list[str], loss: Tensor, terms: dict[str, Tensor], norm: Tensor | None = None
    ) -> None:
        """Note a step (counted from 1): this process's part of its loss and terms, and its gradient's norm."""
        row = {"step": step, "lr": rate, "n": len(ids)}
        self._pending.append(_Step(row, ids, loss, torch.zeros_like(loss) if norm is None else norm, terms))
        if len(self._pending) >= self._lag:
            self.flush()

    def flush(self) -> None:
        """Write what is pending.

        Raises RunError at a loss or gradient that is not a number, or a loss that has run away.
        """
        rows = self._values()
        for pending, (loss, norm, terms) in zip(self._pending, rows, strict=True):
            row, ids = pending.row, pending.ids
            if not math.isfinite(loss):
                raise no_number(f"The loss of step {row['step']} is {loss}", ids)
            if not math.isfinite(norm):
                raise no_number(f"The gradient of step {row['step']} has the norm {norm}", ids)
            if self._log is not None:
                line = {"step": row["step"], "loss": loss, "terms": terms, "lr": row["lr"]}
                self._log.write({**line, "ids": digest_ids(ids), "n": row["n"]})
            self._watch.see(row["step"], loss, ids)
            self.note = _note(loss, terms)
        self._pending.clear()

    @property
    def stop(self) -> bool:
        """Whether to stop after this step, the same in every process."""
        return self._anyone_asked if self._accelerator.num_processes > 1 else self._asked()

    def look(self, row: dict[str, Any]) -> None:
        """Write the line of a look at held-out data."""
        if self._log is not None:
            self._log.write(row)

    def _values(self) -> list[tuple[float, float, dict[str, float]]]:
        """Loss, norm and terms of each pending step, added over processes."""
        if self._accelerator.num_processes == 1:
            # all that waits is read at once: each reading waits for the device
            every = [value for step in self._pending for value in (step.loss, step.norm, *step.terms.values())]
            read = iter(_numbers(every))
            return [(next(read), next(read), {name: next(read) for name in step.terms}) for step in self._pending]
        if not self._pending:
            return []
        # a term may be missing where a process's share has nothing that it speaks of
        mine = [list(dict.fromkeys(name for step in self._pending for name in step.terms))]
        names = list(dict.fromkeys(name for other in gather_object(mine) for name in other))
        zero = torch.zeros((), device=self._accelerator.device)
        asked = zero + float(self._asked())
        parts = [
            torch.stack([asked, step.loss, step.norm, *(step.terms.get(name, zero) for name in names)]).float()
            for step in self._pending
        ]
        summed = self._accelerator.reduce(torch.stack(parts), reduction="sum").tolist()
        self._anyone_asked = summed[0][0] > 0
        return [(row[1], row[2], dict(zip(names, row[3:], strict=True))) for row in summed]


def _numbers(values: list[Tensor]) -> list[float]:
    """Scalars as numbers, none of them a negative zero."""
    if values and values[0].device.type == "cuda":
        return together(values)
    return [float(value) + 0.0 for value in values]


def together(values: list[Tensor]) -> list[float]:
    """The same in one reading of the device."""
    stacked = torch.stack([value.to(values[0].device, torch.float64) for value in values])
    found: list[float] = (stacked + 0.0).tolist()
    return found


def _note(loss: float, terms: dict[str, float]) -> str:
    if len(terms) < 2:
        return f"loss {loss:.3f}"
    return f"loss {loss:.3f}: " + ", ".join(f"{name} {value:.3f}" for name, value in terms.items())
