"""The learning rate as a pure function of the step, so that a checkpoint needs no scheduler state."""

from __future__ import annotations

import math
from collections.abc import Sequence

from madkit.distill.settings.config import RateShape


def rate_factor(
    step: int,
    steps: int,
    warmup: float,
    *,
    shape: RateShape = "linear",
    milestones: Sequence[float] = (),
    drop: float = 0.1,
) -> float:
    """Factor on the peak rate for step `step` (counted from 0) of `steps`: up over the warm-up, then as `shape` says.

    Args:
        step: which step.
        steps: length of training.
        warmup: share of the steps spent rising. The first step is above 0, so that none is lost.
        shape: "linear" down to 0 (the last step is above it), "cosine" likewise, "constant", or "steps".
        milestones: "steps" only: shares of training at which the rate falls (VL-BERT's epochs 14 and 18 of 20).
        drop: "steps" only: what it is multiplied with there.
    """
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    left = (steps - step) / (steps - rising)
    if shape == "constant":
        return 1.0
    if shape == "cosine":
        return 0.5 * (1 - math.cos(math.pi * left))
    if shape == "steps":
        return float(drop ** sum(step >= share * steps for share in milestones))
    return left
