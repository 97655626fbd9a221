"""Who answers a suite: the students themselves, on a device and in a precision."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from madkit.core.launcher import local_rank, world_size

if TYPE_CHECKING:
    import torch

    from madkit.regions import RegionReader
    from madkit.tasks.example import Example
    from madkit.tasks.spec import TaskSpec


class StudentScorer:
    """Students of run folders as a `cells.Scorer`. torch is imported when there is something to answer.

    Args:
        device: "auto" for the GPU where there is one, else a torch device. Of several processes on one machine each
            takes a GPU of its own where no number is named.
        precision: "fp32"; "bf16" (autocast; weights stay as they are); "auto": bf16 on a CUDA device that computes in
            it, fp32 anywhere else.
    """

    def __init__(self, device: str = "auto", precision: str = "auto") -> None:
        self._device = device
        self._precision = precision

    @property
    def wanted(self) -> str | None:
        """The precision that answers on disk must have; None where any will do."""
        return None if self._precision == "auto" else self._precision

    @cached_property
    def device(self) -> torch.device:
        """Where students run. Raises UsageProblem for a device that is none, or is not on this machine."""
        import torch

        from madkit.core.devices import device_of

        device = device_of(self._device)
        if device.type == "cuda" and ":" not in self._device and world_size() > 1:
            device = torch.device("cuda", local_rank() % torch.cuda.device_count())
        return device

    @cached_property
    def precision(self) -> str:
        """What answers are computed in: "fp32" or "bf16"."""
        from madkit.evaluate.predict import in_bf16

        return "bf16" if in_bf16(self._precision, self.device) else "fp32"

    def check(self) -> None:
        """Raise UsageProblem for a device or precision that cannot be had, before anything is done."""
        if (self._device, self._precision) != ("auto", "auto"):
            _ = self.precision

    def __call__(
        self, student: Path, examples: Sequence[Example], regions: RegionReader | None, spec: TaskSpec
    ) -> list[dict[str, Any]]:
        """Answer examples with the student of a folder (see `predict.predict`)."""
        from madkit.evaluate.predict import predict

        return predict(student, examples, regions, spec=spec, device=str(self.device), precision=self.precision)
