"""How long an extraction would take, measured: a few real items go the whole way, into a store that is thrown away."""

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
from madkit.tasks.data import TaskData
from madkit.teachers.interface import Teacher

MEASURED_S = 3.0
"""About how long is measured for each part."""
FIRST = {"images": 2, "texts": 8}
"""Items that go first and are not counted: they load kernels and fill caches."""
BATCHES = 2


@dataclass(frozen=True, slots=True)
class Measured:
    """What a warm-up took for one part.

    Attributes:
        items: images or texts that were measured, after a few that were not.
        tokens: tokens of the texts; 0 for images.
        batches: forward passes.
        batch: most images, or most tokens of texts, in one of them.
        seconds: how long they took: decoding, encoding and writing.
    """

    items: int
    tokens: int
    batches: int
    batch: int
    seconds: float

    def as_row(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "seconds": round(self.seconds, 4)}


def warm_up(
    teacher: Teacher, data: TaskData, items: Items, rows: Mapping[Part, Sequence[int]], options: ExtractOptions
) -> dict[Part, Measured]:
    """Encode a sample of items with the live teacher, at most about 3 s and two full batches for each part.

    Args:
        teacher: on its device.
        data: the task's examples.
        items: all items.
        rows: those still to be done, for each part.
        options: as for the extraction; nothing is compiled, which would take longer than the sample.
    """
    options = replace(options, compile="off")
    kind = torch.device(teacher.device).type
    limits = {"images": options.image_batch or IMAGE_BATCH.get(kind, 32)}
    limits["texts"] = options.text_tokens or TEXT_BATCH_TOKENS.get(kind, 2048)
    found: dict[Part, Measured] = {}
    for part in PARTS:
        if not len(rows[part]):
            continue
        one_sided = replace(teacher, text=None) if part == "images" else replace(teacher, vision=None)
        first, _ = _run(one_sided, data, _sample(items, part, rows[part], FIRST[part]), options)
        each = max(first / min(FIRST[part], len(rows[part])), 1e-6)
        most = BATCHES * limits[part]
        if part == "texts":
            most = max(FIRST[part], int(most / _mean_length(one_sided, items, rows[part])))
        chosen = _sample(items, part, rows[part], max(FIRST[part], min(most, int(MEASURED_S / each))))
        seconds, tokens = _run(one_sided, data, chosen, options)
        count = len(chosen.image_ids) + len(chosen.texts)
        full = count if part == "images" else tokens + 2 * count  # two special tokens each
        found[part] = Measured(count, tokens, math.ceil(full / limits[part]), min(limits[part], full), seconds)
    return found


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
    return 2 + sum(len(text.ids) for text in tokenized) / len(tokenized)


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
