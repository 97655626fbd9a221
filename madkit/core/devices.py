"""Devices by name: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from madkit.core.errors import UsageProblem
from madkit.core.registry import suggest

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda")


def device_of(name: str) -> torch.device:
    """The device of that name; "auto" is a GPU where PyTorch can use one.

    Raises UsageProblem for one that does not exist, or is not on this machine.
    """
    import torch  # not before it is needed: this room stays light

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageProblem(
            f"There is no device named '{name}'.{suggest('cuda' if name.casefold() == 'gpu' else name, DEVICES)}",
            hint="--device auto, cpu, cuda or cuda:1",
        ) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageProblem("This machine has no GPU that PyTorch can use.", hint="--device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageProblem(
            f"This machine has {torch.cuda.device_count()} GPU(s), counted from 0.", hint="--device cuda"
        )
    return device
