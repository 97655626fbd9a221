"""The raw lines behind an imported VCR split: rewriting needs the token lists, which an index does not keep.

An imported data set names the owner's files in its manifest. They are read again here, only for the questions that
the split has (a development split is cut from train, and questions whose images are missing may be left out).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from madkit.core import archives
from madkit.core.errors import DataError, NotFoundError
from madkit.tasks.data import TaskData
from madkit.tasks.example import Example
from madkit.tasks.formats.source_lines import Place, Row, iter_json_lines
from madkit.tasks.formats.vcr import examples_of_row
from madkit.tasks.formats.vcr_metadata import Metadata

PlacedRow = tuple[Place, Row]


def raw_rows(data: TaskData, split: str, *, wanted: Collection[str] | None = None) -> Iterator[PlacedRow]:
    """The lines of a split as they stand in the owner's file, with their places, in the file's order.

    `wanted`: the annot_ids to yield, where not all of the split's are meant.

    Raises:
        NotFoundError: the data has no such split, or the owner's file is gone.
        DataError: the file has changed since the import.
    """
    if wanted is None:
        wanted = {example.question_id for example in data.examples(split)}
    for path in _files(data, split):
        for place, row in iter_json_lines(path):
            if row.get("annot_id") in wanted:
                yield place, row


def examples_of_rows(data: TaskData, split: str, rows: Iterable[PlacedRow]) -> Iterator[Example]:
    """The examples of lines that were read from a split of `data` and rewritten since; boxes come from its index."""
    metadata = _IndexedMetadata(data, split)
    for place, row in rows:
        yield from examples_of_row(row, place, metadata)


class _IndexedMetadata:
    """The boxes of a split's images as they were imported, instead of the files that they were read from."""

    def __init__(self, data: TaskData, split: str) -> None:
        self.images = data.image_root()
        self._known: dict[str, Metadata | None] = {}
        for example in data.examples(split):
            if example.image.id not in self._known:
                boxes = Metadata(example.boxes, (), example.width, example.height)
                self._known[example.image.id] = boxes if example.width else None

    def get(self, name: str, place: Place, image: str = "") -> Metadata | None:
        return self._known[image]


def _files(data: TaskData, split: str) -> list[Path]:
    entry = data.about(split)
    files: Any = entry.get("files")
    if not isinstance(files, list) or not files:
        raise DataError(
            f"The split {split} of {data.source} does not say which file it was read from.",
            hint=f"import it again: madkit data import {data.name} PATH",
        )
    return [_checked(data, split, file) for file in files]


def _checked(data: TaskData, split: str, file: Mapping[str, Any]) -> Path:
    path = data.root / str(file["path"])
    again = f"import it again: madkit data import {data.name} PATH"
    if not archives.exists(path):
        raise NotFoundError(
            f"{path}, which {data.source} ({split}) was imported from, is not there any more.", hint=again
        )
    size = archives.size_of(path)
    if size != file.get("bytes"):
        raise DataError(
            f"{path} has changed since {data.source} was imported from it ({size:,} bytes now).", hint=again
        )
    return path
