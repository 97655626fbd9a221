"""VQA v2 as LXMERT re-distributes it: one list per split, with soft scores in place of the annotators' answers.

An entry is `{"img_id": "COCO_train2014_000000458752", "question_id", "sent", "label": {answer: score}, "question_type",
"answer_type"}`; test entries have no label. Format: https://github.com/airsplay/lxmert, data/vqa.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from madkit.tasks.example import Example, ImageRef, Segment
from madkit.tasks.formats.json_stream import JsonList
from madkit.tasks.formats.source_lines import Advance, Place, kind_of, need_string
from madkit.tasks.formats.vqa_entries import Entry, need_id, need_object

_COCO = re.compile(r"COCO_(\w+)_0*(\d+)")
_ARE = {True: "has", False: "has no"}


def iter_lxmert_vqa(
    path: Path,
    images: Path | Mapping[str, Path],
    *,
    extension: str = ".jpg",
    advance: Advance | None = None,
) -> Iterator[Example]:
    """Yield the questions of one file in its order.

    `answers` is the entry's `label`, whose strings are normalised already; answers outside LXMERT's vocabulary are
    missing from it, and a question without any has {}. `annotations` stays empty, so that the official accuracy cannot
    be computed. The image's id is the number in a COCO name, as in the owners' files, else the whole `img_id`.

    Args:
        path: the JSON list.
        images: folder of the images, or such folders by the part of COCO in `img_id` ("train2014").
        extension: of the image files, whose names are `img_id`.
        advance: told the bytes read.

    Raises:
        NotFoundError: there is no such file.
        DataError: an entry that breaks the format, an id used twice, some entries with a label and some without.
    """
    seen: set[int] = set()
    references: dict[str, ImageRef] = {}
    labelled: bool | None = None
    for number, row in enumerate(JsonList(path, "questions", advance=advance)):
        place = Entry(path, "questions", number)
        need_object(row, place)
        question_id = need_id(row, "question_id", place)
        if question_id in seen:
            place.fail(f"'question_id' {question_id} was used before")
        seen.add(question_id)
        text = need_string(row, "sent", place).strip()
        if not text:
            place.fail("'sent' is empty")
        scores = _label(row, place)
        if labelled is None:
            labelled = scores is not None
        elif labelled != (scores is not None):
            place.fail(f"the entry {_ARE[not labelled]} 'label', but the first one {_ARE[labelled]} 'label'")
        name = need_string(row, "img_id", place)
        image = references.get(name)
        if image is None:
            image = references[name] = _reference(name, images, extension, place)
        yield Example(
            id=str(question_id),
            task="vqa",
            question_id=str(question_id),
            image=image,
            context=(Segment(text),),
            answers=scores,
            form=_optional(row, "question_type", place),
            answer_type=_optional(row, "answer_type", place),
        )


def _label(row: dict[str, Any], place: Place) -> dict[str, float] | None:
    label = row.get("label")
    if label is None:
        return None
    if not isinstance(label, dict):
        place.fail(f"'label' must be an object of answers and scores, found {kind_of(label)}")
    scores: dict[str, float] = {}
    for answer, score in label.items():
        if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
            place.fail(f"the score of {answer!r} in 'label' must be a number from 0 to 1, found {score!r}")
        scores[answer] = float(score)
    return scores


def _optional(row: dict[str, Any], key: str, place: Place) -> str:
    value = row.get(key) or ""
    if not isinstance(value, str):
        place.fail(f"'{key}' must be a string, found {kind_of(value)}")
    return value


def _reference(name: str, images: Path | Mapping[str, Path], extension: str, place: Place) -> ImageRef:
    coco = _COCO.fullmatch(name)
    image_id = name if coco is None else coco[2]
    if not isinstance(images, Mapping):
        return ImageRef(image_id, images / f"{name}{extension}")
    if coco is None or coco[1] not in images:
        place.fail(f"'img_id' {name!r} names no image of {', '.join(images)}")
    return ImageRef(image_id, images[coco[1]] / f"{name}{extension}")
