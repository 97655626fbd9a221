"""What a training loop is told, what it is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from madkit.distill.loop.optimizer import OptimizerSettings
from madkit.distill.loop.schedule import rate_factor
from madkit.distill.settings.config import DivergenceConfig, RateShape


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """How long, how fast and how often; see `config.OptimConfig` for the meaning of each."""

    steps: int
    learning_rate: float
    warmup: float
    optimizer: OptimizerSettings
    clip: float
    micro_tokens: int
    seed: int
    checkpoint_every: int
    checkpoint_keep: int
    look_every: int = 0
    keep: Literal["last", "best"] = "last"
    patience: int = 0
    fresh_rate: float = 1.0
    schedule: RateShape = "linear"
    milestones: tuple[float, ...] = ()
    ema: float | None = None
    divergence: DivergenceConfig | None = None

    def rate(self, step: int) -> float:
        """Factor on the learning rate in a step counted from 0."""
        return rate_factor(step, self.steps, self.warmup, shape=self.schedule, milestones=self.milestones)


@dataclass(frozen=True, slots=True)
class StepLoss:
    """What the trained module returns for a micro-batch: a mean over its examples, and its parts for the journal."""

    loss: Tensor
    terms: dict[str, Tensor]


Attack = Callable[[Any], Iterator[tuple[StepLoss, bool]]]
"""From a micro-batch to its passes: each pass's loss, and whether more of them follow."""


@dataclass(frozen=True, slots=True)
class Look:
    """One look at held-out data: `score` (higher is better) decides, `values` go to the journal."""

    score: float
    values: dict[str, Any]


@dataclass(slots=True)
class LoopResult:
    """How a loop ended. `step` is the last one done, `kept_step` the one whose weights the module holds."""

    step: int
    kept_step: int
    looks: list[dict[str, Any]] = field(default_factory=list)
    resumed_from: int = 0
    stopped_early: bool = False
