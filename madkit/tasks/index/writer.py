"""Writing the examples of one split as columns."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from madkit.core.errors import DataError
from madkit.tasks.example import Example, Segment
from madkit.tasks.index.columns import FROM_ANNOTATORS, NO_ANSWERS, NO_LABEL, STORED, TAG_FIELDS, soft_scores
from madkit.tasks.index.files import write_batch
from madkit.tasks.index.images import ImageTable


class _Strings(dict[str, int]):
    """Distinct strings, numbered in the order in which they come: `strings[text]` is the number of a text."""

    def __missing__(self, text: str) -> int:
        number = self[text] = len(self)
        return number

    def column(self, rows: array[int]) -> pa.Array:
        return pa.DictionaryArray.from_arrays(
            pa.array(np.frombuffer(rows, dtype=np.int32)), pa.array(list(self), pa.string())
        )


class ExampleWriter:
    """Takes examples one by one and writes them as `<name>.arrow`, about 100 bytes each and every text once.

    Args:
        folder: where the file goes.
        name: the split.
        images: the table that all splits of the data set share.

    Attributes:
        count: examples so far.
        balance: number of examples per label, or per answer type where there is one.
    """

    def __init__(self, folder: Path, name: str, images: ImageTable) -> None:
        self.path = folder / f"{name}.arrow"
        self.count = 0
        self.balance: Counter[str] = Counter()
        self._images = images
        self._ids: list[str] = []
        self._question_ids: list[str | None] = []
        self._last_question = ""
        self._questions: set[str] = set()
        self._image = array("i")
        self._texts, self._answers = _Strings(), _Strings()
        self._kinds = {name: _Strings() for name in ("subtask", "form", "answer_type")}
        self._kind_rows = {name: array("i") for name in self._kinds}
        self._segments, self._segment_ends, self._contexts = array("i"), array("i", [0]), array("b")
        self._tags, self._tag_ends = array("i"), array("i", [0])
        self._labels = array("h")
        self._main = array("i")
        self._given, self._given_ends = array("i"), array("i", [0])
        self._soft, self._soft_values, self._soft_ends = array("i"), array("d"), array("i", [0])
        self._answered = array("b")

    @property
    def questions(self) -> int:
        """Distinct questions so far."""
        return len(self._questions)

    @property
    def image_rows(self) -> set[int]:
        """Rows of the image table that the examples are about."""
        return set(self._image)

    def add(self, example: Example) -> None:
        """Add an example. Raises DataError for one whose texts or tags do not fit the columns."""
        self.count += 1
        self._ids.append(example.id)
        self._questions.add(example.question_id)
        self._question_ids.append(None if example.question_id == example.id else example.question_id)
        self._image.append(self._images.row_of(example))
        for number, segment in enumerate((*example.context, *example.candidates)):
            self._segments.append(self._texts[segment.text])
            if segment.tags:
                self._add_tags(number, segment)
        self._segment_ends.append(len(self._segments))
        self._tag_ends.append(len(self._tags))
        if len(example.context) > 100:
            raise DataError(f"The example {example.id} has a context of {len(example.context)} texts; 100 are allowed.")
        self._contexts.append(len(example.context))
        self._labels.append(NO_LABEL if example.label is None else example.label)
        for name, strings in self._kinds.items():
            self._kind_rows[name].append(strings[getattr(example, name)])
        self._add_answers(example)
        self.balance[example.answer_type or ("" if example.label is None else str(example.label))] += 1

    def _add_tags(self, number: int, segment: Segment) -> None:
        for tag in segment.tags:
            for box in tag.boxes:
                self._tags.extend((number, tag.start, tag.end, box))

    def _add_answers(self, example: Example) -> None:
        rows, answers, given = self._answers, example.answers, example.annotations
        self._main.append(rows[example.main_answer])
        self._given.extend([rows[answer] for answer in given])
        self._given_ends.append(len(self._given))
        # Scores that follow from the annotators' answers are not stored a second time.
        follows = bool(given) and (answers is soft_scores(given) or answers == soft_scores(given))
        self._answered.append(NO_ANSWERS if answers is None else FROM_ANNOTATORS if follows else STORED)
        if answers is not None and not follows:
            for answer, score in answers.items():
                self._soft.append(rows[answer])
                self._soft_values.append(score)
        self._soft_ends.append(len(self._soft))

    def write(self) -> str:
        """Write the file and return the digest (64 hex digits) of what the examples say, wherever their images lie."""
        columns: dict[str, pa.Array] = {
            "id": pa.array(self._ids, pa.string()),
            "question_id": pa.array(self._question_ids, pa.string()),
            "image": _numbers(self._image),
            "n_context": _numbers(self._contexts),
            "texts": _lists(self._segment_ends, self._texts.column(self._segments)),
            "tags": _lists(self._tag_ends, _numbers(self._tags)),
            "label": _numbers(self._labels),
            **{name: strings.column(self._kind_rows[name]) for name, strings in self._kinds.items()},
            "main_answer": self._answers.column(self._main),
            "annotations": _lists(self._given_ends, self._answers.column(self._given)),
            "answered": _numbers(self._answered),
            "soft_answers": _lists(self._soft_ends, self._answers.column(self._soft)),
            "soft_scores": _lists(self._soft_ends, _numbers(self._soft_values)),
        }
        write_batch(self.path, columns)
        return self._digest()

    def _digest(self) -> str:
        digest = hashlib.sha256(f"{TAG_FIELDS}".encode())
        for strings in (self._ids, [one or "" for one in self._question_ids], list(self._texts)):
            _update(digest, strings)
        for table in (self._answers, *self._kinds.values()):
            _update(digest, list(table))
        columns: list[array[Any]] = [
            *(self._contexts, self._segments, self._segment_ends, self._tags, self._tag_ends, self._labels, self._main),
            *(self._given, self._given_ends, self._answered, self._soft, self._soft_values, self._soft_ends),
            *self._kind_rows.values(),
        ]
        for numbers in columns:
            digest.update(f"{len(numbers)}:".encode())
            digest.update(numbers.tobytes())
        # Numbers of image rows depend on the splits written before; what they stand for does not.
        order = list(dict.fromkeys(self._image))
        digest.update(self._images.content_of(order))
        place = {row: number for number, row in enumerate(order)}
        digest.update(array("i", [place[row] for row in self._image]).tobytes())
        return digest.hexdigest()


def _update(digest: hashlib._Hash, strings: list[str]) -> None:
    digest.update(f"{len(strings)}:".encode())
    digest.update("\0".join(strings).encode("utf-8", "surrogatepass"))


_TYPES = {"b": np.int8, "h": np.int16, "i": np.int32, "d": np.float64}


def _numbers(values: array[int] | array[float]) -> pa.Array:
    return pa.array(np.frombuffer(values, dtype=_TYPES[values.typecode]))


def _lists(ends: array[int], values: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(_numbers(ends), values)
