"""The weight lambda of the distillation term over training."""

from __future__ import annotations

import math

from madkit.mad.config import Schedule


def schedule_factor(schedule: Schedule, progress: float | None, *, warmup: float = 0.0, final: float = 0.0) -> float:
    """Factor in [0, 1] by which lambda is multiplied.

    Args:
        schedule: ``constant``, or ``linear`` or ``cosine`` decay from 1 at the end of the warm-up to ``final``.
        progress: share of training that is done, in [0, 1] (values outside are clipped); None gives 1.
        warmup: share of training over which the factor rises linearly from 0 to 1.
        final: the factor at progress 1, for the two decays.
    """
    if progress is None:
        return 1.0
    progress = min(max(progress, 0.0), 1.0)
    if progress < warmup:
        return progress / warmup
    if schedule == "constant":
        return 1.0
    done = (progress - warmup) / (1.0 - warmup) if warmup < 1.0 else 0.0
    left = 1.0 - done if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return final + (1.0 - final) * left
