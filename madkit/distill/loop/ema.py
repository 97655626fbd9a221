"""The moving average of the weights, which is often better than the last ones and never noisier.

After step t (counted from 1) ``average = d * average + (1 - d) * weights`` with ``d = min(decay, (1 + t) / (10 + t))``:
the warm-up keeps the first steps, whose weights are still far from anything, from lingering (the schedule of
TensorFlow's `ExponentialMovingAverage` with `num_updates`). Integer tensors and buffers are taken as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def decay_at(step: int, decay: float) -> float:
    """The decay of step `step`, counted from 1."""
    return min(decay, (1 + step) / (10 + step))


class WeightAverage:
    """The average of a module's trained parameters, in float32 or wider, on the parameters' device."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self._parameters = {name: value for name, value in module.named_parameters() if value.requires_grad}
        self._average = {name: self._wide(value.detach()).clone() for name, value in self._parameters.items()}

    @staticmethod
    def _wide(value: Tensor) -> Tensor:
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step `step`, counted from 1."""
        weights = [self._wide(value) for value in self._parameters.values()]
        torch._foreach_lerp_(list(self._average.values()), weights, 1.0 - decay_at(step, self.decay))

    @torch.no_grad()
    def exchange(self) -> None:
        """Put the average into the module and the module's weights here; a second call undoes it exactly."""
        for name, value in self._parameters.items():
            own = value.detach().clone()
            value.copy_(self._average[name])
            self._average[name].copy_(own)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module holds the average inside the block."""
        self.exchange()
        try:
            yield
        finally:
            self.exchange()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"decay": self.decay, "average": dict(self._average)}

    @torch.no_grad()
    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        for name, value in state["average"].items():
            self._average[name].copy_(value)
