"""VQA v2 (questions and annotations in their wrappers) and VQA-CP v2 (bare lists with `coco_split`).

The files are read as streams; of a split's questions nothing is kept but their ids, of its annotations some 500 bytes
each until their question comes by.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from madkit.tasks.example import Example, ImageRef, Segment
from madkit.tasks.formats.json_stream import JsonList, read_wrapper
from madkit.tasks.formats.source_lines import Advance, Place, check_files, many_small_objects, need_string
from madkit.tasks.formats.vqa_entries import N_ANSWERS, Annotation, Entry, need_id, need_object, read_annotations
from madkit.tasks.index.columns import soft_scores

# Score of an answer that n of the ten annotators gave: the mean of min(1, k/3) over the ten ways to leave one out.
SOFT_SCORES: tuple[float, ...] = (0.0, 0.3, 0.6, 0.9) + (1.0,) * (N_ANSWERS - 3)
COCO_PATTERN = "COCO_{subset}_{id:012d}.jpg"

_IMAGE_SUBSETS = {"test-dev2015": "test2015"}  # the test-dev questions are about images of test2015
_NONE = Annotation((), "", "", "", None)


def iter_vqa(
    questions: Path,
    annotations: Path | None,
    images: Path | Mapping[str, Path],
    *,
    pattern: str = COCO_PATTERN,
    subset: str | None = None,
    advance: Advance | None = None,
) -> Iterator[Example]:
    """Yield the questions in their order, each joined by `question_id` with its annotation, where there are any.

    `answers` holds the soft score of every raw answer string, `annotations` the ten raw answers in the file's order,
    `main_answer` the raw `multiple_choice_answer`. Without annotations they are None, () and "". `form` is the question
    type and `answer_type` the answer type, "" where the file has none. The image's id is the decimal `image_id`.

    Args:
        questions: questions JSON, either `{"questions": [...], ...}` or a bare list.
        annotations: annotations JSON, either `{"annotations": [...], ...}` or a bare list; None for test sets. It is
            read whole before the first question.
        images: folder of the images, or such folders by the part of COCO ("train2014").
        pattern: file name of an image, a format string with `{subset}` and `{id}`.
        subset: part of COCO in the file names; by default each question's `coco_split`, else the wrapper's
            `data_subtype`.
        advance: told the bytes read.

    Raises:
        NotFoundError: a file does not exist.
        DataError: an entry that breaks the format, an id used twice, an annotation about another image; after the last
            question, questions without annotations or the reverse.
    """
    answered = read_annotations(annotations, advance) if annotations is not None else None
    source = JsonList(questions, "questions", advance=advance)
    references = _References(source, images, pattern, subset)
    seen: set[int] = set()
    unanswered: list[int] = []
    place = Entry(questions, "questions")
    for place.number, row in enumerate(source):
        need_object(row, place)
        question_id = need_id(row, "question_id", place)
        if question_id in seen:
            place.fail(f"'question_id' {question_id} was used before")
        seen.add(question_id)
        text = need_string(row, "question", place).strip()
        if not text:
            place.fail("'question' is empty")
        image_number = need_id(row, "image_id", place)
        given = _NONE
        if answered is not None:
            found = answered.pop(question_id, None)
            if found is None:
                unanswered.append(question_id)
                continue
            given = found
            if given.image is not None and given.image != image_number:
                place.fail(f"'image_id' is {image_number}, but {given.image} in the annotation of {question_id}")
        name = str(question_id)
        yield Example(
            id=name,
            task="vqa",
            question_id=name,
            image=references.of(row, image_number, place),
            context=(Segment(text),),
            answers=soft_scores(given.answers) if answered is not None else None,
            annotations=given.answers,
            form=given.question_type,
            answer_type=given.answer_type,
            main_answer=given.main_answer,
        )
    if annotations is not None:
        _refuse(unanswered, questions, annotations, "questions have no annotation")
        _refuse(answered or (), annotations, questions, "annotations have no question")


def read_vqa(
    questions: Path,
    annotations: Path | None,
    images: Path,
    *,
    pattern: str = COCO_PATTERN,
    subset: str | None = None,
    check_images: bool = False,
) -> list[Example]:
    """The examples of `iter_vqa` as a list; with `check_images`, DataError names the image files that are missing."""
    with many_small_objects():
        examples = list(iter_vqa(questions, annotations, images, pattern=pattern, subset=subset))
    if check_images:
        files: dict[Path, Place] = {}
        for number, example in enumerate(examples):
            files.setdefault(example.image.path, Entry(questions, "questions", number))
        check_files(files, "images")
    return examples


class _References:
    """The images of a split; an image has one reference, whatever the number of questions about it."""

    def __init__(self, source: JsonList, images: Path | Mapping[str, Path], pattern: str, subset: str | None) -> None:
        self._source = source
        self._folders = images
        self._pattern = pattern
        self._subset = subset
        self._subtype: object = None
        self._known: dict[int, ImageRef] = {}

    def of(self, row: Mapping[str, Any], number: int, place: Place) -> ImageRef:
        known = self._known.get(number)
        if known is None:
            known = self._known[number] = ImageRef(str(number), self._path(row, number, place))
        return known

    def _path(self, row: Mapping[str, Any], number: int, place: Place) -> Path:
        subset = self._subset or row.get("coco_split")
        by_subset = isinstance(self._folders, Mapping)
        if subset is None and (by_subset or "{subset" in self._pattern):
            subset = self._data_subtype()
            if not isinstance(subset, str) or not subset:
                place.fail("the image's part of COCO is unknown: no 'coco_split', and the file has no 'data_subtype'")
        subset = _IMAGE_SUBSETS.get(str(subset), str(subset))
        if not isinstance(self._folders, Mapping):
            folder = self._folders
        elif subset in self._folders:
            folder = self._folders[subset]
        else:
            place.fail(f"an image of {subset!r} is meant, but the images are from {', '.join(self._folders)}")
        try:
            return folder / self._pattern.format(subset=subset, id=number)
        except (KeyError, IndexError, ValueError):
            place.fail(f"the image file pattern {self._pattern!r} is no format string with {{subset}} and {{id}}")

    def _data_subtype(self) -> object:
        if self._subtype is None:
            wrapper = self._source.wrapper
            if "data_subtype" not in wrapper:  # it may stand behind the questions
                wrapper = read_wrapper(self._source.path, self._source.key)
            self._subtype = wrapper.get("data_subtype", "")
        return self._subtype


def _refuse(ids: Sequence[int] | Mapping[int, Any], here: Path, there: Path, what: str) -> None:
    if ids:
        shown = ", ".join(map(str, sorted(ids)[:5])) + (", ..." if len(ids) > 5 else "")
        Place(here).fail(
            f"{len(ids)} {what} in {there.name}: question_id {shown}",
            hint="check that both files belong to the same split",
        )
