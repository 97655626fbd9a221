"""Pixels of a scene, in integer arithmetic: textured backgrounds, coloured glyphs, exact boxes.

Two styles: `plain` is what everything is trained on; `shifted` is the rendering-shift suite (outlined glyphs, strong
textures, uneven light and pixel noise).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from madkit.regions.pixels import pixel_features

from .atlas import glyph
from .concepts import COLOURS
from .draw import Draw
from .scene import GRID, ROW_OF, Thing

SIDE = 96
CELL = SIDE // GRID
SMALLEST, LARGEST = 22, 30
STYLES = ("plain", "shifted")
REGION_SIDE = 16
REGION_DIM = REGION_SIDE * REGION_SIDE * 3

Pixels = npt.NDArray[np.uint8]
_ROWS, _COLUMNS = np.mgrid[0:SIDE, 0:SIDE].astype(np.int32)


@dataclass(frozen=True, slots=True)
class Picture:
    """A rendered scene: uint8 pixels [96, 96, 3] and one box a thing, absolute (x1, y1, x2, y2), x2 and y2
    exclusive.
    """

    pixels: Pixels
    boxes: tuple[tuple[int, int, int, int], ...]


def render(things: Sequence[Thing], draw: Draw, style: str = "plain") -> Picture:
    """Draw a scene. The same things, draw stream and style give the same bytes everywhere."""
    shifted = style == "shifted"
    canvas = _background(draw, shifted)
    boxes = []
    for thing in things:
        cover = glyph(thing.concept, draw.between(SMALLEST, LARGEST))
        if shifted:
            cover = _outline(cover)
        height, width = cover.shape
        y = ROW_OF[thing.cell] * CELL + draw.between(0, CELL - height)
        x = (thing.cell % GRID) * CELL + draw.between(0, CELL - width)
        paint = np.asarray(COLOURS[thing.colour].rgb, dtype=np.int64) + draw.between(-12, 12)
        patch = canvas[y : y + height, x : x + width]
        cover3 = cover[:, :, None]
        patch[:] = (patch * (255 - cover3) + np.clip(paint, 0, 255) * cover3 + 127) // 255
        boxes.append((x, y, x + width, y + height))
    if shifted:
        canvas = _uneven_light_and_noise(canvas, draw)
    return Picture(np.clip(canvas, 0, 255).astype(np.uint8), tuple(boxes))


def region_features(picture: Picture) -> npt.NDArray[np.float16]:
    """The embedded "detector": every box resampled to 16 x 16 RGB, in [-0.5, 0.5]. float16 [n, 768].

    It knows nothing of concepts, as a detector's pooled features know little of a new domain; what the pixels
    mean is the student's to learn.
    """
    boxes = np.asarray(picture.boxes, dtype=np.int64).reshape(-1, 4)
    return pixel_features(picture.pixels, boxes, REGION_SIDE).astype(np.float16)


def _background(draw: Draw, shifted: bool) -> npt.NDArray[np.int64]:
    low, high, swing = (120, 205, 34) if shifted else (176, 232, 11)
    base = np.asarray([draw.between(low, high) for _ in range(3)], dtype=np.int64)
    period, phase, kind = draw.between(5, 14), draw.below(SIDE), draw.below(5)
    if kind == 0:
        wave = (_COLUMNS + phase) // period % 2
    elif kind == 1:
        wave = (_ROWS + phase) // period % 2
    elif kind == 2:
        wave = (_ROWS + _COLUMNS + phase) // period % 2
    elif kind == 3:
        wave = (_ROWS // period + (_COLUMNS + phase) // period) % 2
    else:
        wave = ((_ROWS % period - period // 2) ** 2 + ((_COLUMNS + phase) % period - period // 2) ** 2) < period
    levels = np.stack([base - swing, base + swing])
    canvas: npt.NDArray[np.int64] = levels[wave.astype(np.intp)]
    return canvas


def _outline(cover: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Keep a rim of two pixels of the glyph and a fifth of its inside."""
    padded = np.pad(cover, 2)
    inside = cover.copy()
    for dy, dx in ((0, 2), (4, 2), (2, 0), (2, 4), (1, 1), (3, 3), (1, 3), (3, 1)):
        inside = np.minimum(inside, padded[dy : dy + cover.shape[0], dx : dx + cover.shape[1]])
    return cover - inside * 4 // 5


def _uneven_light_and_noise(canvas: npt.NDArray[np.int64], draw: Draw) -> npt.NDArray[np.int64]:
    slope_x, slope_y = draw.between(-20, 20), draw.between(-20, 20)
    light = slope_x * (_COLUMNS - SIDE // 2) // SIDE + slope_y * (_ROWS - SIDE // 2) // SIDE
    noise = draw.state.randint(-14, 15, size=(SIDE, SIDE, 1))
    result: npt.NDArray[np.int64] = canvas + light[:, :, None] + noise
    return result
