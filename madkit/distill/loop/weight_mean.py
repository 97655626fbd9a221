"""The mean of the raw confidence weights over a *global* batch, which divides them all (docs/method.md).

A step's batch may be cut into micro-batches and shared by processes. Where the global batch fits one forward pass, the
sums of the processes are added before anything is divided, and the mean is that of this very batch. Where it does not,
the student's confidence in later micro-batches is unknown while earlier ones are differentiated, and asking for it
first would cost one more forward pass of everything. Then the divisor is the running mean of the global batches before
this one (for a run's first step: of this one, asked for without gradient). So all examples of a step are divided by one
number in any case, whatever micro-batch and process they fall into, and the number is the same on every world size.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from madkit.mad.criterion import MADCriterion

MOMENTUM = 0.9
_LEAST = 1e-3  # of the largest raw weight: a first batch that the teacher knows nothing of must not blow up the second


def weight_means(module: nn.Module, accelerator: Accelerator) -> list[WeightMean]:
    """One for each criterion in `module` that weighs examples by confidence, which asks it from now on."""
    found: list[WeightMean] = []
    for part in module.modules():
        if isinstance(part, MADCriterion) and part.config.weighs:
            mean = WeightMean(accelerator, part.config.w_max)
            part.whole_batch = mean
            found.append(mean)
    return found


class WeightMean:
    """Gives each micro-batch the divisor of its weights. Of one run; the loop opens and closes its steps.

    Args:
        accelerator: adds over processes.
        largest: the largest raw weight (`MADConfig.w_max`).
    """

    def __init__(self, accelerator: Accelerator, largest: float) -> None:
        self._accelerator = accelerator
        self._floor = _LEAST * largest
        self._running: Tensor | None = None  # [2] averaged sum and count
        self._seen = self._zero()
        self._whole = True
        self._silent = False

    def _zero(self) -> Tensor:
        return torch.zeros(2, device=self._accelerator.device)

    @property
    def known(self) -> bool:
        """Whether an earlier step has left a running mean."""
        return self._running is not None

    def open(self, *, whole: bool) -> None:
        """Begin a step. `whole`: its global batch fits one forward pass."""
        self._whole, self._seen = whole, self._zero()

    def silence(self, silent: bool) -> None:
        """Whether the next micro-batch stands in for none: a process without a share computes one that counts 0."""
        self._silent = silent

    def __call__(self, total: Tensor, count: Tensor) -> Tensor | None:
        """The divisor for a part of a batch with raw weights of this sum and number; None: the part's own mean."""
        part = torch.stack([total, count]).to(self._seen)
        if self._silent:
            part = torch.zeros_like(part)
        if not self._whole or self._accelerator.num_processes == 1:
            self._seen += part
        if not self._whole:
            return None if self._running is None else (self._running[0] / self._running[1]).clamp_min(self._floor)
        if self._accelerator.num_processes == 1:
            return None
        summed = self._sum(part)
        self._seen += summed
        return summed[0] / summed[1].clamp_min(1)

    def close(self) -> None:
        """End a step: its mean goes into the running one."""
        seen = self._seen if self._whole else self._sum(self._seen)
        old = self._running
        # sum and count are averaged apart, so that a batch counts by its size
        mixed = seen if old is None else torch.lerp(seen, old, MOMENTUM)
        self._running = torch.where(mixed[1] > 0, mixed, 1.0)

    def _sum(self, value: Tensor) -> Tensor:
        if self._accelerator.num_processes == 1:
            return value
        summed: Tensor = self._accelerator.reduce(value, reduction="sum")
        return summed

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"running": self._running}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        running = state["running"]
        self._running = None if running is None else running.to(self._accelerator.device)
