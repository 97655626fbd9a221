"""What an extraction will store: the identity that names the store, and its plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from madkit.cache.layout import image_layout, text_layout
from madkit.cache.plan import StorePlan
from madkit.core.errors import ConfigError
from madkit.extract.items import ExamplesOfTask, Items
from madkit.extract.selection import stored_tokens
from madkit.teachers.interface import Teacher, TextTeacher, VisionTeacher
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
    vision, text = vision_and_text(teacher)
    return {
        "teacher": teacher.name,
        "vision": vision.identity,
        "text": text.identity,
        "shared_space": teacher.shared_space,
        "logit_scale": round(teacher.logit_scale, 6),
        "compute_dtype": dtype_name(teacher),
        "dtype": dtype,
        "selection": tokens,
        "task": data.spec.name,
        "source": data.source,
        "revision": data.revision,
        "splits": "all" if splits is None else list(splits),
    }


def make_plan(
    vision: VisionTeacher, text: TextTeacher, items: Items, identity: Mapping[str, Any], shard_mb: float
) -> StorePlan:
    """Tokenize all texts to know their lengths, and lay out the store.

    Where texts are read in windows the way of doing so joins the identity: their tokens depend on it.
    """
    lengths = np.zeros(len(items.texts), dtype=np.int64)
    absent: dict[int, str] = {}
    windowed = approximate = 0
    for start in range(0, len(items.texts), TOKENIZE_CHUNK):
        for row, found in enumerate(text.tokenize(items.texts[start : start + TOKENIZE_CHUNK]), start=start):
            lengths[row] = len(found.ids)
            if not found.ids:
                absent[row] = _why_no_tokens(items.texts[row])
            windowed += len(found.ids) > text.limit
            approximate += found.approximate
    return StorePlan(
        identity={**identity, "long_texts": WINDOWS} if windowed else identity,
        image_ids=items.image_ids,
        image_aliases=items.aliases,
        texts=items.texts,
        lengths=lengths,
        images=image_layout(
            len(items.image_ids),
            vision.grid,
            vision.dim,
            shard_mb,
            tokens=stored_tokens(identity["selection"], vision.grid),
            dtype=identity["dtype"],
        ),
        text=text_layout(
            lengths, text.dim, shard_mb, tokens=identity["selection"] != "global", dtype=identity["dtype"]
        ),
        facts={
            "windowed_texts": windowed,
            "texts_with_approximate_spans": approximate,
            "text_tokens": int(lengths.sum()),
        },
        absent_texts=absent,
    )


def _why_no_tokens(text: str) -> str:
    return f"the teacher finds no token in {text[:60]!r}" if text.strip() else "a text is empty"


def vision_and_text(teacher: Teacher) -> tuple[VisionTeacher, TextTeacher]:
    """Return both sides of a teacher (ConfigError when one is missing)."""
    if teacher.vision is None or teacher.text is None:
        reads = "texts" if teacher.vision is None else "images"
        joined = f"dinov2-vit-b14+{teacher.name}" if teacher.vision is None else f"{teacher.name}+roberta-base"
        raise ConfigError(
            f"The teacher '{teacher.name}' reads {reads} only, and a cache needs images and texts.",
            hint=f"join it with another as VISION+TEXT: --teacher {joined}",
        )
    return teacher.vision, teacher.text


def dtype_name(teacher: Teacher) -> str:
    """Name of the dtype that a teacher computes in."""
    return str(teacher.dtype).removeprefix("torch.")
