"""Per-channel mean and variance, gathered shard by shard.

Every shard stores its own mean and variance; those of the store follow from them (Chan, Golub and LeVeque 1983), in the
order of the shards, so that a resumed extraction ends with the same numbers to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
TOKEN_MEAN, TOKEN_VAR, GLOBAL_MEAN, GLOBAL_VAR = range(4)
BLOCK_ROWS = 8192


def moments(rows: npt.NDArray[np.float16]) -> Float64:
    """Return [2, D], mean and population variance over the rows of [n, D]; zeros for no rows."""
    n, dim = rows.shape
    if n == 0:
        return np.zeros((2, dim))
    total = np.zeros(dim)
    for start in range(0, n, BLOCK_ROWS):
        total += rows[start : start + BLOCK_ROWS].astype(np.float64).sum(axis=0)
    mean = total / n
    squares = np.zeros(dim)
    for start in range(0, n, BLOCK_ROWS):
        squares += np.square(rows[start : start + BLOCK_ROWS].astype(np.float64) - mean).sum(axis=0)
    return np.stack([mean, squares / n])


def merge_moments(counts: Sequence[int], parts: Sequence[Float64]) -> Float64:
    """Merge the [2, D] moments of parts with ``counts`` rows each into those of all rows."""
    count = 0
    merged: Float64 | None = None
    for n, part in zip(counts, parts, strict=True):
        if merged is None:
            count, merged = n, part.astype(np.float64)
            continue
        if n == 0:
            continue
        both = count + n
        delta = part[0] - merged[0]
        mean = merged[0] + delta * (n / both)
        squares = merged[1] * count + part[1] * n + delta**2 * (count * n / both)
        count, merged = both, np.stack([mean, squares / both])
    if merged is None:
        raise ValueError("there is nothing to merge")
    return merged
