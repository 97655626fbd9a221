"""Reading anyone's answers: VQA's JSON, VCR's CSV, and plain JSONL or CSV with an id and a prediction on each line.

Every complaint names the file, and the line or entry.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from madkit.core.console import counted
from madkit.core.errors import DataError, NotFoundError
from madkit.evaluate.submission import ANSWER_COLUMNS, RATIONALE_COLUMNS, VCR_CHOICES
from madkit.tasks.formats.source_lines import Place, iter_json_lines, kind_of, load_json

if TYPE_CHECKING:
    from madkit.tasks.spec import TaskSpec

ID_KEYS = ("id", "pairID", "question_id", "annot_id")
ANSWER_KEYS = ("prediction", "answer", "label")
_HINT = "a line needs an id (id, pairID or question_id) and what is answered (prediction, answer or label)"


@dataclass(frozen=True, slots=True)
class AnswerFile:
    """Answers by id. `kind` "vcr" is VCR's CSV: by annot_id, `choices` [1 or 5][4] scores, of the answers and then of
    the rationales given each answer; "plain": by example id, `choices` an index, a VQA answer as text.
    """

    kind: str
    choices: dict[str, Any]
    has_rationales: bool = False


def read_answers(path: Path, spec: TaskSpec) -> AnswerFile:
    """Read a file of answers to a task, in whichever of the formats it is.

    Raises NotFoundError, or DataError naming file and line for what is no answer to this task.
    """
    start = first_character(path)
    if start in "[{":
        entries = _json_list(path) if start == "[" else ((place, row) for place, row in iter_json_lines(path))
        return AnswerFile("plain", _plain(entries, spec))
    columns = _columns(path)
    if spec.subtasks and "annot_id" in columns and ANSWER_COLUMNS[0] in columns:
        return _vcr_csv(path, columns)
    return AnswerFile("plain", _plain(_csv_rows(path), spec))


def first_character(path: Path) -> str:
    """The first character that is no space: what tells JSON from CSV. Raises for a file that is not there or empty."""
    try:
        with path.open("rb") as file:
            head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    except FileNotFoundError:
        raise NotFoundError(f"The file {path} does not exist.", hint="give the file with the answers") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a folder.", hint="give the file with the answers") from None
    if not head:
        raise DataError(f"{path} is empty.", hint="give the file with the answers")
    return chr(head[0])


class _Entry(Place):
    """An entry of a JSON list; the text of the address is made only when something is wrong."""

    __slots__ = ("_number",)

    def __init__(self, path: Path, number: int) -> None:
        super().__init__(path)
        self._number = number

    def __str__(self) -> str:
        return f"{self.path}, entry {self._number}"


def _json_list(path: Path) -> Iterator[tuple[Place, dict[str, Any]]]:
    for number, entry in enumerate(load_json(path), start=1):
        place = _Entry(path, number)
        if not isinstance(entry, dict):
            place.fail(f"an object is needed, found {kind_of(entry)}", hint=_HINT)
        yield place, entry


def _plain(entries: Iterator[tuple[Place, dict[str, Any]]], spec: TaskSpec) -> dict[str, Any]:
    """Id -> answer, one entry each."""
    found: dict[str, Any] = {}
    first: dict[str, str] = {}
    for place, row in entries:
        name = next((row[key] for key in ID_KEYS if row.get(key) not in (None, "")), None)
        if not isinstance(name, (str, int)) or isinstance(name, bool):
            place.fail("there is no id", hint=_HINT)
        key = next((key for key in ANSWER_KEYS if row.get(key) is not None), None)
        if key is None:
            place.fail(f"nothing is answered for {name}", hint=_HINT)
        name = str(name)
        if name in found:
            place.fail(f"{name} is answered twice, first in {first[name]}", hint="keep one of them")
        first[name] = str(place).removeprefix(f"{place.path}, ")
        found[name] = _value(row[key], key, spec, place)
    return found


def _value(value: Any, key: str, spec: TaskSpec, place: Place) -> str | int:
    if spec.kind == "vqa":
        if not isinstance(value, str):
            place.fail(f"'{key}' must be the answer as a string, found {kind_of(value)}", hint=_HINT)
        return value
    if spec.kind == "classification":
        # an index would mean another class from one program to the next, so only names are taken
        if not isinstance(value, bool) and str(value) in spec.labels:
            return spec.labels.index(str(value))
        place.fail(f"'{key}' must be one of {', '.join(spec.labels)}, found {value!r}", hint="give classes by name")
    text = str(value).strip()
    if isinstance(value, (bool, float)) or not text.isdecimal():
        place.fail(f"'{key}' must be the number of a choice, counted from 0, found {value!r}", hint=_HINT)
    return int(text)


def _columns(path: Path) -> list[str]:
    for _, row in _raw_rows(path):
        return row
    raise DataError(f"{path} is empty.", hint="give the file with the answers")


def _raw_rows(path: Path) -> Iterator[tuple[Place, list[str]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            try:
                for row in reader:
                    if row:
                        yield Place(path, reader.line_num), row
            except csv.Error as error:
                Place(path, reader.line_num).fail(f"not valid CSV ({error})", hint="write the file again")
    except UnicodeDecodeError:
        Place(path).fail("not UTF-8 text", hint=f"convert {path.name} to UTF-8")


def _csv_rows(path: Path) -> Iterator[tuple[Place, dict[str, Any]]]:
    rows = _raw_rows(path)
    place, columns = next(rows)
    if not set(columns) & set(ID_KEYS) or not set(columns) & set(ANSWER_KEYS):
        place.fail(
            f"neither JSON nor a CSV with an id and an answer (first line: {json.dumps(','.join(columns)[:60])})",
            hint=_HINT,
        )
    for place, row in rows:
        if len(row) != len(columns):
            place.fail(
                f"{counted(len(row), 'values')} for {counted(len(columns), 'columns')}", hint="write the file again"
            )
        yield place, dict(zip(columns, row, strict=True))


def _vcr_csv(path: Path, columns: list[str]) -> AnswerFile:
    rationales = [name for name in RATIONALE_COLUMNS if name in columns]
    wanted = [*ANSWER_COLUMNS, *(RATIONALE_COLUMNS if rationales else ())]
    missing = [name for name in wanted if name not in columns]
    if missing:
        Place(path, 1).fail(
            f"{len(missing)} of VCR's {len(wanted)} score columns are missing: {', '.join(missing[:3])}"
            + (", ..." if len(missing) > 3 else ""),
            hint="a file has the 4 answer columns, alone or with all 16 rationale columns",
        )
    places = [columns.index(name) for name in wanted]
    id_column = columns.index("annot_id")
    found: dict[str, list[list[float]]] = {}
    lines: dict[str, int] = {}
    for place, row in _raw_rows(path):
        if place.line == 1:
            continue
        if len(row) != len(columns):
            place.fail(
                f"{counted(len(row), 'values')} for {counted(len(columns), 'columns')}", hint="write the file again"
            )
        name = row[id_column]
        if name in found:
            place.fail(f"{name} is answered twice, first on line {lines[name]}", hint="keep one of them")
        lines[name] = place.line
        values = [_number(row[column], columns[column], place) for column in places]
        found[name] = [values[at : at + VCR_CHOICES] for at in range(0, len(values), VCR_CHOICES)]
    return AnswerFile("vcr", found, has_rationales=bool(rationales))


def _number(text: str, column: str, place: Place) -> float:
    try:
        value = float(text)
    except ValueError:
        place.fail(f"'{column}' must be a number, found {text!r}", hint="write the file again")
    if not math.isfinite(value):
        place.fail(f"'{column}' is {text}", hint="scores must be finite numbers")
    return value
