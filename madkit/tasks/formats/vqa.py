"""VQA v2 (questions and annotations in their wrappers) and VQA-CP v2 (bare lists with `coco_split`)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from madkit.tasks.example import Example, ImageRef, Segment
from madkit.tasks.formats.source_lines import (
    Place,
    Row,
    check_files,
    kind_of,
    load_json,
    many_small_objects,
    need_int,
    need_list,
    need_string,
)

N_ANSWERS = 10
# Score of an answer that n of the ten annotators gave: the mean of min(1, k/3) over the ten ways to leave one out.
SOFT_SCORES: tuple[float, ...] = (0.0, 0.3, 0.6, 0.9) + (1.0,) * 7
COCO_PATTERN = "COCO_{subset}_{id:012d}.jpg"

_IMAGE_SUBSETS = {"test-dev2015": "test2015"}  # the test-dev questions are about images of test2015


@many_small_objects()
def read_vqa(
    questions: Path,
    annotations: Path | None,
    images: Path,
    *,
    pattern: str = COCO_PATTERN,
    subset: str | None = None,
    check_images: bool = False,
) -> list[Example]:
    """Read questions and, where there are any, their annotations, joined by `question_id`, in the questions' order.

    `answers` holds the soft score of every raw answer string, `annotations` the ten raw answers in the file's order.
    Without annotations both are empty (None and ()). `form` is the question type and `answer_type` the answer type,
    "" where the file has none. The image's id is the decimal `image_id`.

    Args:
        questions: questions JSON, either `{"questions": [...], ...}` or a bare list.
        annotations: annotations JSON, either `{"annotations": [...], ...}` or a bare list; None for test sets.
        images: folder of the images.
        pattern: file name of an image, a format string with `{subset}` and `{id}`.
        subset: part of COCO in the file names; by default each question's `coco_split`, else the wrapper's
            `data_subtype`.
        check_images: whether to look for every image file.

    Raises:
        NotFoundError: a file does not exist.
        DataError: an entry that breaks the format, questions without annotations or the reverse.
    """
    wrapper, asked = _entries(questions, "questions")
    subtype = subset or wrapper.get("data_subtype")
    answered = _answers(annotations) if annotations is not None else None
    ids = _question_ids(questions, asked)
    if annotations is not None and answered is not None:
        _check_join(questions, ids, annotations, answered)
    references: dict[str, ImageRef] = {}
    image_files: dict[Path, Place] = {}
    examples: list[Example] = []
    for (number, row), question_id in zip(enumerate(asked), ids, strict=True):
        place = _Entry(questions, "questions", number)
        text = need_string(row, "question", place).strip()
        if not text:
            place.fail("'question' is empty")
        image_number = need_int(row, "image_id", place)
        image = references.get(str(image_number))
        if image is None:
            name = _file_name(pattern, subset or row.get("coco_split") or subtype, image_number, place)
            image = references[str(image_number)] = ImageRef(str(image_number), images / name)
            image_files[image.path] = place
        scores: dict[str, float] | None = None
        given: tuple[str, ...] = ()
        form = answer_type = ""
        if answered is not None:
            given, form, answer_type, annotated_image = answered[question_id]
            if annotated_image is not None and annotated_image != image_number:
                place.fail(f"'image_id' is {image_number}, but {annotated_image} in the annotation of {question_id}")
            scores = {answer: SOFT_SCORES[count] for answer, count in Counter(given).items()}
        examples.append(
            Example(
                id=str(question_id),
                task="vqa",
                question_id=str(question_id),
                image=image,
                context=(Segment(text),),
                answers=scores,
                annotations=given,
                form=form,
                answer_type=answer_type,
            )
        )
    if check_images:
        check_files(image_files, "images")
    return examples


class _Entry(Place):
    """An entry of a JSON list; the text of the address is made only when something is wrong."""

    __slots__ = ("_list", "_number")

    def __init__(self, path: Path, name: str, number: int) -> None:
        super().__init__(path)
        self._list = name
        self._number = number

    def __str__(self) -> str:
        return f"{self.path}, {self._list}[{self._number}]"


_Answered = tuple[tuple[str, ...], str, str, int | None]


def _entries(path: Path, key: str) -> tuple[Row, list[Any]]:
    content = load_json(path)
    if isinstance(content, list):
        return {}, content
    place = Place(path)
    if not isinstance(content, dict):
        place.fail(f"an object with '{key}' or a list is needed, found {kind_of(content)}")
    return content, need_list(content, key, place)


def _answers(path: Path) -> dict[int, _Answered]:
    answered: dict[int, _Answered] = {}
    for number, row in enumerate(_entries(path, "annotations")[1]):
        place = _Entry(path, "annotations", number)
        _need_object(row, place)
        question_id = need_int(row, "question_id", place)
        if question_id in answered:
            place.fail(f"'question_id' {question_id} was used before")
        answers = need_list(row, "answers", place)
        if len(answers) != N_ANSWERS:
            place.fail(f"'answers' must have {N_ANSWERS} entries, found {len(answers)}")
        given = [
            entry["answer"] for entry in answers if isinstance(entry, dict) and isinstance(entry.get("answer"), str)
        ]
        if len(given) != N_ANSWERS:
            place.fail("every entry of 'answers' must have a string under 'answer'")
        form, answer_type = row.get("question_type") or "", row.get("answer_type") or ""
        if not isinstance(form, str) or not isinstance(answer_type, str):
            place.fail("'question_type' and 'answer_type' must be strings")
        image = need_int(row, "image_id", place) if "image_id" in row else None
        answered[question_id] = (tuple(given), form, answer_type, image)
    return answered


def _need_object(row: Any, place: Place) -> None:
    if not isinstance(row, dict):
        place.fail(f"an object is needed, found {kind_of(row)}")


def _question_ids(path: Path, asked: list[Any]) -> dict[int, None]:
    """The ids of all questions, in order."""
    ids: dict[int, None] = {}
    for number, row in enumerate(asked):
        place = _Entry(path, "questions", number)
        _need_object(row, place)
        question_id = need_int(row, "question_id", place)
        if question_id in ids:
            place.fail(f"'question_id' {question_id} was used before")
        ids[question_id] = None
    return ids


def _check_join(questions: Path, ids: dict[int, None], annotations: Path, answered: dict[int, _Answered]) -> None:
    for missing, here, there, what in (
        (ids.keys() - answered.keys(), questions, annotations, "questions have no annotation"),
        (answered.keys() - ids.keys(), annotations, questions, "annotations have no question"),
    ):
        if missing:
            shown = ", ".join(map(str, sorted(missing)[:5])) + (", ..." if len(missing) > 5 else "")
            Place(here).fail(
                f"{len(missing)} {what} in {there.name}: question_id {shown}",
                hint="check that both files belong to the same split",
            )


def _file_name(pattern: str, subset: object, number: int, place: Place) -> str:
    if "{subset" in pattern and (not isinstance(subset, str) or not subset):
        place.fail("the image's part of COCO is unknown: no 'coco_split', and the file has no 'data_subtype'")
    try:
        return pattern.format(subset=_IMAGE_SUBSETS.get(str(subset), subset), id=number)
    except (KeyError, IndexError, ValueError):
        place.fail(f"the image file pattern {pattern!r} is no format string with {{subset}} and {{id}}")
