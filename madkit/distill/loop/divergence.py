"""Telling a loss that has run away from one that is merely noisy.

A run has diverged when for `steps` steps in a row its loss was above `factor` times the running median *and* above
where training began: one that falls from 1.4 to 0.01 and jumps back to 0.2 for a batch or two is an ordinary few-shot
run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import Any

from madkit.core.errors import RunError
from madkit.distill.settings.config import DivergenceConfig

_BEGINNING = 10  # steps whose median says where training began


class DivergenceWatch:
    """Sees every loss of a run in order. Without settings, or with 0 steps, it watches nothing."""

    def __init__(self, settings: DivergenceConfig | None) -> None:
        self.settings = settings if settings is not None and settings.steps else None
        self._recent: deque[float] = deque(maxlen=1 if self.settings is None else self.settings.window)
        self._first: list[float] = []
        self._high = 0
        self._began: tuple[int, list[str]] = (0, [])

    def see(self, step: int, loss: float, ids: Sequence[str]) -> None:
        """Note the loss of a step. Raises RunError, which names the samples of the step where the loss ran away."""
        settings = self.settings
        if settings is None:
            return
        if len(self._first) < _BEGINNING:
            self._first.append(loss)
            self._recent.append(loss)
            return
        usual = median(self._recent)
        if loss <= max(settings.factor * usual, median(self._first)):
            self._high = 0
            self._recent.append(loss)  # what is too high does not become usual
            return
        if not self._high:
            self._began = (step, list(ids))
        self._high += 1
        if self._high >= settings.steps:
            first, samples = self._began
            raise RunError(
                f"The loss has diverged: {loss:.4g} in step {step} and since step {first} above {settings.factor:g} "
                f"times its running median of {usual:.4g}; the samples of step {first} are {shown_ids(samples)}.",
                hint="lower the rate: --set optim.learning_rate=...; to go on all the same: --set divergence.steps=0",
            )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        step, ids = self._began
        return {"recent": list(self._recent), "first": self._first, "high": self._high, "step": step, "ids": ids}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self._recent.clear()
        self._recent.extend(state["recent"])
        self._first = list(state["first"])
        self._high = int(state["high"])
        self._began = (int(state["step"]), list(state["ids"]))


def no_number(what: str, ids: Sequence[str]) -> RunError:
    """The error where `what` a sentence says is infinite or not a number, after a step with these samples."""
    return RunError(
        f"{what}; the samples of that step are {shown_ids(ids)}.",
        hint="look at those samples, or lower the rate: --set optim.learning_rate=...",
    )


def shown_ids(ids: Sequence[str]) -> str:
    """The first ids of a batch in a sentence, and how many more there are."""
    return ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
