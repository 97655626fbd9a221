"""How long an extraction would take, measured: a few real items go the whole way, into a store that is thrown away.

A run has a cost that does not grow with its items: threads and streams begin, page-locked buffers are taken, files are
synced. On a GPU, where a thousand images take a third of a second, it may be most of what a small sample takes. Samples
of two sizes tell it apart, so that it is counted once, whatever the number of items.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from madkit.cache.plan import PARTS, Part
from madkit.cache.writer import StoreWriter
from madkit.extract.encoding import encode_missing
from madkit.extract.items import Items
from madkit.extract.options import IMAGE_BATCH, TEXT_BATCH_TOKENS, ExtractOptions
from madkit.extract.pipeline import one_thread_per_operation
from madkit.extract.planning import make_plan, store_identity
from madkit.extract.text_encoding import SPECIAL
from madkit.tasks.data import TaskData
from madkit.teachers.interface import Teacher

MEASURED_S = 3.0
"""About how long the largest sample of each part takes, at most."""
FIRST = {"images": 1, "texts": 8}
"""Items of the smallest sample on a CPU, for each core; on a GPU it is a full batch."""
BATCHES = 4
"""Full batches of the largest sample."""
GROWTH = 4
"""How many times as large as the sample before the next one is, at most."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a warm-up took for one part.

    Attributes:
        items: images or texts that were measured, after a few that were not.
        tokens: tokens of the texts; 0 for images.
        batches: forward passes.
        batch: most images, or most tokens of texts, in one of them.
        seconds: how long they took: decoding, encoding and writing.
        fixed: those of them that any number of items would take.
    """

    items: int
    tokens: int
    batches: int
    batch: int
    seconds: float
    fixed: float = 0.0

    def seconds_for(self, times: float) -> float:
        """How long so many times the sample would take."""
        return self.fixed + times * (self.seconds - self.fixed)

    def as_row(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "seconds": round(self.seconds, 4), "fixed": round(self.fixed, 4)}


def warm_up(
    teacher: Teacher, data: TaskData, items: Items, rows: Mapping[Part, Sequence[int]], options: ExtractOptions
) -> dict[Part, Measured]:
    """Encode samples of items with the live teacher, for each part until one takes about 3 s or holds four batches.

    The smallest one goes first and is not counted: it loads kernels, fills caches, and has the shape of a whole batch
    on a GPU. Then it is measured, and larger ones are, each up to four times as large.

    Args:
        teacher: on its device.
        data: the task's examples.
        items: all items.
        rows: those still to be done, for each part.
        options: as for the extraction; nothing is compiled, which would take longer than the sample.
    """
    options = replace(options, compile="off")
    kind = torch.device(teacher.device).type
    found: dict[Part, Measured] = {}
    for part in PARTS:
        if not len(rows[part]):
            continue
        side = replace(teacher, text=None) if part == "images" else replace(teacher, vision=None)
        each = 1.0 if part == "images" else _mean_length(side, items, rows[part])
        limit = _limit(part, options, kind)
        run = _Runs(part, side, data, items, rows[part], options, limit, each)
        first = FIRST[part] * run.cores if kind == "cpu" else max(1, int(limit / each))
        most = min(len(rows[part]), max(GROWTH * first, int(BATCHES * limit / each)))
        uncounted = run(min(first, most))
        hurry = min(1.0, MEASURED_S / uncounted.seconds)  # on a slow GPU a full batch is too much to go on with
        small = large = run(_even(int(hurry * uncounted.items), run.cores, most))
        while larger := _larger(large, most, run.cores, second=large is small):
            large = run(larger)
        fixed = _fixed(small, large)
        full = min(limit, large.size)
        batches = math.ceil(large.size / limit)
        found[part] = Measured(large.items, large.tokens, batches, full, large.seconds, fixed)
    return found


@dataclass(frozen=True, slots=True)
class _Sample:
    """A run: its items, the tokens of its texts, what it takes time for (images or tokens), and the seconds."""

    items: int
    tokens: int
    size: int
    seconds: float


@dataclass(frozen=True, slots=True)
class _Runs:
    """Runs of one part. `limit` images or tokens make a batch; an item has `each` of them."""

    part: Part
    teacher: Teacher
    data: TaskData
    items: Items
    rows: Sequence[int]
    options: ExtractOptions
    limit: int
    each: float

    @property
    def cores(self) -> int:
        """Batches at a time."""
        return torch.get_num_threads() if torch.device(self.teacher.device).type == "cpu" else 1

    def __call__(self, count: int) -> _Sample:
        chosen = _sample(self.items, self.part, self.rows, count)
        seconds, tokens = _run(self.teacher, self.data, chosen, self._options(count))
        count = len(chosen.image_ids) + len(chosen.texts)
        size = count if self.part == "images" else tokens + SPECIAL * count
        return _Sample(count, tokens, size, max(seconds, 1e-6))

    def _options(self, count: int) -> ExtractOptions:
        """On a CPU batches so small that every core has one, as in an extraction."""
        if torch.device(self.teacher.device).type != "cpu":
            return self.options
        batch = min(self.limit, math.ceil(count * self.each / self.cores))
        if self.part == "images":
            return replace(self.options, image_batch=batch)
        return replace(self.options, text_tokens=batch)


def _limit(part: Part, options: ExtractOptions, kind: str) -> int:
    """Images, or tokens of texts, of a batch."""
    if part == "images":
        return options.image_batch or IMAGE_BATCH.get(kind, 32)
    return options.text_tokens or TEXT_BATCH_TOKENS.get(kind, 2048)


def _larger(last: _Sample, most: int, cores: int, *, second: bool) -> int:
    """Items of the next sample; 0 where the last was large enough. There is a second one wherever there can be."""
    growth = min(GROWTH, MEASURED_S / last.seconds)
    if second:
        growth = max(2.0, growth)
    count = int(growth * last.items)
    return 0 if growth < 2 or last.items >= most else _even(count, cores, most)


def _even(count: int, cores: int, most: int) -> int:
    """About `count` items, of which every core has as many."""
    return min(most, max(cores, count - count % cores))


def _fixed(small: _Sample, large: _Sample) -> float:
    """Seconds that samples of both sizes have in common; 0 where no such part can be told from the noise."""
    if large.size <= small.size or large.seconds <= small.seconds:
        return 0.0
    slope = (large.seconds - small.seconds) / (large.size - small.size)
    return max(0.0, large.seconds - slope * large.size)


def _sample(items: Items, part: Part, rows: Sequence[int], count: int) -> Items:
    """Take items at equal distances, so that those of every length and size are among them."""
    places = np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))
    chosen = [rows[place] for place in places.tolist()]
    if part == "texts":
        return Items((), (), {}, tuple(items.texts[row] for row in chosen))
    gone = {place: items.not_there[row] for place, row in enumerate(chosen) if row in items.not_there}
    ids, paths = tuple(items.image_ids[row] for row in chosen), tuple(items.image_paths[row] for row in chosen)
    return Items(ids, paths, {}, (), gone)


def _mean_length(teacher: Teacher, items: Items, rows: Sequence[int]) -> float:
    if teacher.text is None:
        return 1.0
    tokenized = teacher.text.tokenize(_sample(items, "texts", rows, 64).texts)
    return SPECIAL + sum(len(text.ids) for text in tokenized) / len(tokenized)


def _run(teacher: Teacher, data: TaskData, items: Items, options: ExtractOptions) -> tuple[float, int]:
    """Extract some items into a folder that goes away; return the seconds of it and the number of text tokens."""
    identity = store_identity(teacher, data, None, tokens=options.tokens, dtype=options.store_dtype)
    plan = make_plan(teacher, items, {**identity, "source": "a sample"}, options.shard_mb)
    with (
        tempfile.TemporaryDirectory(prefix="madkit-dry-run-") as folder,
        StoreWriter(Path(folder) / "store", plan) as writer,
        one_thread_per_operation(teacher.device) as parallel,
    ):
        started = time.perf_counter()
        encode_missing(writer, teacher, items, options, None, parallel)
        return time.perf_counter() - started, int(plan.lengths.sum())
