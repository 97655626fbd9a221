"""Tables whose rows are made when they are asked for, so that a probe can read more examples than fit into memory.

A tensor is such a table. One that would be larger than `HELD_BYTES` is not made at all: its rows are read a block at a
time, a fit reads as many as `HELD_BYTES` hold, and scores are worked out block by block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

HELD_BYTES = 1 << 30  # features and targets that one fit of a probe holds: 20,000 questions of four candidates at 768
BLOCK_BYTES = 1 << 28  # of which a block is scored at once


class Rows(Protocol):
    """A table [n, ...] that is read by rows; tensors are tables, too."""

    @property
    def shape(self) -> Sequence[int]:
        """(n, ...)."""

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """The rows `rows` [m] as a tensor [m, ...]."""


class RowsRead:
    """A float32 table whose rows a function makes, a few at a time.

    Args:
        count: n.
        read: from rows [m] to their values [m, ...]; what it gives for a row must not depend on the others.
    """

    def __init__(self, count: int, read: Callable[[Tensor], Tensor]) -> None:
        self._read = read
        first = read(torch.zeros(min(1, count), dtype=torch.long))
        self.shape: tuple[int, ...] = (count, *first.shape[1:])
        self._block = block_of(4 * row_bytes(self))  # making them takes some times their size

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """The rows `rows` [m] as a tensor [m, ...]."""
        found = torch.empty(len(rows), *self.shape[1:])
        for start in range(0, len(rows), self._block):
            found[start : start + self._block] = self._read(rows[start : start + self._block])
        return found


class RowsOf:
    """Some rows of another table, which stay as they are kept there until they are read.

    Args:
        table: the whole.
        rows: [m] of them.
    """

    def __init__(self, table: Rows, rows: Tensor) -> None:
        self._table, self._rows = table, rows
        self.shape = (len(rows), *table.shape[1:])

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """The rows `rows` [k] of the m as a tensor [k, ...]."""
        return self._table[self._rows[rows]]


def table_of(count: int, read: Callable[[Tensor], Tensor]) -> Rows:
    """The table of what `read` makes of rows 0 to count - 1: a tensor where that takes at most `HELD_BYTES`."""
    lazy = RowsRead(count, read)
    return read(torch.arange(count)) if count * row_bytes(lazy) <= HELD_BYTES else lazy


def row_bytes(*tables: Rows) -> int:
    """Bytes of a row of all tables together, as float32."""
    return sum(4 * math.prod(table.shape[1:]) for table in tables)


def held_of(each: int) -> int:
    """How many rows of so many bytes one fit holds."""
    return max(1, HELD_BYTES // max(1, each))


def block_of(each: int) -> int:
    """How many rows of so many bytes are worked on at once."""
    return max(1, BLOCK_BYTES // max(1, each))


def blocks(*tables: Rows) -> Iterator[Tensor]:
    """Rows of the tables in turn, as many at a time as take `BLOCK_BYTES` together; small tables are one block."""
    count, each = tables[0].shape[0], block_of(row_bytes(*tables))
    for start in range(0, count, each):
        yield torch.arange(start, min(start + each, count))
