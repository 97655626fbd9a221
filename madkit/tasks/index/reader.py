"""Reading examples out of their columns, one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import overload

from madkit.tasks.example import Example, Segment, Tag
from madkit.tasks.index.columns import FROM_ANNOTATORS, NO_LABEL, STORED, TAG_FIELDS, soft_scores
from madkit.tasks.index.files import open_batch
from madkit.tasks.index.images import StoredImages
from madkit.tasks.index.strings import Strings, TextLists, Words, floats, integers, offsets


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
        self._ids, self._question_ids = Strings(batch.column("id")), Strings(batch.column("question_id"))
        self._image_rows = integers(batch.column("image"))
        self._contexts = integers(batch.column("n_context"))
        self._labels = integers(batch.column("label"))
        self._answered = integers(batch.column("answered"))
        self._texts = TextLists(batch.column("texts"))
        # few answers are distinct, and a million are given
        self._given = TextLists(batch.column("annotations"), keep=True)
        self._soft = TextLists(batch.column("soft_answers"), keep=True)
        self._soft_scores = floats(batch.column("soft_scores").values)
        tags = batch.column("tags")
        self._tag_ends, self._tags = offsets(tags), integers(tags.values)
        self._subtask, self._form = Words(batch.column("subtask")), Words(batch.column("form"))
        self._answer_type, self._main_answer = Words(batch.column("answer_type")), Words(batch.column("main_answer"))

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

    def question_id(self, row: int) -> str:
        """The question that an example belongs to."""
        return self._question_ids[row] or self._ids[row]

    def image_id(self, row: int) -> str:
        """The image that an example is about."""
        return self._images.id(self._image_rows[row])

    def stratum(self, row: int) -> str:
        """What low-shot subsets keep in proportion: the answer type where there is one, else the label."""
        label = self._labels[row]
        return self._answer_type.get(row) or ("" if label == NO_LABEL else str(label))

    @property
    def has_main_answers(self) -> bool:
        """Whether every example has a main answer."""
        return bool(self._count) and all(self._main_answer.get(row) for row in range(self._count))

    def main_answers(self) -> Iterator[str]:
        """The main answer of every example."""
        return map(self._main_answer.get, range(self._count))

    def _example(self, row: int) -> Example:
        identity = self._ids[row]
        image, boxes, width, height = self._images.get(self._image_rows[row])
        texts = self._texts.get(row)
        segments = [Segment(text) for text in texts]
        if self._tag_ends[row + 1] > self._tag_ends[row]:
            self._put_tags(row, segments)
        context = self._contexts[row]
        given = tuple(self._given.get(row))
        answers: Mapping[str, float] | None = None
        if self._answered[row] == FROM_ANNOTATORS:
            answers = soft_scores(given)
        elif self._answered[row] == STORED:
            names, start = self._soft.get(row), self._soft.start(row)
            answers = dict(zip(names, self._soft_scores[start : start + len(names)].tolist(), strict=True))
        label = self._labels[row]
        return Example(
            id=identity,
            task=self._task,
            question_id=self._question_ids[row] or identity,
            image=image,
            context=tuple(segments[:context]),
            candidates=tuple(segments[context:]),
            boxes=boxes,
            width=width,
            height=height,
            label=None if label == NO_LABEL else label,
            answers=answers,
            annotations=given,
            subtask=self._subtask.get(row),
            form=self._form.get(row),
            answer_type=self._answer_type.get(row),
            main_answer=self._main_answer.get(row),
        )

    def _put_tags(self, row: int, segments: list[Segment]) -> None:
        flat = self._tags[self._tag_ends[row] : self._tag_ends[row + 1]].tolist()
        spans: dict[int, dict[tuple[int, int], list[int]]] = {}
        for number, start, end, box in zip(*(iter(flat),) * TAG_FIELDS, strict=True):
            spans.setdefault(number, {}).setdefault((start, end), []).append(box)
        for number, found in spans.items():
            tags = tuple(Tag(start, end, tuple(boxes)) for (start, end), boxes in found.items())
            segments[number] = Segment(segments[number].text, tags)
