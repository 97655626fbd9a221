"""A region TSV of any size with made-up boxes and features, in LXMERT's layout and with its row length."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from madkit.regions.new_files import new_file

BOXES, DIM = 36, 2048
ROW_BYTES = 395_200  # roughly, of a row
_VARIANTS = 8  # rows are one of so many, under ids of their own: encoding each anew would take minutes


def write_lxmert_file(path: Path, size: int, *, seed: int = 0, advance: Callable[[int], None] | None = None) -> int:
    """Write rows until the file has `size` bytes, four at least; the file appears when it is whole.

    Args:
        path: the file.
        size: bytes.
        seed: of boxes and features; the same arguments give the same bytes.
        advance: called with the bytes of every row.

    Returns:
        The number of rows.
    """
    draw = np.random.default_rng(seed)
    variants = [_columns(draw) for _ in range(_VARIANTS)]
    rows = written = 0
    with new_file(path) as temporary, temporary.open("wb") as file:
        while written < size or rows < 4:
            row = f"COCO_train2014_{9 + 2 * rows:012d}".encode() + variants[int(draw.integers(_VARIANTS))]
            file.write(row)
            rows, written = rows + 1, written + len(row)
            if advance is not None:
                advance(len(row))
    return rows


def _columns(draw: np.random.Generator) -> bytes:
    """A row from the image's height on."""
    width, height = (int(side) for side in draw.integers(300, 641, size=2))
    corners = np.sort(draw.random((BOXES, 2, 2)), axis=1)  # [box, low and high, x and y]
    corners[:, 1] += 0.01
    boxes = (corners / 1.02).reshape(BOXES, 4) * [width, height, width, height]
    features = np.maximum(draw.normal(0, 1, (BOXES, DIM)), 0)
    confidence = draw.uniform(0.1, 1, BOXES)  # not sorted, as in the original files
    cells: list[Any] = [
        height,
        width,
        _base64(draw.integers(0, 1600, BOXES), "<i8"),
        _base64(confidence, "<f4"),
        _base64(draw.integers(0, 400, BOXES), "<i8"),
        _base64(draw.uniform(0, 1, BOXES), "<f4"),
        BOXES,
        _base64(boxes, "<f4"),
        _base64(features, "<f4"),
    ]
    return "".join(f"\t{cell}" for cell in cells).encode() + b"\n"


def _base64(values: np.ndarray[Any, Any], dtype: str) -> str:
    return base64.b64encode(values.astype(dtype).tobytes()).decode("ascii")
