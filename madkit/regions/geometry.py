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


def check_absolute(pixels: NDArray[np.floating], width: float, height: float, where: str) -> Floats:
    """Boxes [n, 4] (x1, y1, x2, y2 in pixels) as shares of the image, 0..1.

    Boxes that do not fit are tried in the orders in which files are known to go wrong, so that the message can say
    what is swapped.

    Args:
        pixels: the corners.
        width: of the image, in pixels.
        height: of the image, in pixels.
        where: file and image, for the message.

    Raises:
        DataError: a size that is not positive, values that are no numbers, empty boxes, boxes outside the image.
    """
    if not (np.isfinite((width, height)).all() and width >= 1 and height >= 1):
        raise DataError(f"{where}: the image size {width:g} x {height:g} is not positive.")
    corners = np.asarray(pixels, dtype=np.float64).reshape(-1, 4)
    sides = np.array([width, height, width, height], dtype=np.float64)
    if np.isfinite(corners).all() and not _fits(corners, sides):
        if _fits(corners, sides[[1, 0, 3, 2]]):
            raise DataError(
                f"{where}: a box lies outside the image of {width:g} x {height:g}, but all fit {height:g} x {width:g}: "
                "width and height (or x and y) are swapped.",
                hint="open the file under the name of the layout that it really has",
            )
        as_sizes = np.concatenate([corners[:, :2], corners[:, :2] + corners[:, 2:]], axis=1)
        if (corners[:, 2:] < corners[:, :2]).any() and _fits(as_sizes, sides):
            raise DataError(
                f"{where}: the columns of the boxes look like x, y, width, height and not like x1, y1, x2, y2."
            )
    with np.errstate(over="ignore"):  # beyond float32 means infinite, which the next check names
        shares = (corners / sides).astype(np.float32)
    return check_normalised(shares, None, where)


def _fits(corners: NDArray[np.floating], sides: NDArray[np.floating]) -> bool:
    """Whether boxes [n, 4] are corners, in order and inside an image of the given sides (w, h, w, h)."""
    inside = (corners >= -TOLERANCE * sides).all() and (corners <= (1 + TOLERANCE) * sides).all()
    return bool(inside and (corners[:, 2:] > corners[:, :2]).all())


def check_confidence(confidence: NDArray[np.floating], count: int, where: str) -> Floats:
    """Detector scores of `count` regions as float32 [count]. Raises DataError for another number of them, or NaN."""
    scores = np.asarray(confidence, dtype=np.float32).reshape(-1)
    if len(scores) != count:
        raise DataError(f"{where}: {count} boxes, but {len(scores)} confidences.")
    if not np.isfinite(scores).all():
        raise DataError(f"{where}: a confidence is NaN or infinite.")
    return scores
