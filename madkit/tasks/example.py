"""One question about one image, as every floor above the file formats sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Tag:
    """A stretch of text that names one or more boxes of the image.

    `start` and `end` are character offsets into the text of the segment that holds the tag (end excluded), so
    `segment.text[tag.start:tag.end]` is the surface, the class name of the box. `boxes` are 0-based indices into
    `Example.boxes`.
    """

    start: int
    end: int
    boxes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of text (a question, an answer, a hypothesis) with the tags that link it to boxes."""

    text: str
    tags: tuple[Tag, ...] = ()


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image file and the id under which caches and region files keep it. The id is unique within a task."""

    id: str
    path: Path


@dataclass(frozen=True, slots=True)
class Example:
    """One item to answer.

    The model reads `context` (in order) and, where the task offers choices, scores each of `candidates`. `boxes` are
    absolute pixel corners (x1, y1, x2, y2) of an image of `width` x `height` pixels, of which the file may be a copy in
    another size (`madkit.regions.declared` brings the two together); both are 0 where the benchmark's files do not say.
    `label` is the index of the right candidate or class, None where the file does not tell (test sets). `answers` maps
    raw answer strings to soft scores in 0..1 (VQA), `annotations` keeps the annotators' raw answers for the official
    metric, and `main_answer` the one that the benchmark's files call the most frequent. `form` is the kind of question,
    used for stratified scores, never as an input.
    """

    id: str
    task: str
    question_id: str
    image: ImageRef
    context: tuple[Segment, ...]
    candidates: tuple[Segment, ...] = ()
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    width: int = 0
    height: int = 0
    label: int | None = None
    answers: Mapping[str, float] | None = None
    annotations: tuple[str, ...] = ()
    subtask: str = ""
    form: str = ""
    answer_type: str = ""
    main_answer: str = ""

    def texts(self) -> tuple[str, ...]:
        """Every text of the example once, in order of appearance: what a text teacher has to read for it."""
        return tuple(dict.fromkeys(segment.text for segment in (*self.context, *self.candidates)))
