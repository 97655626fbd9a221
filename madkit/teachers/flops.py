"""Floating point operations of a forward pass, counted on torch's meta device: nothing is computed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode


def gflops(call: Callable[[], object]) -> float | None:
    """Return the billions of floating point operations of a call: one decimal, three below one.

    A multiplication with addition counts two.

    None where a model looks at values on its way, which the meta device does not have.
    """
    try:
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            call()
    except (RuntimeError, NotImplementedError):
        return None
    total: int = counter.get_total_flops()
    return round(total / 1e9, 1 if total >= 1e9 else 3)
