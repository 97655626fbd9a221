"""One entry of VQA's JSON lists: annotations as small tuples, and where an entry stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from madkit.tasks.formats.json_stream import Advance, JsonList
from madkit.tasks.formats.source_lines import Place, kind_of, many_small_objects, need_int, need_list

N_ANSWERS = 10


class Entry(Place):
    """An entry of a JSON list; the text of the address is made only when something is wrong."""

    __slots__ = ("_list", "_number")

    def __init__(self, path: Path, name: str, number: int) -> None:
        super().__init__(path)
        self._list = name
        self._number = number

    def __str__(self) -> str:
        return f"{self.path}, {self._list}[{self._number}]"


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
    shared: dict[str, str] = {}
    with many_small_objects():
        for number, row in enumerate(JsonList(path, "annotations", advance=advance)):
            place = Entry(path, "annotations", number)
            need_object(row, place)
            question_id = need_id(row, "question_id", place)
            if question_id in found:
                place.fail(f"'question_id' {question_id} was used before")
            found[question_id] = _annotation(row, place, shared)
    return found


def _annotation(row: dict[str, Any], place: Place, shared: dict[str, str]) -> Annotation:
    answers = need_list(row, "answers", place)
    if len(answers) != N_ANSWERS:
        place.fail(f"'answers' must have {N_ANSWERS} entries, found {len(answers)}")
    share = shared.setdefault
    try:
        given = [entry["answer"] for entry in answers]
        given = [share(answer, answer) for answer in given]
    except (KeyError, TypeError):
        place.fail("every entry of 'answers' must have a string under 'answer'")
    if set(map(type, given)) != {str}:
        place.fail("every entry of 'answers' must have a string under 'answer'")
    optional = []
    for key in ("multiple_choice_answer", "question_type", "answer_type"):
        value = row.get(key) or ""
        if not isinstance(value, str):
            place.fail(f"'{key}' must be a string, found {kind_of(value)}")
        optional.append(share(value, value))
    image = need_id(row, "image_id", place) if "image_id" in row else None
    return Annotation(tuple(given), *optional, image)


def need_object(row: Any, place: Place) -> None:
    """Raise DataError where an entry is no JSON object."""
    if not isinstance(row, dict):
        place.fail(f"an object is needed, found {kind_of(row)}")


def need_id(row: dict[str, Any], key: str, place: Place) -> int:
    """row[key] as an integer from 0 on: the ids of questions and images."""
    value = need_int(row, key, place)
    if value < 0:
        place.fail(f"'{key}' is {value}, and ids start at 0")
    return value
