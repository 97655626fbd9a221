"""Checks on box coordinates, shared by the readers of images with boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence

Box = tuple[float, float, float, float]

TOLERANCE = 1.0  # pixels that a corner may lie outside the image (rounding, inclusive corners) before it is an error


_NUMBERS = (float, int)  # compared by type: a boolean is no number


class BoxError(ValueError):
    """A box that cannot be in the image; the message is a clause without file and line."""


def clean_box(values: object, width: float, height: float) -> Box:
    """Corners (x1, y1, x2, y2) in pixels from 4 numbers, or 5 with a score last, moved into the image by up to 1 pixel.

    Raises BoxError for other shapes, values that are not finite numbers, corners in the wrong order and boxes outside
    the image.
    """
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) not in (4, 5):
        raise BoxError("must have 4 numbers, or 5 with a score")
    for value in values:
        if type(value) not in _NUMBERS or not math.isfinite(value):
            raise BoxError("holds something that is not a finite number")
    x1, y1, x2, y2 = map(float, values[:4])
    if min(x1, y1) < -TOLERANCE or x2 > width + TOLERANCE or y2 > height + TOLERANCE:
        swapped = " (width and height may be swapped)" if x2 <= height + TOLERANCE and y2 <= width + TOLERANCE else ""
        raise BoxError(f"[{x1:g}, {y1:g}, {x2:g}, {y2:g}] lies outside the image of {width:g} x {height:g}{swapped}")
    x1, y1, x2, y2 = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
    if x2 <= x1 or y2 <= y1:
        raise BoxError(f"[{x1:g}, {y1:g}, {x2:g}, {y2:g}] is empty, x1 < x2 and y1 < y2 are needed")
    return x1, y1, x2, y2
