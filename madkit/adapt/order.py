"""Which items a step sees: a pure function of (seed, step), so that a killed run goes on as it would have."""

from __future__ import annotations

from madkit.core.seeds import permutation


class BatchOrder:
    """Batches of `batch_size` items from an endless row of shuffled epochs; no batch holds an item twice.

    Each epoch is a permutation of its own. What is left at its end is too small for a batch and is left out, so that
    every batch is a fair choice of contrasts; a set smaller than a batch makes batches of its size.
    """

    def __init__(self, n: int, batch_size: int, seed: int) -> None:
        if n < 2:
            raise ValueError("a contrast needs at least two items")
        self.batch_size = min(batch_size, n)
        self.per_epoch = n // self.batch_size
        self._n = n
        self._seed = seed
        self._epoch = -1
        self._order: list[int] = []

    def at(self, step: int) -> list[int]:
        """The items of `step`, counted from 0."""
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._order = permutation(self._n, "adapt", self._seed, epoch).tolist()
            self._epoch = epoch
        return self._order[place * self.batch_size : (place + 1) * self.batch_size]
