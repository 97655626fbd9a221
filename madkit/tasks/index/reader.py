"""Reading examples out of their columns, one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from madkit.tasks.example import Example, Segment, Tag
from madkit.tasks.index.columns import NO_LABEL, TAG_FIELDS, soft_scores
from madkit.tasks.index.files import open_batch
from madkit.tasks.index.images import StoredImages


class ExampleTable(Sequence[Example]):
    """The examples of a split. Opening reads nothing; an example is made anew each time it is asked for.

    Args:
        path: the Arrow file.
        images: the data set's images.
        task: name of the task, which the file does not hold.
    """

    def __init__(self, path: Path, images: StoredImages, task: str) -> None:
        batch = open_batch(path)
        self._images = images
        self._task = task
        self._count: int = batch.num_rows
        self._ids, self._question_ids = batch.column("id"), batch.column("question_id")
        self.image_rows: NDArray[np.int32] = batch.column("image").to_numpy()
        self._contexts = batch.column("n_context").to_numpy()
        self._labels = batch.column("label").to_numpy()
        self._answered = batch.column("answered").to_numpy()
        self._texts = _TextLists(batch.column("texts"))
        self._given = _TextLists(batch.column("annotations"))
        self._soft = _TextLists(batch.column("soft_answers"))
        self._soft_scores = batch.column("soft_scores").values.to_numpy()
        tags = batch.column("tags")
        self._tag_ends, self._tags = tags.offsets.to_numpy(), tags.values.to_numpy()
        self._kinds = {name: _Words(batch.column(name)) for name in ("subtask", "form", "answer_type", "main_answer")}

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self._example(row) for row in range(*index.indices(self._count))]
        row = index + self._count if index < 0 else index
        if not 0 <= row < self._count:
            raise IndexError(f"example {index} of {self._count}")
        return self._example(row)

    def __iter__(self) -> Iterator[Example]:
        return map(self._example, range(self._count))

    @cached_property
    def question_count(self) -> int:
        """Distinct questions; the examples of one stand together."""
        ids = self._question_ids.fill_null("") if self._question_ids.null_count else self._question_ids
        own: int = self._question_ids.null_count
        return own + len(set(ids.to_pylist()) - ({""} if own else set()))

    def image_ids(self) -> list[str]:
        """Ids of the images, each once, in order of appearance."""
        rows = dict.fromkeys(self.image_rows.tolist())
        return list(dict.fromkeys(self._images.id(row) for row in rows))

    def _example(self, row: int) -> Example:
        identity = self._ids[row].as_py()
        image, boxes, width, height = self._images.get(int(self.image_rows[row]))
        texts = self._texts.get(row)
        segments = [Segment(text) for text in texts]
        if self._tag_ends[row + 1] > self._tag_ends[row]:
            self._put_tags(row, segments)
        context = int(self._contexts[row])
        given = tuple(self._given.get(row))
        answers = None
        if self._answered[row]:
            names = self._soft.get(row)
            if names:
                start = self._soft.start(row)
                answers = dict(zip(names, self._soft_scores[start : start + len(names)].tolist(), strict=True))
            else:
                answers = soft_scores(given)
        label = int(self._labels[row])
        return Example(
            id=identity,
            task=self._task,
            question_id=self._question_ids[row].as_py() or identity,
            image=image,
            context=tuple(segments[:context]),
            candidates=tuple(segments[context:]),
            boxes=boxes,
            width=width,
            height=height,
            label=None if label == NO_LABEL else label,
            answers=answers,
            annotations=given,
            subtask=self._kinds["subtask"].get(row),
            form=self._kinds["form"].get(row),
            answer_type=self._kinds["answer_type"].get(row),
            main_answer=self._kinds["main_answer"].get(row),
        )

    def _put_tags(self, row: int, segments: list[Segment]) -> None:
        flat = self._tags[self._tag_ends[row] : self._tag_ends[row + 1]].tolist()
        spans: dict[int, dict[tuple[int, int], list[int]]] = {}
        for number, start, end, box in zip(*(iter(flat),) * TAG_FIELDS, strict=True):
            spans.setdefault(number, {}).setdefault((start, end), []).append(box)
        for number, found in spans.items():
            tags = tuple(Tag(start, end, tuple(boxes)) for (start, end), boxes in found.items())
            segments[number] = Segment(segments[number].text, tags)


class _Words:
    """A column of repeated strings, whose distinct values are few."""

    def __init__(self, column: pa.Array) -> None:
        self._rows = column.indices.to_numpy()
        self._words = column.dictionary
        self._made: dict[int, str] = {}

    def get(self, row: int) -> str:
        place = int(self._rows[row])
        word = self._made.get(place)
        if word is None:
            word = self._made[place] = self._words[place].as_py()
        return word


class _TextLists:
    """A column of lists of strings that stand in a dictionary."""

    def __init__(self, column: pa.Array) -> None:
        self._ends = column.offsets.to_numpy()
        self._rows = column.values.indices.to_numpy()
        self._texts = column.values.dictionary

    def start(self, row: int) -> int:
        return int(self._ends[row])

    def get(self, row: int) -> list[str]:
        places = self._rows[self._ends[row] : self._ends[row + 1]].tolist()
        return [self._texts[place].as_py() for place in places]
