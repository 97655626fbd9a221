"""From the arrays of one image, as a file holds them, to checked `Regions`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from madkit.core.errors import DataError
from madkit.regions.geometry import check_absolute, check_confidence, check_features, check_normalised
from madkit.regions.interface import Regions

_LONGEST_SIDE = 1_000_000  # pixels


def image_size(width: object, height: object, where: str) -> tuple[int, int]:
    """(width, height) from whatever kind of number a file holds. Raises DataError when it is no image's size."""
    sides = []
    for name, value in (("width", width), ("height", height)):
        try:
            number = float(np.asarray(value).reshape(()))
        except (TypeError, ValueError):
            raise DataError(f"{where}: the image's {name} is {str(value)[:40]!r}, no number.") from None
        if not math.isfinite(number) or not 1 <= number <= _LONGEST_SIDE or number != int(number):
            raise DataError(f"{where}: the image's {name} cannot be {number:g} pixels.")
        sides.append(int(number))
    return sides[0], sides[1]


def from_shares(
    boxes: NDArray[Any], sizes: NDArray[Any] | None, features: NDArray[Any], confidence: NDArray[Any] | None, where: str
) -> Regions:
    """Regions of boxes [n, 4] that are shares of the image already.

    Args:
        boxes: x1, y1, x2, y2.
        sizes: [n, 2] width and height of the boxes as the file has them, None if it has none.
        features: [n, dim].
        confidence: [n] or [n, 1], None if the file has none.
        where: file and image, for the message.

    Raises:
        DataError: wrong shapes, numbers of boxes that differ, boxes that cannot be right, NaN.
    """
    count = _count(boxes, features, where)
    return Regions(
        check_normalised(boxes, sizes, where),
        check_features(features, where),
        None if confidence is None else check_confidence(confidence, count, where),
    )


def from_pixels(
    boxes: NDArray[Any],
    features: NDArray[Any],
    confidence: NDArray[Any] | None,
    size: tuple[int, int],
    where: str,
) -> Regions:
    """Regions of boxes [n, 4] in pixels of an image of `size` (width, height). Raises DataError like `from_shares`."""
    count = _count(boxes, features, where)
    return Regions(
        check_absolute(boxes, *size, where),
        check_features(features, where),
        None if confidence is None else check_confidence(confidence, count, where),
        size,
    )


def _count(boxes: NDArray[Any], features: NDArray[Any], where: str) -> int:
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise DataError(f"{where}: boxes of shape {boxes.shape}, not [n, 4].")
    # without boxes, files that say the length of a feature only by the number of bytes do not say it
    if features.ndim != 2 or len(features) != len(boxes) or (features.shape[1] == 0 and len(boxes)):
        raise DataError(f"{where}: {len(boxes)} boxes, but features of shape {features.shape}.")
    return len(boxes)
