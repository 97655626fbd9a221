"""Users' own data: one JSON object per line, as docs/custom.md describes it.

    {"id": 1, "split": "train", "image": "a.jpg", "question": "What is it?", "choices": ["a cup", "a cat"], "label": 1}

The reader is strict: what it does not know it refuses, because a key that is misspelled and ignored would change what
is trained without a word.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from madkit.tasks.example import Example, ImageRef, Segment
from madkit.tasks.formats.box_links import read_links
from madkit.tasks.formats.boxes import Box, BoxError, clean_box
from madkit.tasks.formats.custom_lines import FREE, HIDDEN, LinePlace, near_to, text_of
from madkit.tasks.formats.source_lines import Place, Row, kind_of, need_int, need_list
from madkit.tasks.formats.tagged_text import TagError
from madkit.tasks.index.columns import soft_scores
from madkit.tasks.spec import TaskKind

TEXT_KEYS = ("text", "question", "sentence")

_COMMON = ("id", "split", "image", *TEXT_KEYS, "context", "boxes", "objects", "width", "height", "form")
_OWN: dict[str, tuple[str, ...]] = {
    "multiple-choice": ("choices", "label"),
    "classification": ("label",),
    "vqa": ("answers", "answer_type"),
}
# VQA's rule counts the other annotators who agree, up to three: with fewer than four it could never give 1.
_FEW = 4
_MOST_TEXTS = 100
_LARGEST_SIDE = 1_000_000
_IMAGES_KEPT = 10_000


class ImageFiles:
    """Finds the file of an image by the name that a line gives.

    Args:
        root: what relative names are relative to.
        exported: names of images that lie in `export_root` instead.
    """

    def __init__(self, root: Path, *, exported: frozenset[str] = frozenset(), export_root: Path | None = None) -> None:
        self.root = root
        self._exported = exported
        self._export_root = export_root
        self._made: dict[str, ImageRef] = {}

    def ref(self, name: str) -> ImageRef:
        """The image: its id is its path below `root`, or the whole path where it lies elsewhere."""
        made = self._made.get(name)
        if made is None:
            if name in self._exported and self._export_root is not None:
                made = ImageRef(name, self._export_root / name)
            else:
                plain = posixpath.normpath(name)
                path = self.root / plain
                below = path.is_relative_to(self.root)
                made = ImageRef(path.relative_to(self.root).as_posix() if below else str(path), path)
            self._made[name] = made
        return made


class LineReader:
    """Turns lines into examples, and holds them to what all lines of a data set must share.

    Args:
        name: of the task.
        kind: of the task.
        images: where the images lie.
        labels: the classes (classification); None: any name is taken, and labels of examples mean nothing yet.

    Attributes:
        n_candidates: number of choices of every line, 0 before the first (multiple-choice).
        unnamed: lines without id so far.
        few_answers: lines so far with fewer annotators than VQA's rule needs.
    """

    def __init__(self, name: str, kind: TaskKind, images: ImageFiles, labels: Sequence[str] | None = None) -> None:
        self.name = name
        self.kind = kind
        self.images = images
        self.n_candidates = 0
        self.unnamed = 0
        self.few_answers = 0
        self._labels = None if labels is None else {label: place for place, label in enumerate(labels)}
        self._keys = frozenset(keys_of(kind))
        self._sizes: dict[str, tuple[int, int, LinePlace]] = {}
        self._last_boxes: dict[str, tuple[Any, tuple[Box, ...]]] = {}
        self._choices_at: LinePlace | None = None

    def example(self, row: Row, place: LinePlace, split: str) -> Example:
        """The example of a line. Raises DataError, with the key, for anything that breaks the format."""
        if not self._keys.issuperset(row):
            self._check_keys(row, place)
        identity = self._identity(row, place)
        image = self._image(row, place)
        boxes, width, height = self._boxes(row, image.id, place)
        objects = _objects(row, len(boxes), place)
        texts = self._context(row, place)
        context = tuple(_segment(text, key, len(boxes), objects, place) for key, text in texts)
        raw = self._choices(row, place) if self.kind == "multiple-choice" else []
        candidates = tuple(
            _segment(text, f"choices[{number}]", len(boxes), objects, place) for number, text in enumerate(raw)
        )
        label: int | None = None
        answers: Mapping[str, float] | None = None
        annotations: tuple[str, ...] = ()
        if self._is_labelled(row, split, place):
            if self.kind == "vqa":
                answers, annotations = self._answers(row, place)
            else:
                multiple = self.kind == "multiple-choice"
                label = self._choice(row, raw, candidates, place) if multiple else self._class(row, place)
        return Example(
            id=identity,
            task=self.name,
            question_id=identity,
            image=image,
            context=context,
            candidates=candidates,
            boxes=boxes,
            width=width,
            height=height,
            label=label,
            answers=answers,
            annotations=annotations,
            form=_optional(row, "form", place),
            answer_type=_optional(row, "answer_type", place),
        )

    # -- parts of a line --------------------------------------------------------------------------------------------

    def _check_keys(self, row: Row, place: LinePlace) -> None:
        for key in row:
            if key in self._keys or key.startswith(FREE):
                continue
            others = [kind for kind, keys in _OWN.items() if key in keys]
            if others:
                place.fail(f"the key '{key}' belongs to {' and '.join(others)} tasks, and this one is {self.kind}")
            place.fail(
                f"there is no key '{key}'{near_to(key, self._keys)}",
                hint=f"keys of {self.kind} tasks are {', '.join(keys_of(self.kind))}; "
                f"rename it to {FREE[1]}{key} if madkit is not to read it; docs/custom.md describes every key",
            )

    def _identity(self, row: Row, place: LinePlace) -> str:
        value = row.get("id")
        if value is None:
            self.unnamed += 1
            return f"{place.unit}-{place.line}"
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return text_of(value, "id", place)

    def _image(self, row: Row, place: LinePlace) -> ImageRef:
        return self.images.ref(text_of(_needed(row, "image", place), "image", place))

    def _context(self, row: Row, place: LinePlace) -> list[tuple[str, str]]:
        texts: list[tuple[str, str]] = []
        if row.get("context") is not None:
            for number, text in enumerate(need_list(row, "context", place)):
                texts.append((f"context[{number}]", text_of(text, f"context[{number}]", place)))
        if len(texts) >= _MOST_TEXTS:
            place.fail(f"'context' must have fewer than {_MOST_TEXTS} entries, found {len(texts)}")
        main = [key for key in TEXT_KEYS if row.get(key) is not None]
        if len(main) > 1:
            place.fail(f"'{main[0]}' and '{main[1]}' are two names for the same: give one of them")
        if main:
            texts.append((main[0], text_of(row[main[0]], main[0], place)))
        if not texts:
            place.fail("there is no text: none of the keys text, question, sentence, context holds one")
        return texts

    def _boxes(self, row: Row, image: str, place: LinePlace) -> tuple[tuple[Box, ...], int, int]:
        listed = row.get("boxes")
        width = height = 0
        if row.get("width") is not None or row.get("height") is not None or listed:
            width, height = _side(row, "width", place), _side(row, "height", place)
            known = self._sizes.setdefault(image, (width, height, place))
            if known[:2] != (width, height):
                place.fail(f"the image is {width} x {height} here, and {known[0]} x {known[1]} in {known[2]}")
        if not listed:
            if listed is not None:
                need_list(row, "boxes", place)
            return (), width, height
        raw, boxes = self._last_boxes.get(image, (None, ()))
        if raw != listed:  # lines about one image mostly repeat its boxes
            boxes = _clean_boxes(row, width, height, place)
            if len(self._last_boxes) >= _IMAGES_KEPT:
                self._last_boxes.clear()
            self._last_boxes[image] = listed, boxes
        return boxes, width, height

    def _choices(self, row: Row, place: LinePlace) -> list[str]:
        _needed(row, "choices", place)
        choices = [
            text_of(text, f"choices[{number}]", place) for number, text in enumerate(need_list(row, "choices", place))
        ]
        if not 2 <= len(choices) <= _MOST_TEXTS:
            place.fail(f"'choices' must have 2 to {_MOST_TEXTS} entries, found {len(choices)}")
        if self._choices_at is None:
            self.n_candidates, self._choices_at = len(choices), place
        if len(choices) != self.n_candidates:
            place.fail(
                f"'choices' has {len(choices)} entries, and {self.n_candidates} in {self._choices_at}: every question "
                "of a task has the same number"
            )
        return choices

    def _is_labelled(self, row: Row, split: str, place: LinePlace) -> bool:
        key = "answers" if self.kind == "vqa" else "label"
        held = row.get(key) is not None
        if split == HIDDEN and held:
            place.fail(f"'{key}' is given in the split {HIDDEN}, which is for questions without")
        if split != HIDDEN and not held:
            place.fail(
                f"'{key}' is null" if key in row else f"the key '{key}' is missing",
                hint=f"questions whose {key} is not known belong into the split {HIDDEN}",
            )
        return held

    def _choice(self, row: Row, raw: list[str], choices: Sequence[Segment], place: LinePlace) -> int:
        value = row["label"]
        if isinstance(value, str):
            plain = value.strip()
            found = [n for n, text in enumerate(raw) if plain in (text, choices[n].text)]
            if len(found) != 1:
                place.fail(
                    f"'label' {value!r} is {'none' if not found else 'more than one'} of the choices: "
                    f"give a choice's text, or its number from 0 to {len(raw) - 1}"
                )
            return found[0]
        label = need_int(row, "label", place)
        if not 0 <= label < len(raw):
            place.fail(f"'label' must be 0 to {len(raw) - 1} (choices count from 0), found {label}")
        return label

    def _class(self, row: Row, place: LinePlace) -> int:
        value = row["label"]
        if isinstance(value, bool) or not isinstance(value, int | str):
            place.fail(f"'label' must be the name of a class, found {kind_of(value)}")
        if isinstance(value, int):
            if self._labels is None:
                place.fail(
                    f"'label' is the number {value}, and nothing says which class that is",
                    hint='write the names of the classes, or a first line {"madkit": 1, "labels": ["NAME", "NAME"]}; '
                    "in a Hugging Face dataset cast the column to ClassLabel(names=[...])",
                )
            if not 0 <= value < len(self._labels):
                place.fail(f"'label' must be 0 to {len(self._labels) - 1}, found {value}")
            return value
        name = text_of(value, "label", place)
        if self._labels is None:
            return 0
        if name not in self._labels:
            shown = ", ".join(list(self._labels)[:8]) + (", ..." if len(self._labels) > 8 else "")
            place.fail(f"'label' {name!r} is none of the classes ({shown}){near_to(name, self._labels)}")
        return self._labels[name]

    def _answers(self, row: Row, place: LinePlace) -> tuple[Mapping[str, float], tuple[str, ...]]:
        value = row["answers"]
        if isinstance(value, dict):
            return _scored(value, place), ()
        listed = [value] if isinstance(value, str) else need_list(row, "answers", place)
        given = []
        for number, entry in enumerate(listed):
            text = entry.get("answer") if isinstance(entry, dict) else entry
            given.append(text_of(text, f"answers[{number}]", place))
        if not given:
            place.fail("'answers' is empty")
        if len(given) >= _FEW:
            return soft_scores(tuple(given)), tuple(given)
        self.few_answers += 1
        return {answer: round(count / len(given), 6) for answer, count in Counter(given).items()}, ()


def _scored(value: Mapping[str, Any], place: Place) -> dict[str, float]:
    answers: dict[str, float] = {}
    for name, score in value.items():
        answer = text_of(name, "answers", place)
        if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
            place.fail(f"'answers' must map answers to scores from 0 to 1, found {answer!r}: {score!r}")
        if answer in answers:
            place.fail(f"'answers' has {answer!r} twice")
        answers[answer] = float(score)
    if not any(answers.values()):
        place.fail("'answers' has no answer with a score above 0")
    return answers


def _optional(row: Row, key: str, place: Place) -> str:
    return "" if row.get(key) is None else text_of(row[key], key, place)


def _needed(row: Row, key: str, place: Place) -> Any:
    if row.get(key) is None:
        place.fail(f"'{key}' is null" if key in row else f"the key '{key}' is missing")
    return row[key]


def _side(row: Row, key: str, place: Place) -> int:
    if row.get(key) is None:
        place.fail(f"the key '{key}' is missing: boxes are pixels of an image of 'width' x 'height'")
    side = need_int(row, key, place)
    if not 1 <= side <= _LARGEST_SIDE:
        place.fail(f"'{key}' must be 1 or more pixels, found {side}")
    return side


def _clean_boxes(row: Row, width: int, height: int, place: Place) -> tuple[Box, ...]:
    boxes = []
    for number, values in enumerate(need_list(row, "boxes", place)):
        try:
            boxes.append(clean_box(values, width, height))
        except BoxError as error:
            place.fail(f"'boxes[{number}]' {error}")
    return tuple(boxes)


def _objects(row: Row, boxes: int, place: Place) -> list[str]:
    if row.get("objects") is None:
        return []
    names = [text_of(name, f"objects[{n}]", place) for n, name in enumerate(need_list(row, "objects", place))]
    if len(names) != boxes:
        place.fail(f"'objects' has {len(names)} entries, and 'boxes' has {boxes}")
    return names


def _segment(text: str, key: str, boxes: int, objects: Sequence[str], place: Place) -> Segment:
    if "](" not in text:
        return Segment(text)
    try:
        return read_links(text, boxes, objects)
    except TagError as error:
        place.fail(
            f"'{key}': {error}",
            hint=r"boxes count from 1; a text that is no link is written with a backslash before it: \[words](1)",
        )


def keys_of(kind: TaskKind) -> tuple[str, ...]:
    """The keys of a line of a task of that kind."""
    return (*_COMMON, *_OWN[kind])
