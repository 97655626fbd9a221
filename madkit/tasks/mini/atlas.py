"""The shipped glyph atlas, and its tiles at any size, in integer arithmetic only.

Font rasterisers and image libraries round differently; integer area averages of a shipped bitmap do not, so every machine
draws the same pixels.
"""

from __future__ import annotations

import io
from functools import cache, lru_cache
from importlib import resources

import numpy as np
import numpy.typing as npt
from PIL import Image

TILE = 48
COLUMNS = 12


@cache
def atlas() -> npt.NDArray[np.uint8]:
    """The whole atlas: uint8 [rows * TILE, COLUMNS * TILE], 255 = ink."""
    data = resources.files(__package__).joinpath("atlas.png").read_bytes()
    return np.asarray(Image.open(io.BytesIO(data)).convert("L"))


@cache
def area_weights(source: int, target: int) -> npt.NDArray[np.int64]:
    """Integer overlaps [target, source] of the cells of two grids over one length; each row sums to `source`.

    Divide by `source` after use: the sums are exact before that one rounding.
    """
    edges_source = np.arange(source + 1) * target
    edges_target = np.arange(target + 1) * source
    low = np.maximum(edges_target[:-1, None], edges_source[None, :-1])
    high = np.minimum(edges_target[1:, None], edges_source[None, 1:])
    return np.maximum(high - low, 0).astype(np.int64)


def resize_area(image: npt.NDArray[np.integer], height: int, width: int) -> npt.NDArray[np.int64]:
    """Area average of [H, W] or [H, W, C] integers to [height, width(, C)], rounded half up; exact integer arithmetic."""
    rows, columns = image.shape[:2]
    wide = np.einsum("hs,s...->h...", area_weights(rows, height), image.astype(np.int64))
    both = np.einsum("wt,ht...->hw...", area_weights(columns, width), wide)
    total = rows * columns
    return (both * 2 + total) // (2 * total)


@lru_cache(maxsize=4096)
def glyph(index: int, size: int) -> npt.NDArray[np.int64]:
    """Coverage 0..255 of a concept's glyph, its ink cropped, the longer side `size` pixels: int64 [h, w]."""
    row, column = divmod(index, COLUMNS)
    tile = atlas()[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
    ys, xs = np.nonzero(tile > 24)
    ink = tile[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    longer = max(ink.shape)
    height = max(3, (ink.shape[0] * size + longer // 2) // longer)
    width = max(3, (ink.shape[1] * size + longer // 2) // longer)
    return resize_area(ink, height, width)
