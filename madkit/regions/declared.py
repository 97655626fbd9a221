"""Boxes and the size of the picture that they are meant in: the file's, a copy's, or the file's as viewers turn it.

Everywhere else boxes are read as shares of that declared size; here they meet the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from madkit.core.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

Size = tuple[int, int]

_ORIENTATION = 0x0112  # of the EXIF note
_QUARTER_TURNS = (5, 6, 7, 8)  # its values that swap width and height
HINT = "mend 'width' and 'height' and import again; madkit data check TASK --deep looks at every picture"


@dataclass(frozen=True, slots=True)
class DeclaredBoxes:
    """Corners (x1, y1, x2, y2) in pixels of a picture of `size` (width, height); (0, 0): in the file's own pixels."""

    corners: tuple[tuple[float, float, float, float], ...]
    size: Size


def joined(first: DeclaredBoxes, other: DeclaredBoxes) -> DeclaredBoxes:
    """The boxes of one image that two lines name, each once, in the size that the first line declares."""
    corners = other.corners
    if first.size != other.size:
        if 0 in (*first.size, *other.size):  # in the file's own pixels here, in a copy's there: nobody can tell
            return first
        scale = np.array(first.size * 2) / np.array(other.size * 2)
        corners = tuple((box[0], box[1], box[2], box[3]) for box in (np.array(corners) * scale).tolist())
    return DeclaredBoxes(tuple(dict.fromkeys((*first.corners, *corners))), first.size)


class Fit(Enum):
    """How a declared size agrees with an image file."""

    SAME = "same"
    SCALED = "scaled"  # that of a smaller or larger copy
    TURNED = "turned"  # that of the picture as its EXIF note turns it, or of a copy of it
    NONE = "none"


def fit_of(picture: Image.Image, size: Size) -> Fit:
    """Compare an opened image, which is looked at as it is stored, with the size that is declared for it."""
    if size == picture.size:
        return Fit.SAME
    across = picture.size[1], picture.size[0]
    # of a nearly square picture both ways fit a copy's size up to rounding
    if _off(across, size) < _off(picture.size, size) and _is_copy(across, size) and _is_turned(picture):
        return Fit.TURNED
    return Fit.SCALED if _is_copy(picture.size, size) else Fit.NONE


def placed(picture: Image.Image, boxes: DeclaredBoxes, where: str) -> tuple[Image.Image, npt.NDArray[np.float64]]:
    """A picture and its boxes in the picture's own pixels.

    A picture that only its EXIF note brings to the declared shape is turned, as the boxes' owner saw it; every other
    one stays as it is stored.

    Args:
        picture: as opened, before any conversion.
        boxes: without any, the declared size is not looked at.
        where: the file, for the message.

    Raises:
        DataError: the picture is no copy of one of the declared size.
    """
    corners = np.asarray(boxes.corners, dtype=np.float64).reshape(-1, 4)
    if not len(corners) or 0 in boxes.size:
        return picture, corners
    fit = fit_of(picture, boxes.size)
    if fit is Fit.NONE:
        raise DataError(f"{difference(picture, boxes.size, where)}.", hint=HINT)
    if fit is Fit.TURNED:
        from PIL import ImageOps

        picture = ImageOps.exif_transpose(picture)
    # multiplied first: 3 of 9 pixels are 32 of 96, and not a little more, which would touch one pixel more
    return picture, corners * np.array(picture.size * 2) / np.array(boxes.size * 2)


def difference(picture: Image.Image, size: Size, where: str) -> str:
    """What to say of a picture of another size than the declared one; no full stop."""
    return f"{where} is {picture.width} x {picture.height}, the data say {size[0]} x {size[1]}"


def _off(one: Size, other: Size) -> int:
    """0 where the sides are in the same proportion."""
    return abs(one[0] * other[1] - one[1] * other[0])


def _is_copy(one: Size, other: Size) -> bool:
    """Whether one is the other resized in proportion, with sides rounded by up to a pixel."""
    return _off(one, other) <= max(sum(one), sum(other))


def _is_turned(picture: Image.Image) -> bool:
    try:
        return picture.getexif().get(_ORIENTATION) in _QUARTER_TURNS
    except Exception:  # a damaged note (OSError, SyntaxError, struct.error ...) turns nothing, as in viewers
        return False
