"""The shipped glyph atlas, and its tiles at any size, in integer arithmetic only.

Font rasterisers and image libraries round differently; integer area averages of a shipped bitmap do not, so every
machine draws the same pixels.
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
def area_weights(source: int, target: int) -> npt.NDArray[np.float64]:
    """Overlaps [target, source] of the cells of two grids over one length: whole numbers, each row sums to `source`.

    They are kept as float64 because matrix products of whole numbers below 2^53 are exact there, in any order of
    summation, and several times faster than numpy's integer products.
    """
    edges_source = np.arange(source + 1) * target
    edges_target = np.arange(target + 1) * source
    low = np.maximum(edges_target[:-1, None], edges_source[None, :-1])
    high = np.minimum(edges_target[1:, None], edges_source[None, 1:])
    weights: npt.NDArray[np.float64] = np.maximum(high - low, 0).astype(np.float64)
    return weights


def resize_area(image: npt.NDArray[np.integer], height: int, width: int) -> npt.NDArray[np.int64]:
    """Area average of [H, W] or [H, W, C] integers to [height, width(, C)], rounded half up; exact."""
    rows, columns = image.shape[:2]
    planes = image.astype(np.float64).reshape(rows, columns, -1)
    down = (area_weights(rows, height) @ planes.reshape(rows, -1)).reshape(height, columns, -1)
    both = area_weights(columns, width) @ down
    total = rows * columns
    result: npt.NDArray[np.int64] = (both.astype(np.int64) * 2 + total) // (2 * total)
    return result if image.ndim == 3 else result[:, :, 0]


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
