"""What an extraction will store: the identity that names the store, and its plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from madkit.cache.layout import ImageLayout, TextLayout, image_layout, text_layout
from madkit.cache.plan import NO_IMAGES, NO_TEXTS, StorePlan
from madkit.extract.items import ExamplesOfTask, Items
from madkit.extract.selection import stored_tokens
from madkit.extract.views import keeps_views
from madkit.teachers.interface import Teacher
from madkit.teachers.mixed import arithmetic_of
from madkit.teachers.windows import WINDOWS

TOKENIZE_CHUNK = 8192


def store_identity(
    teacher: Teacher,
    data: ExamplesOfTask,
    splits: Sequence[str] | None,
    *,
    tokens: str = "all",
    dtype: str = "float16",
) -> dict[str, Any]:
    """Return what decides the content of a store, as plain JSON values; its digest is the store's key."""
    return {
        "teacher": teacher.name,
        "vision": None if teacher.vision is None else teacher.vision.identity,
        "text": None if teacher.text is None else teacher.text.identity,
        "shared_space": teacher.shared_space,
        "logit_scale": round(teacher.logit_scale, 6),
        "compute_dtype": arithmetic_of(teacher),
        "dtype": dtype,
        "selection": tokens,
        "task": data.spec.name,
        "source": data.source,
        "revision": data.revision,
        "splits": "all" if splits is None else list(splits),
    }


def make_plan(teacher: Teacher, items: Items, identity: Mapping[str, Any], shard_mb: float) -> StorePlan:
    """Tokenize all texts to know their lengths, and lay out the store; a side that the teacher lacks has no part in it.

    Where texts are read in windows the way of doing so joins the identity: their tokens depend on it.
    """
    lengths = np.zeros(len(items.texts), dtype=np.int64)
    absent: dict[int, str] = {}
    windowed = approximate = 0
    for start in range(0, len(items.texts) if teacher.text is not None else 0, TOKENIZE_CHUNK):
        assert teacher.text is not None
        found = teacher.text.tokenize(items.texts[start : start + TOKENIZE_CHUNK])
        for row, one in enumerate(found, start=start):
            lengths[row] = len(one.ids)
            if not one.ids:
                absent[row] = _why_no_tokens(items.texts[row])
            windowed += len(one.ids) > teacher.text.limit
            approximate += one.approximate
    images, text = lay_out(teacher, items, lengths, identity["selection"], identity["dtype"], shard_mb)
    return StorePlan(
        identity={**identity, "long_texts": WINDOWS} if windowed else identity,
        image_ids=items.image_ids,
        image_aliases=items.aliases,
        texts=items.texts,
        lengths=lengths,
        images=images,
        text=text,
        facts={
            "windowed_texts": windowed,
            "texts_with_approximate_spans": approximate,
            "text_tokens": int(lengths.sum()),
        },
        absent_texts=absent,
    )


def lay_out(
    teacher: Teacher, items: Items, lengths: npt.NDArray[np.int64], tokens: str, dtype: str, shard_mb: float
) -> tuple[ImageLayout, TextLayout]:
    """Return the sizes of both parts for texts of ``lengths`` tokens; those of an absent side are empty."""
    images, text = NO_IMAGES, NO_TEXTS
    if teacher.vision is not None:
        kept = stored_tokens(tokens, teacher.vision.grid)
        n, grid, dim = len(items.image_ids), teacher.vision.grid, teacher.vision.dim
        views = keeps_views(teacher.vision)
        images = image_layout(n, grid, dim, shard_mb, tokens=kept, dtype=dtype, views=views)
    if teacher.text is not None:
        text = text_layout(lengths, teacher.text.dim, shard_mb, tokens=tokens != "global", dtype=dtype)
    return images, text


def _why_no_tokens(text: str) -> str:
    return f"the teacher finds no token in {text[:60]!r}" if text.strip() else "a text is empty"
