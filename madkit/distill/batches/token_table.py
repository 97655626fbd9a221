"""The tokens of many sequences in flat columns, put together a few thousand sequences at a time.

VCR in full is 1.7 million sequences. As arrays of their own they would take ten times what the columns take, in every
process of a training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from madkit.students.inputs import EncodedSequence

Integers = NDArray[np.int64]
_AT_ONCE = 4096  # sequences


@dataclass(frozen=True, slots=True)
class TokenTable:
    """n sequences of N tokens in all.

    Attributes:
        ids, types: [N] of every token.
        tags: [N] region that a token names, -1 none.
        rows: [N] place of a token's (text, span) among `keys`, -1 for special tokens.
        starts: [n + 1] first token of each sequence, and N.
        segments: [n, G] rows of its texts, -1 none.
        ends: [n, G] position of the special token that closes each text, -1 none.
        keys: [u] the distinct (row of the text, start, end) packed into one number each, in ascending order.
        texts: the distinct texts, in the order in which they came.
        shortened: tokens that were cut off.
    """

    ids: Tensor
    types: Tensor
    tags: Tensor
    rows: Tensor
    starts: Tensor
    segments: Tensor
    ends: Tensor
    keys: Integers
    texts: list[str]
    shortened: int

    @property
    def pairs(self) -> Integers:
        """[u, 3] the distinct (row of the text, start, end), in ascending order; made anew each time."""
        return np.stack([self.keys >> 32, (self.keys >> 16) & 0xFFFF, self.keys & 0xFFFF], axis=1)


class TokenTableMaker:
    """Takes sequences one after another."""

    def __init__(self) -> None:
        self._texts: dict[str, int] = {}
        self._shortened = 0
        self._waiting: list[tuple[EncodedSequence, Integers, list[int]]] = []
        self._ids: list[NDArray[np.int32]] = []
        self._types: list[NDArray[np.int16]] = []
        self._tags: list[NDArray[np.int16]] = []
        self._keys: list[tuple[Integers, NDArray[np.int32]]] = []  # distinct ones, and which of them each token has
        self._lengths: list[Integers] = []
        self._segments: list[Integers] = []
        self._ends: list[Integers] = []

    def add(self, sequence: EncodedSequence, links: Integers) -> None:
        """Take a sequence; `links` [boxes, at least one] is the region of each box that its tags may name, -1 none."""
        rows = [self._texts.setdefault(text, len(self._texts)) for text in sequence.texts]
        self._waiting.append((sequence, links, rows))
        self._shortened += sequence.shortened
        if len(self._waiting) == _AT_ONCE:
            self._put()

    def _put(self) -> None:
        """Put what is waiting into the columns."""
        if not self._waiting:
            return
        sequences, links, rows = zip(*self._waiting, strict=True)
        self._waiting.clear()
        lengths = np.asarray([len(sequence.ids) for sequence in sequences], dtype=np.int64)
        self._lengths.append(lengths)
        self._ids.append(np.concatenate([sequence.ids for sequence in sequences]).astype(np.int32))
        self._types.append(np.concatenate([sequence.types for sequence in sequences]).astype(np.int16))
        boxes = np.concatenate([sequence.tag_box for sequence in sequences])
        named = _of_each(links, boxes, lengths)
        self._tags.append(np.where(boxes >= 0, named, -1).astype(np.int16))
        segment = np.concatenate([sequence.segment for sequence in sequences])
        text = _of_each([np.asarray(row, dtype=np.int64) for row in rows], segment, lengths)
        keys = _keys(text, segment, np.concatenate([sequence.spans for sequence in sequences]))
        distinct, where = np.unique(keys, return_inverse=True)
        self._keys.append((distinct, where.reshape(-1).astype(np.int32)))
        self._segments.append(_padded(rows))
        self._ends.append(_padded([sequence.ends for sequence in sequences]))

    def made(self) -> TokenTable:
        """The columns of all sequences that were added; the maker is empty afterwards."""
        self._put()
        distinct = np.unique(np.concatenate([keys for keys, _ in self._keys]))
        none = int(distinct[0] < 0)
        rows: list[NDArray[np.int32]] = []
        for place, (keys, where) in enumerate(self._keys):
            rows.append((np.searchsorted(distinct, keys) - none).astype(np.int32)[where])
            self._keys[place] = (keys[:0], where[:0])
        lengths = np.concatenate(self._lengths)
        return TokenTable(
            ids=_joined(self._ids),
            types=_joined(self._types),
            tags=_joined(self._tags),
            rows=_joined(rows),
            starts=torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)),
            segments=_joined(_as_wide(self._segments)),
            ends=_joined(_as_wide(self._ends)),
            keys=distinct[none:],
            texts=list(self._texts),
            shortened=self._shortened,
        )


def _of_each(tables: Sequence[Integers], places: Integers, lengths: Integers) -> Integers:
    """[N]: what each token's place says in its own sequence's table; something where the place is negative."""
    sizes = np.asarray([len(table) for table in tables], dtype=np.int64)
    first = np.repeat(np.cumsum(sizes) - sizes, lengths)
    found: Integers = np.concatenate(tables)[first + np.maximum(places, 0)]
    return found


def _keys(texts: Integers, segment: Integers, spans: Integers) -> Integers:
    """(row of the text, start, end) packed into one number per token; -1 for special tokens."""
    packed = (texts << 32) | (np.clip(spans[:, 0], 0, 0xFFFF) << 16)
    packed |= np.clip(spans[:, 1], 0, 0xFFFF)
    return np.where(segment >= 0, packed, -1)


def _padded(rows: Sequence[Sequence[int] | Integers]) -> Integers:
    """Lists of numbers as one array, -1 where a list has ended."""
    table = np.full((len(rows), max(map(len, rows))), -1, dtype=np.int64)
    for place, row in enumerate(rows):
        table[place, : len(row)] = row
    return table


def _as_wide(tables: Sequence[Integers]) -> list[Integers]:
    """Arrays of rows with as many columns as the widest, -1 where one has none."""
    width = max(table.shape[1] for table in tables)
    return [np.pad(table, ((0, 0), (0, width - table.shape[1])), constant_values=-1) for table in tables]


def _joined(parts: list[NDArray[np.int64]] | list[NDArray[np.int32]] | list[NDArray[np.int16]]) -> Tensor:
    """The pieces of a column as one; the list is emptied."""
    whole = torch.from_numpy(np.concatenate(parts))
    parts.clear()
    return whole
