"""Questions as a user has them: lines of a JSONL file, or rows of a program, each checked and made an example.

The lines are those of a task of one's own (docs/custom.md), held to the same rules. What a student is only asked needs
no label; one that is there has to be possible.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from madkit.core import archives
from madkit.core.console import progress
from madkit.core.errors import NotFoundError, UsageProblem
from madkit.core.registry import suggest
from madkit.regions.declared import DeclaredBoxes, joined
from madkit.tasks.formats.custom import ImageFiles, LineReader
from madkit.tasks.formats.custom_lines import HIDDEN, Header, LinePlace, iter_lines, near_to, read_header, split_of
from madkit.tasks.formats.source_lines import Row, UniqueIds, kind_of
from madkit.tasks.spec import TaskSpec, custom_spec

if TYPE_CHECKING:
    from madkit.students.heads import HeadSpec
    from madkit.tasks.example import Example

NAME = "questions"
_SHOW_EVERY = 1000
_LOOKED_AT = 50  # names of images that are tried in the folders where images may be


class _Entry(LinePlace):
    """A row that a program gave."""

    unit = "question"

    def __str__(self) -> str:
        return f"question {self.line}"


@dataclass(frozen=True, slots=True)
class Question:
    """An example, where it stands, and a digest of all that its line says."""

    example: Example
    place: LinePlace
    digest: str


@dataclass(slots=True)
class Survey:
    """What is known after every line has been read once.

    count: lines that are asked. images: file by image id. boxes: those that the lines about an image name.
    first: the first line about each image.
    """

    count: int = 0
    images: dict[str, Path] = field(default_factory=dict)
    boxes: dict[str, DeclaredBoxes] = field(default_factory=dict)
    first: dict[str, LinePlace] = field(default_factory=dict)

    def add(self, question: Question) -> None:
        """Take in a question."""
        example, image = question.example, question.example.image
        self.count += 1
        self.images.setdefault(image.id, image.path)
        self.first.setdefault(image.id, question.place)
        if example.boxes:
            boxes = DeclaredBoxes(example.boxes, (example.width, example.height))
            known = self.boxes.setdefault(image.id, boxes)
            if known != boxes:
                self.boxes[image.id] = joined(known, boxes)


class Questions:
    """The questions of a JSONL file or of a program.

    Args:
        source: a file, which may lie in a zip, or rows with the same keys.
        head: what the student that is asked decides between.
        images: folder or zip of the images; None: the file's own folder, or `images` in it.
        split: ask the lines of this split alone; None: all lines.

    Raises:
        NotFoundError, UsageProblem: no such file, or it is a folder.
        DataError: a header of another task.
    """

    def __init__(
        self,
        source: Path | str | Iterable[Mapping[str, Any]],
        head: HeadSpec,
        images: Path | None = None,
        split: str | None = None,
    ) -> None:
        header = Header()
        if isinstance(source, str | Path):
            self.path: Path | None = Path(source)
            self._rows: list[Mapping[str, Any]] = []
            header = _header(self.path)
            self.root = images if images is not None else _beside(self.path)
        else:
            self.path, self._rows = None, list(source)
            self.root = images if images is not None else Path()
        if images is not None and not archives.is_folder(images):
            if images.exists():
                raise UsageProblem(f"{images} is neither a folder of images nor a zip.", hint="--images DIR")
            raise NotFoundError(f"The folder of the images {images} does not exist.", hint="--images DIR")
        self._head, self._split = head, split
        self._labels = header.labels
        labels = head.outputs if head.kind == "classification" else ()
        if self.path is not None:
            _check_header(header, head, LinePlace(self.path, 1))
        self.spec: TaskSpec = custom_spec(NAME, head.kind, labels=labels)
        self._files = ImageFiles(self.root)

    @property
    def name(self) -> str:
        """What to call them in messages."""
        return NAME if self.path is None else str(self.path)

    def survey(self) -> Survey:
        """Read every line once, so that a mistake in the last one costs no more than one in the first.

        Raises:
            DataError: a line that breaks the format, with file, line and key; no line.
            UsageProblem: no line is of the split that was asked for.
        """
        found = Survey()
        ids = UniqueIds("id")
        splits: dict[str, None] = {}
        with progress("Checking", None, "questions") as bar:
            for question in self._read(splits):
                ids.add(question.example.id, question.place)
                found.add(question)
                if found.count % _SHOW_EVERY == 0:
                    bar.advance(_SHOW_EVERY)
        if not found.count and self._split is not None:
            known = list(splits)
            raise UsageProblem(
                f"No line of {self.name} is of the split {self._split!r}.{suggest(self._split, known)}",
                hint=f"its lines are of: {', '.join(known)}" if known else "leave out --split: its lines name none",
            )
        if not found.count:
            raise UsageProblem("There are no questions.", hint="give one or more rows")
        return found

    def __iter__(self) -> Iterator[Question]:
        return self._read({})

    def _read(self, splits: dict[str, None]) -> Iterator[Question]:
        kind = self._head.kind
        labels = (self._labels or self._head.outputs) if kind == "classification" else None
        reader = LineReader(NAME, kind, self._files, labels)
        key = "answers" if kind == "vqa" else "label"
        for place, row in self._lines():
            split = split_of(row, place)
            if split is not None:
                splits[split] = None
            if self._split is not None and split != self._split:
                continue
            if kind == "classification" and self._labels is None and isinstance(row.get(key), int):
                place.fail(
                    f"'label' is the number {row[key]}, and nothing says which class that is",
                    hint="write the names of the classes, or leave labels out: answers need none",
                )
            example = reader.example(row, place, HIDDEN if row.get(key) is None else "test")
            yield Question(example, place, _digest(row, example.id))

    def _lines(self) -> Iterator[tuple[LinePlace, Row]]:
        if self.path is not None:
            yield from iter_lines(self.path)
            return
        for number, row in enumerate(self._rows, start=1):
            place = _Entry(Path(NAME), number)
            if not isinstance(row, Mapping):
                place.fail(f"a mapping is needed, found {kind_of(row)}")
            odd = next((key for key in row if not isinstance(key, str)), None)
            if odd is not None:
                place.fail(f"its keys must be strings, found {odd!r}")
            yield place, dict(row)


def _digest(row: Row, name: str) -> str:
    """Equal rows of one id give equal digests; keys that are the user's own may hold anything."""
    return hashlib.sha256(json.dumps([name, row], sort_keys=True, default=str).encode()).hexdigest()[:16]


def _header(path: Path) -> Header:
    if path.is_dir():
        raise UsageProblem(f"{path} is a folder.", hint="give the JSONL file with the questions")
    return read_header(path)


def _check_header(header: Header, head: HeadSpec, place: LinePlace) -> None:
    if header.kind not in (None, head.kind):
        place.fail(f"the file's questions are {header.kind}, and the student answers {head.kind}")
    if header.labels is not None and head.kind == "classification":
        for name in header.labels:
            if name not in head.outputs:
                place.fail(f"the student has no class {name!r}{near_to(name, head.outputs)}")


def _beside(path: Path) -> Path:
    """The first of two places in which an image of the first lines is found; the file's own folder where none is."""
    names = [
        row["image"]
        for _, row in islice(iter_lines(path), _LOOKED_AT)
        if isinstance(row.get("image"), str) and row["image"].strip() and "\0" not in row["image"]
    ]
    places = (path.parent, path.parent / "images")
    return next((place for place in places if any(archives.exists(place / name) for name in names)), path.parent)
