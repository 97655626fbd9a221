"""One entry of VQA's JSON lists: annotations as small tuples, and where an entry stands."""

from __future__ import annotations

from pathlib import Path
from sys import intern
from typing import Any, NamedTuple

from madkit.tasks.formats.json_stream import JsonList
from madkit.tasks.formats.source_lines import Advance, Place, kind_of, many_small_objects, need_int, need_list

N_ANSWERS = 10
_OPTIONAL = ("multiple_choice_answer", "question_type", "answer_type")


class Entry(Place):
    """An entry of a JSON list; the text of the address is made only when something is wrong.

    `number` may be set anew: one object will do for a whole list.
    """

    __slots__ = ("_list", "number")

    def __init__(self, path: Path, name: str, number: int = 0) -> None:
        super().__init__(path)
        self._list = name
        self.number = number

    def __str__(self) -> str:
        return f"{self.path}, {self._list}[{self.number}]"


class Annotation(NamedTuple):
    """What is kept of an annotation: strings that many of them share are one object."""

    answers: tuple[str, ...]
    main_answer: str
    question_type: str
    answer_type: str
    image: int | None


def read_annotations(path: Path, advance: Advance | None = None) -> dict[int, Annotation]:
    """Annotations by question id. Raises DataError for an entry that breaks the format, or an id used twice."""
    found: dict[int, Annotation] = {}
    place = Entry(path, "annotations")
    with many_small_objects():
        for place.number, row in enumerate(JsonList(path, "annotations", advance=advance)):
            need_object(row, place)
            question_id = need_id(row, "question_id", place)
            if question_id in found:
                place.fail(f"'question_id' {question_id} was used before")
            found[question_id] = _annotation(row, place)
    return found


def _annotation(row: dict[str, Any], place: Place) -> Annotation:
    answers = need_list(row, "answers", place)
    if len(answers) != N_ANSWERS:
        place.fail(f"'answers' must have {N_ANSWERS} entries, found {len(answers)}")
    try:
        given = tuple(map(intern, [entry["answer"] for entry in answers]))
    except (KeyError, TypeError):  # `intern` takes strings alone
        place.fail("every entry of 'answers' must have a string under 'answer'")
    image = need_id(row, "image_id", place) if "image_id" in row else None
    get = row.get
    try:
        main, form, kind = get("multiple_choice_answer"), get("question_type"), get("answer_type")
        return Annotation(given, intern(main or ""), intern(form or ""), intern(kind or ""), image)
    except TypeError:
        key = next(key for key in _OPTIONAL if not isinstance(row.get(key) or "", str))
        place.fail(f"'{key}' must be a string, found {kind_of(row[key])}")


def need_object(row: Any, place: Place) -> None:
    """Raise DataError where an entry is no JSON object."""
    if not isinstance(row, dict):
        place.fail(f"an object is needed, found {kind_of(row)}")


def need_id(row: dict[str, Any], key: str, place: Place) -> int:
    """row[key] as an integer from 0 on: the ids of questions and images."""
    value = row.get(key)
    if type(value) is not int or value < 0:
        place.fail(f"'{key}' is {need_int(row, key, place)}, and ids start at 0")
    return value
