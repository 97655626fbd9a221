"""Which examples a step sees: a pure function of (seed, number of samples consumed).

Neither the random state of torch nor the number of processes enters, so a run that was killed goes on with the
batches it would have had, also on another world size. A batch here is the *global* batch; `rank_slice` gives each
process its share of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

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

    Texts and regions are padded apart: a long text with few regions beside a short one with many is mostly padding,
    though both sums are equal. So where `regions` tells how many of `lengths` are regions, a bucket is cut into strips
    of similar texts, each strip is sorted by regions, up and down in turn, and a batch's size is its longest text and
    most regions together. `piece` tokens are the forward pass that the strips are made for, the budget by default.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        sequences: Sequence[int],
        token_budget: int,
        bucket: int,
        *parts: object,
        regions: Sequence[int] | None = None,
        piece: int | None = None,
    ) -> None:
        if not len(lengths):
            raise ValueError("an order needs at least one example")
        self.n = len(lengths)
        self._lengths = np.asarray(lengths, dtype=np.int64)
        self._sequences = np.asarray(sequences, dtype=np.int64)
        self._regions = np.zeros(self.n, dtype=np.int64) if regions is None else np.asarray(regions, dtype=np.int64)
        self._texts = self._lengths - self._regions
        self._piece = token_budget if piece is None else min(piece, token_budget)
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
            bucket = self._sorted(order[start : start + self._bucket])
            begin, rows, text, most = 0, 0, 0, 0
            for place, index in enumerate(bucket):
                rows += int(self._sequences[index])
                text, most = max(text, int(self._texts[index])), max(most, int(self._regions[index]))
                if place > begin and rows * (text + most) > self._budget:
                    batches.append(bucket[begin:place])
                    begin, rows = place, int(self._sequences[index])
                    text, most = int(self._texts[index]), int(self._regions[index])
            batches.append(bucket[begin:])
        shuffled = permutation(len(batches), *self._parts, epoch, "batches")
        self._batches = [batches[int(place)] for place in shuffled]
        sizes = np.asarray([len(batch) for batch in self._batches], dtype=np.int64)
        self._starts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes)[:-1]])
        self._epoch = epoch

    def _sorted(self, bucket: Indices) -> Indices:
        """A bucket by length, neighbours alike in text and in regions."""
        bucket = bucket[np.argsort(self._texts[bucket], kind="stable")]
        spread = float(self._regions[bucket].std())
        if not spread:
            return bucket
        pieces = float((self._lengths[bucket] * self._sequences[bucket]).sum()) / self._piece
        # cells of one piece each, as many strips for as many rows of them as the two lengths spread
        strips = round((pieces * float(self._texts[bucket].std()) / spread) ** 0.5)
        sorted_: list[Indices] = []
        for number, strip in enumerate(np.array_split(bucket, min(max(1, strips), len(bucket)))):
            ascending = strip[np.argsort(self._regions[strip], kind="stable")]
            sorted_.append(ascending[::-1] if number % 2 else ascending)
        return np.concatenate(sorted_)

    def at(self, consumed: int) -> Indices:
        """The batch that begins after `consumed` samples. Raises ValueError where no batch begins there."""
        epoch, offset = divmod(consumed, self.n)
        self._load_epoch(epoch)
        place = int(np.searchsorted(self._starts, offset))
        if place == len(self._starts) or int(self._starts[place]) != offset:
            raise ValueError(f"no batch begins after {consumed} samples: the data or the batch settings have changed")
        return self._batches[place]


class Order(Protocol):
    """Any row of batches."""

    def at(self, consumed: int) -> Indices:
        """The batch that begins after `consumed` samples: indices into a set."""


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
