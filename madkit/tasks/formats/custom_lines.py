"""The lines of users' own data: their places, the header, the splits, and what a text may hold."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, get_args

from madkit.core.errors import DataError
from madkit.core.registry import suggest
from madkit.tasks.formats.source_lines import Advance, Place, Row, iter_json_lines, kind_of, need_list
from madkit.tasks.spec import TaskKind

VERSION = 1
KINDS: tuple[TaskKind, ...] = get_args(TaskKind)
HIDDEN = "submission"  # the split of questions whose answers are not known
FREE = ("_", "x_")  # keys that begin so are the user's own and never read
MOST_CLASSES = 10_000

_HEADER = ("madkit", "kind", "labels")
_SPLIT = re.compile(r"train|dev|test|test-[a-z0-9][a-z0-9-]*|submission")
_ALIASES = {"val": "dev", "valid": "dev", "validation": "dev"}


class LinePlace(Place):
    """A line of a file that its user wrote: to be corrected, not to be downloaded again.

    Attributes:
        unit: what the file's parts are called; with the number it names a question that has no id.
    """

    unit = "line"

    def fail(self, problem: str, *, hint: str | None = None) -> NoReturn:
        """Raise DataError for this place."""
        end = "" if problem.endswith("?") else "."
        raise DataError(f"{self}: {problem}{end}", hint=hint or "correct it there; docs/custom.md describes every key")


@dataclass(frozen=True, slots=True)
class Header:
    """What a first line {"madkit": 1, ...} says about all others: kind and classes, None where it does not."""

    kind: str | None = None
    labels: tuple[str, ...] | None = None


def read_header(path: Path) -> Header:
    """The header of a file, an empty one where its first line is an ordinary line.

    Raises NotFoundError, or DataError for a first line that cannot be read.
    """
    for found, row in iter_json_lines(path):
        if "madkit" not in row:
            break
        place = LinePlace(path, found.line)
        if row["madkit"] != VERSION or isinstance(row["madkit"], bool):
            place.fail(f"'madkit' is the version of the format, {VERSION}; found {row['madkit']!r}")
        for key in row:
            if key not in _HEADER and not key.startswith(FREE):
                place.fail(f"a header has no key '{key}'{near_to(key, _HEADER)}")
        kind = row.get("kind")
        if kind is not None and kind not in KINDS:
            place.fail(f"'kind' must be one of {', '.join(KINDS)}, found {kind!r}")
        labels = None
        if row.get("labels") is not None:
            labels = tuple(text_of(name, "labels", place) for name in need_list(row, "labels", place))
            check_labels(labels, place)
        return Header(kind, labels)
    return Header()


def check_labels(labels: Sequence[str], place: Place) -> None:
    """Raise DataError unless the names of the classes are two or more, and different."""
    twice = [name for name, count in Counter(labels).items() if count > 1]
    if twice:
        place.fail(f"'labels' names the class {twice[0]!r} twice")
    if not 2 <= len(labels) <= MOST_CLASSES:
        place.fail(f"'labels' must name 2 to {MOST_CLASSES:,} classes, found {len(labels)}")


def iter_lines(path: Path, advance: Advance | None = None) -> Iterator[tuple[LinePlace, Row]]:
    """The lines of a file but its header, with their places. Raises as `iter_json_lines`."""
    empty = first = True
    for place, row in iter_json_lines(path, advance):
        own = LinePlace(path, place.line)
        if "madkit" in row:
            if not first:
                own.fail("a header may stand in the first line only")
            first = False
            continue
        empty = first = False
        yield own, row
    if empty:
        LinePlace(path).fail("the file holds a header and no lines")


def split_of(row: Mapping[str, Any], place: Place, file_split: str | None = None) -> str | None:
    """The split that a line names, else `file_split`. "val" and "validation" are dev.

    Raises DataError for other names than train, dev, test, test-<suite> and submission, and where line and file differ.
    """
    value = row.get("split")
    if value is None:
        return file_split
    name = known_split(value) if isinstance(value, str) else None
    if name is None:
        names = ("train", "dev", "test", HIDDEN)
        near = near_to(value, names) if isinstance(value, str) else ""
        place.fail(f"'split' must be {', '.join(names)} or test-NAME, found {value!r}{near}")
    if file_split is not None and name != file_split:
        place.fail(f"'split' is {value!r} in the file of {file_split}")
    return name


def known_split(name: str) -> str | None:
    """The split of that name, None where there is none."""
    plain = name.strip().lower().replace("_", "-")
    plain = _ALIASES.get(plain, plain)
    return plain if _SPLIT.fullmatch(plain) else None


def text_of(value: Any, key: str, place: Place) -> str:
    """A string with something in it, without the white space around it."""
    if not isinstance(value, str):
        place.fail(f"'{key}' must be a string, found {kind_of(value)}")
    text = value.strip()
    if not text:
        place.fail(f"'{key}' is empty")
    if "\0" in text:
        place.fail(f"'{key}' holds a NUL character")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            place.fail(f"'{key}' holds half of a surrogate pair, which is no character")
    return text


def near_to(name: str, names: Iterable[str]) -> str:
    """The nearest of some names, as the end of a sentence that goes before; "" where none is near."""
    near = suggest(name, names)
    return f".{near}" if near else ""


def task_kind(name: str) -> TaskKind | None:
    """The kind of that name, None where there is none."""
    return name if name in KINDS else None
