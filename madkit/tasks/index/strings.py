"""Strings of an Arrow column straight from its buffers: a fifth of what a scalar object costs."""

from __future__ import annotations

import pyarrow as pa


def integers(column: pa.Array) -> memoryview:
    """The values of an int8, int16 or int32 column without nulls; indexing gives plain integers."""
    width = column.type.bit_width // 8
    start = column.offset * width
    data = memoryview(column.buffers()[1] or b"").cast("B")[start : start + len(column) * width]
    return data.cast("b") if width == 1 else data.cast("h") if width == 2 else data.cast("i")


def floats(column: pa.Array) -> memoryview[float]:
    """The values of a float64 column without nulls (`to_numpy` would import pandas, a third of a second)."""
    data = memoryview(column.buffers()[1] or b"").cast("B").cast("d")
    return data[column.offset : column.offset + len(column)]


def offsets(column: pa.Array) -> memoryview:
    """The offsets of a list column, one more than it has rows."""
    return integers(column.offsets)


class Strings:
    """A string column; a null reads as ""."""

    def __init__(self, column: pa.Array) -> None:
        self._count = len(column)
        first = column.offset
        _, ends, data = column.buffers()
        self._ends = memoryview(ends).cast("B").cast("i")[first : first + self._count + 1] if self._count else None
        self._data = memoryview(data or b"").cast("B")

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> str:
        ends = self._ends
        assert ends is not None
        return str(self._data[ends[row] : ends[row + 1]], "utf-8")


class Words:
    """A column of repeated strings, of which few are distinct: each is made once."""

    def __init__(self, column: pa.Array) -> None:
        self._rows = integers(column.indices)
        self._words = KeptStrings(column.dictionary)

    def get(self, row: int) -> str:
        """The string of a row."""
        return self._words[self._rows[row]]


class KeptStrings(dict[int, str]):
    """A dictionary's strings by their number, each made when it is first asked for and then kept."""

    def __init__(self, column: pa.Array) -> None:
        super().__init__()
        self._strings = Strings(column)

    def __missing__(self, place: int) -> str:
        text = self[place] = self._strings[place]
        return text


class TextLists:
    """A column of lists of strings that stand in a dictionary; `keep` holds the strings once they were made."""

    def __init__(self, column: pa.Array, *, keep: bool = False) -> None:
        self._ends = offsets(column)
        self._rows = integers(column.values.indices)
        dictionary = column.values.dictionary
        self._texts: Strings | KeptStrings = KeptStrings(dictionary) if keep else Strings(dictionary)

    def start(self, row: int) -> int:
        """Where a row's list begins in the values of the column."""
        return self._ends[row]

    def get(self, row: int) -> list[str]:
        """The list of a row."""
        texts = self._texts
        return [texts[place] for place in self._rows[self._ends[row] : self._ends[row + 1]]]
