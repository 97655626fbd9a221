"""A made-up training set for `madkit bench distill`: examples of a given shape, their regions, and a token cache.

Everything is drawn from a fixed seed and goes through the same code as a run's own data: examples are encoded by the
student's tokenizer, the cache is a real store, its tokens are aligned to the student's. Every word is a token of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from madkit.cache.layout import DEFAULT_SHARD_MB, image_layout, text_layout
from madkit.cache.plan import StorePlan
from madkit.cache.writer import StoreWriter
from madkit.core.errors import NotFoundError
from madkit.regions import Regions
from madkit.students.heads import HeadSpec
from madkit.students.student import Student
from madkit.tasks.example import Example, ImageRef, Segment, Tag

SEED = 0
_SIZE = 512  # pixels of an image's side
_TAGS = 3


@dataclass(frozen=True, slots=True)
class Shape:
    """How large an example is.

    Attributes:
        task: whose head: ``vcr`` (four candidates), ``snli-ve`` (three classes) or ``vqa`` (answers).
        text: tokens of a sequence, special ones included.
        regions: of an image.
    """

    task: str
    text: int
    regions: int

    @property
    def candidates(self) -> int:
        """Sequences of an example."""
        return 4 if self.task == "vcr" else 1

    @property
    def tokens(self) -> int:
        """Tokens and regions of an example."""
        return self.candidates * (self.text + self.regions)

    def head(self) -> HeadSpec:
        """What a student of the task decides between."""
        if self.task == "vcr":
            return HeadSpec("multiple-choice")
        if self.task == "snli-ve":
            return HeadSpec("classification", ("entailment", "neutral", "contradiction"))
        return HeadSpec("vqa", tuple(f"answer {number}" for number in range(3129)))


SHAPES = {"vcr": Shape("vcr", 80, 43), "snli-ve": Shape("snli-ve", 20, 36), "vqa": Shape("vqa", 12, 36)}
"""Tokens and regions of usual examples of the real benchmarks."""
MINI_SHAPES = {"vcr": Shape("vcr", 18, 5), "snli-ve": Shape("snli-ve", 12, 4), "vqa": Shape("vqa", 11, 4)}
"""The same of the embedded benchmark, on average."""


def made_up_examples(shape: Shape, student: Student, count: int) -> list[Example]:
    """`count` labelled examples of `shape`, no two texts of which are the same, an image of its own for each.

    Words are whole tokens of the student's vocabulary, so a text has as many tokens as words.
    """
    draw = np.random.default_rng(SEED)
    words = [word for word in student.tokenizer.lines if word.isascii() and word.isalpha() and len(word) > 1]
    two = shape.candidates > 1
    room = shape.text - (3 if two else 2)

    def text(length: int) -> str:
        return " ".join(words[place] for place in draw.integers(0, len(words), length).tolist())

    examples = []
    for number in range(count):
        boxes = tuple(tuple(box) for box in (_boxes(shape.regions, number) * _SIZE).tolist())
        first = room // 3 if two else room
        question = text(first)
        answer = {f"answer {int(draw.integers(3129))}": 1.0} if shape.task == "vqa" else None
        examples.append(
            Example(
                id=f"example-{number}",
                task=shape.task,
                question_id=f"question-{number}",
                image=ImageRef(f"image-{number}", Path(f"image-{number}.jpg")),
                context=(Segment(question, _tags(question, shape.regions) if two else ()),),
                candidates=tuple(Segment(text(room - first)) for _ in range(shape.candidates)) if two else (),
                boxes=boxes,
                width=_SIZE,
                height=_SIZE,
                label=None if shape.task == "vqa" else int(draw.integers(shape.candidates if two else 3)),
                answers=answer,
            )
        )
    return examples


def _tags(text: str, regions: int) -> tuple[Tag, ...]:
    """The first words of a text as tags of the first regions."""
    tags, start = [], 0
    for number, word in enumerate(text.split()[: min(_TAGS, regions)]):
        tags.append(Tag(start, start + len(word), (number,)))
        start += len(word) + 1
    return tuple(tags)


def _boxes(regions: int, image: int) -> npt.NDArray[np.float32]:
    draw = np.random.default_rng((SEED, image))
    corner = draw.random((regions, 2), dtype=np.float32) * 0.6
    return np.concatenate([corner, corner + 0.1 + 0.3 * draw.random((regions, 2), dtype=np.float32)], 1)


class MadeUpRegions:
    """Region features of made-up images, the same each time that they are asked for."""

    def __init__(self, shape: Shape, dim: int, count: int) -> None:
        self.dim = dim
        self._regions, self._count = shape.regions, count

    def ids(self) -> Sequence[str]:
        """The ids of all images."""
        return [f"image-{number}" for number in range(self._count)]

    def get(self, image_id: str) -> Regions:
        """The regions of an image (NotFoundError for an unknown id)."""
        name, _, number = image_id.partition("-")
        if name != "image" or int(number) >= self._count:
            raise NotFoundError(f"There is no made-up image {image_id}.")
        draw = np.random.default_rng((SEED, int(number), 1))
        features = draw.standard_normal((self._regions, self.dim), dtype=np.float32)
        return Regions(_boxes(self._regions, int(number)), features)

    def get_many(self, image_ids: Sequence[str]) -> list[Regions]:
        """The regions of many images."""
        return [self.get(one) for one in image_ids]

    def close(self) -> None:
        """There is nothing to close."""


def write_cache(folder: Path, examples: Sequence[Example], *, dim: int, grid: tuple[int, int], kept: int) -> Path:
    """A store of random tokens of a made-up CLIP-like teacher for `examples`.

    Args:
        folder: where.
        examples: whose images and texts.
        dim: width of all vectors.
        grid: patches down and across.
        kept: patches that are kept of each image, the first ones and so on evenly.
    """
    draw = np.random.default_rng(SEED)
    ids = list(dict.fromkeys(example.image.id for example in examples))
    texts = list(dict.fromkeys(text for example in examples for text in example.texts()))
    spans = [_word_spans(text) for text in texts]
    lengths = np.asarray([len(found) for found in spans], dtype=np.int64)
    cells = grid[0] * grid[1]
    kept = min(kept, cells)
    identity = {
        "teacher": "made-up", "task": "bench", "source": "bench", "revision": "bench",
        "shared_space": True, "logit_scale": 100.0, "grid": list(grid),
    }  # fmt: skip
    plan = StorePlan(
        identity, ids, {}, texts, lengths,
        image_layout(len(ids), grid, dim, DEFAULT_SHARD_MB, tokens=kept),
        text_layout(lengths, dim, DEFAULT_SHARD_MB), {},
    )  # fmt: skip
    places = np.linspace(0, cells - 1, kept).astype(np.int32)

    def tokens(*shape: int) -> npt.NDArray[np.float16]:
        return draw.standard_normal((*shape, dim), dtype=np.float32).astype(np.float16)

    with StoreWriter(folder, plan) as writer:
        for unit in writer.pending("images"):
            n = len(plan.items("images", unit))
            arrays: dict[str, npt.NDArray[Any]] = {"tokens": tokens(n, kept), "globals": tokens(n)}
            if kept < cells:
                arrays["positions"] = np.broadcast_to(places, (n, kept)).copy()
            writer.write_unit("images", unit, arrays)
        for unit in writer.pending("texts"):
            rows = plan.items("texts", unit)
            found = [np.asarray(spans[row], dtype=np.int32).reshape(-1, 2) for row in rows]
            arrays = {"tokens": tokens(sum(map(len, found))), "globals": tokens(len(rows))}
            writer.write_unit("texts", unit, {**arrays, "spans": np.concatenate(found)})
        writer.finish(seconds=0.0)
    return folder


def _word_spans(text: str) -> list[tuple[int, int]]:
    spans, start = [], 0
    for word in text.split():
        spans.append((start, start + len(word)))
        start += len(word) + 1
    return spans
