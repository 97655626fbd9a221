"""Area averages of pixels in exact integer arithmetic: image libraries round differently, whole numbers do not."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt


@lru_cache(maxsize=512)  # the sizes of an image's crops come again and again; of all sizes there are thousands
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
