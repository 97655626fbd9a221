"""Draws that are the same on every machine and for every version: a thin face on numpy's frozen legacy generator.

`numpy.random.RandomState` is the one generator whose streams numpy has promised never to change (NEP 19); Python's own
`random` promises that only for `random()`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from madkit.core.seeds import derive_seed

T = TypeVar("T")


class Draw:
    """A stream of random choices that is a pure function of the parts it is made from."""

    def __init__(self, *parts: object) -> None:
        self.state = np.random.RandomState(derive_seed("mini", *parts) % 2**32)

    def below(self, n: int) -> int:
        """A uniform integer in [0, n)."""
        return int(self.state.randint(n))

    def between(self, low: int, high: int) -> int:
        """A uniform integer in [low, high], both ends included."""
        return low + int(self.state.randint(high - low + 1))

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return float(self.state.random_sample()) < probability

    def choice(self, items: Sequence[T]) -> T:
        """One item, uniformly."""
        return items[int(self.state.randint(len(items)))]

    def sample(self, items: Sequence[T], n: int) -> list[T]:
        """`n` different items, in random order."""
        return [items[int(i)] for i in self.state.permutation(len(items))[:n]]

    def weighted(self, items: Sequence[T], weights: Sequence[float]) -> T:
        """One item, with the given weights (they need not sum to one)."""
        edges = np.cumsum(np.asarray(weights, dtype=np.float64))
        return items[int(np.searchsorted(edges, float(self.state.random_sample()) * edges[-1], side="right"))]
