"""The learning rate as a pure function of the step, so that a checkpoint needs no scheduler state."""

from __future__ import annotations


def linear_rate(step: int, steps: int, warmup: float) -> float:
    """Factor on the peak rate for step `step` (counted from 0) of `steps`: up over the warm-up, then down to 0.

    `warmup` is the share of the steps spent rising. First and last step are above 0, so that none is lost.
    """
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    return (steps - step) / (steps - rising)
