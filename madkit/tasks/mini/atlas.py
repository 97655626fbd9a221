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

from madkit.regions.area import resize_area

TILE = 48
COLUMNS = 12


@cache
def atlas() -> npt.NDArray[np.uint8]:
    """The whole atlas: uint8 [rows * TILE, COLUMNS * TILE], 255 = ink."""
    data = resources.files(__package__).joinpath("atlas.png").read_bytes()
    return np.asarray(Image.open(io.BytesIO(data)).convert("L"))


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
