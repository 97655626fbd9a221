"""Several processes of one job that fill one store: who computes where, and which shards are whose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch

from madkit.core.job import Job, told_to_use_cpu
from madkit.core.launcher import local_rank
from madkit.extract.options import resolve_device

K = TypeVar("K")


class Processes(Job):
    """This process among those that extract; the first one plans, completes and reports."""

    def __init__(self, *, alone: bool = False) -> None:
        super().__init__("extract", alone=alone)

    @classmethod
    def alone(cls) -> Processes:
        """Return the only process of a job, whatever has launched it."""
        return cls(alone=True)

    def device(self, name: str) -> tuple[str, str]:
        """Return the torch device of this process for ``--device`` and the reason, as :func:`resolve_device`."""
        if name == "auto" and told_to_use_cpu():
            return "cpu", "as Accelerate was told"
        device, reason = resolve_device(name)
        if self.count > 1 and device == "cuda":
            number = local_rank() % torch.cuda.device_count()
            torch.cuda.set_device(number)
            return f"cuda:{number}", f"{reason}, one for each process"
        return device, reason

    def deal(self, units: Mapping[K, Sequence[int]]) -> dict[K, list[int]]:
        """Return this process's share of the units of some parts: every n-th, the parts one after the other.

        Units hold equally many items, and processes of a job run on devices of one kind, so that dealing in advance
        costs a unit of waiting at most, needs nobody to ask, and lets every process decode ahead across its units.
        """
        share: dict[K, list[int]] = {}
        dealt = 0
        for part, numbers in units.items():
            share[part] = list(numbers[(self.number - dealt) % self.count :: self.count])
            dealt += len(numbers)
        return share
