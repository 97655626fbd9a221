"""Which examples a step sees: a pure function of (seed, number of samples consumed).

Neither the random state of torch nor the number of processes enters, so a run that was killed goes on with the
batches it would have had, also on another world size. A batch here is the *global* batch; `rank_slice` gives each
process its share of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from madkit.core.seeds import permutation

Indices = NDArray[np.int64]


class PlainOrder:
    """Batches of `batch_size` examples from an endless row of shuffled epochs.

    Every epoch is its own permutation, and a batch may take its last examples from the next epoch: all batches are
    of one size, and step `k` begins at sample ``k * batch_size``. A set smaller than a batch makes batches of its size.
    """

    def __init__(self, n: int, batch_size: int, *parts: object) -> None:
        if n < 1:
            raise ValueError("an order needs at least one example")
        self.n = n
        self.batch_size = min(batch_size, n)
        self._parts = parts
        self._epoch = -1
        self._permutation: Indices = np.zeros(0, dtype=np.int64)

    def _epoch_order(self, epoch: int) -> Indices:
        if epoch != self._epoch:
            self._permutation = np.asarray(permutation(self.n, *self._parts, epoch), dtype=np.int64)
            self._epoch = epoch
        return self._permutation

    def at(self, consumed: int) -> Indices:
        """The batch that begins after `consumed` samples: [batch_size] indices into the set."""
        found: list[Indices] = []
        position, missing = consumed, self.batch_size
        while missing:
            epoch, offset = divmod(position, self.n)
            piece = self._epoch_order(epoch)[offset : offset + missing]
            found.append(piece)
            position += len(piece)
            missing -= len(piece)
        return np.concatenate(found)


class BucketOrder:
    """Batches of at most `token_budget` padded tokens, from buckets that are sorted by length.

    An epoch is shuffled and cut into buckets of `bucket` examples; each bucket is sorted by length and cut into
    batches whose padded size (examples x sequences x longest) keeps to the budget; the batches of the whole epoch are
    shuffled. `lengths` are tokens of one sequence, `sequences` the number of sequences of an example. One example that
    exceeds the budget alone is a batch of its own.
    """

    def __init__(
        self, lengths: Sequence[int], sequences: Sequence[int], token_budget: int, bucket: int, *parts: object
    ) -> None:
        if not len(lengths):
            raise ValueError("an order needs at least one example")
        self.n = len(lengths)
        self._lengths = np.asarray(lengths, dtype=np.int64)
        self._sequences = np.asarray(sequences, dtype=np.int64)
        self._budget = token_budget
        self._bucket = bucket
        self._parts = parts
        self._epoch = -1
        self._batches: list[Indices] = []
        self._starts: Indices = np.zeros(0, dtype=np.int64)

    def _load_epoch(self, epoch: int) -> None:
        if epoch == self._epoch:
            return
        order = np.asarray(permutation(self.n, *self._parts, epoch), dtype=np.int64)
        batches: list[Indices] = []
        for start in range(0, self.n, self._bucket):
            bucket = order[start : start + self._bucket]
            bucket = bucket[np.argsort(self._lengths[bucket], kind="stable")]
            begin, rows = 0, 0
            for place, index in enumerate(bucket):
                # sorted: the candidate for the end of the batch is also its longest
                rows += int(self._sequences[index])
                if place > begin and rows * int(self._lengths[index]) > self._budget:
                    batches.append(bucket[begin:place])
                    begin, rows = place, int(self._sequences[index])
            batches.append(bucket[begin:])
        shuffled = permutation(len(batches), *self._parts, epoch, "batches")
        self._batches = [batches[int(place)] for place in shuffled]
        sizes = np.asarray([len(batch) for batch in self._batches], dtype=np.int64)
        self._starts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes)[:-1]])
        self._epoch = epoch

    def at(self, consumed: int) -> Indices:
        """The batch that begins after `consumed` samples. Raises ValueError where no batch begins there."""
        epoch, offset = divmod(consumed, self.n)
        self._load_epoch(epoch)
        place = int(np.searchsorted(self._starts, offset))
        if place == len(self._starts) or int(self._starts[place]) != offset:
            raise ValueError(f"no batch begins after {consumed} samples: the data or the batch settings have changed")
        return self._batches[place]


Order = PlainOrder | BucketOrder


def rank_slice(batch: Indices, rank: int, world: int) -> Indices:
    """The share of process `rank` of `world`: every world-th example. Shares are disjoint and cover the batch."""
    return batch[rank::world]


def micro_batches(batch: Indices, lengths: Indices, sequences: Indices, tokens: int) -> list[Indices]:
    """`batch` cut into pieces of at most `tokens` padded tokens, kept in order, each with one example or more."""
    pieces: list[Indices] = []
    begin, rows, longest = 0, 0, 0
    for place, index in enumerate(batch):
        rows += int(sequences[index])
        longest = max(longest, int(lengths[index]))
        if place > begin and rows * longest > tokens:
            pieces.append(batch[begin:place])
            begin, rows, longest = place, int(sequences[index]), int(lengths[index])
    if len(batch):
        pieces.append(batch[begin:])
    return pieces
