"""Checks on boxes and features as they come out of a region file: silent swaps of columns end here."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from madkit.core.errors import DataError
from madkit.regions.interface import Floats

TOLERANCE = 5e-3  # of the image's side: what float16 coordinates and inclusive corners may be off


def check_normalised(boxes: NDArray[np.floating], sizes: NDArray[np.floating] | None, where: str) -> Floats:
    """Boxes [n, 4] (x1, y1, x2, y2 as shares of the image) as float32 in 0..1.

    Args:
        boxes: the corners.
        sizes: [n, 2] width and height columns of the same file, to be compared with the corners; None if it has none.
        where: file and image, for the message.

    Raises:
        DataError: values that are no numbers, empty boxes, boxes outside the image, sizes that do not fit the corners.
    """
    corners = np.asarray(boxes, dtype=np.float32)
    if not np.isfinite(corners).all():
        raise DataError(f"{where}: a box holds NaN or infinity.")
    if corners.size and (corners.min() < -TOLERANCE or corners.max() > 1 + TOLERANCE):
        raise DataError(f"{where}: a box lies outside the image (at {corners.min():.4g} to {corners.max():.4g}).")
    if not (corners[:, 2:] > corners[:, :2]).all():
        raise DataError(f"{where}: a box is empty or its columns are not x1, y1, x2, y2.")
    if sizes is not None:
        off = np.abs(np.asarray(sizes, dtype=np.float32) - (corners[:, 2:] - corners[:, :2]))
        if off.size and not off.max() <= TOLERANCE:
            raise DataError(f"{where}: width and height columns do not fit the corners (off by {off.max():.3g}).")
    clipped: Floats = np.clip(corners, 0, 1)
    return clipped


def check_features(features: NDArray[np.floating], where: str) -> Floats:
    """Features [n, dim] as float32. Raises DataError when one is NaN or infinite."""
    vectors = np.asarray(features, dtype=np.float32)
    if not np.isfinite(vectors).all():
        bad = int((~np.isfinite(vectors)).any(axis=1).sum())
        raise DataError(f"{where}: the features of {bad} of {len(vectors)} regions hold NaN or infinity.")
    return vectors


def check_scale(absolute: NDArray[np.floating], normalised: NDArray[np.floating], where: str) -> tuple[float, float]:
    """Width and height in pixels that turn normalised corners into the absolute ones of the same file.

    Raises DataError when no single width and height do so within 1 pixel and half a percent, as when a file has swapped
    width with height or stores its columns in another order.
    """
    pixels = np.asarray(absolute, dtype=np.float64)
    shares = np.asarray(normalised, dtype=np.float64)
    if not np.isfinite(pixels).all():
        raise DataError(f"{where}: an absolute box holds NaN or infinity.")
    sides = []
    for columns in ((0, 2), (1, 3)):
        share, pixel = shares[:, columns].ravel(), pixels[:, columns].ravel()
        side = float(share @ pixel / (share @ share))  # least squares
        if side <= 0 or np.abs(share * side - pixel).max() > 1 + TOLERANCE * side:
            raise DataError(f"{where}: absolute and normalised boxes contradict each other.")
        sides.append(side)
    return sides[0], sides[1]
