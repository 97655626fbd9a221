"""One image's record of UNITER's and VILLA's image stores, which their `.npz` files and both kinds of LMDB share.

`norm_bb` [n, 6]: x1, y1, x2, y2, width, height as shares of the image; `features` [n, dim]; `conf` [n, 1]: highest
class score; `soft_labels` [n, classes], not read here. All float16 in the originals. Ports exist that swap the last two
columns or keep pixels; they are refused, because a model would read them without a complaint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from madkit.core.errors import DataError
from madkit.regions.assemble import from_shares
from madkit.regions.geometry import TOLERANCE
from madkit.regions.interface import Regions
from madkit.regions.selection import Selection

KEYS = ("norm_bb", "features", "conf")


def uniter_regions(record: Mapping[str, NDArray[Any]], selection: Selection, where: str) -> Regions:
    """Checked regions of a record, boxes selected.

    Raises DataError when arrays are missing or have wrong shapes, boxes that cannot be right, NaN; the message says
    which known mistake it looks like.
    """
    for key in KEYS[:2]:
        if key not in record:
            raise DataError(f"{where}: the array '{key}' is missing.")
    located, features, confidence = record["norm_bb"], record["features"], record.get("conf")
    if located.ndim != 2 or located.shape[1] not in (6, 7):
        raise DataError(f"{where}: 'norm_bb' has the shape {located.shape}, not [n, 6].")
    columns = located.astype(np.float32)
    corners, sides = columns[:, :4], columns[:, 4:6]
    _refuse_ports(corners, sides, where)
    # float16 rounds the two corners of a very narrow box to one number; its width column still knows better
    flat = (corners[:, 2:] == corners[:, :2]) & (sides > 0)
    corners = np.concatenate([corners[:, :2], np.where(flat, corners[:, :2] + sides, corners[:, 2:])], axis=1)
    if located.shape[1] == 7 and not np.allclose(columns[:, 6], sides.prod(axis=1), atol=TOLERANCE):
        raise DataError(f"{where}: the seventh column of 'norm_bb' is not width times height.")
    regions = from_shares(corners, sides, features, confidence, where)
    return selection.apply(regions, where, stored=np.float32 if confidence is None else confidence.dtype)


def _refuse_ports(corners: NDArray[np.float32], sides: NDArray[np.float32], where: str) -> None:
    """Name the known mistakes of other tools' files, which the general checks would only call impossible."""
    if not np.isfinite(corners).all() or not len(corners):
        return
    if corners.min() >= 0 and corners.max() > 2:
        raise DataError(
            f"{where}: 'norm_bb' holds pixels (up to {corners.max():.4g}), not shares of the image.",
            hint="divide x1, x2 and the width by the image's width, y1, y2 and the height by its height",
        )
    true = corners[:, 2:] - corners[:, :2]
    if _close(sides, true):
        return
    if _close(sides[:, ::-1], true):
        raise DataError(
            f"{where}: the columns of 'norm_bb' must be x1, y1, x2, y2, width, height, "
            "but 4 and 5 are height and width (or the corners are y1, x1, y2, x2).",
            hint="find out which pair is swapped, and swap it back: norm_bb[:, [0, 1, 2, 3, 5, 4]] for the first",
        )
    if _close(sides, corners[:, 2:]):
        raise DataError(f"{where}: the columns 2 and 3 of 'norm_bb' are width and height, they must be x2 and y2.")


def _close(left: NDArray[np.float32], right: NDArray[np.float32]) -> bool:
    return bool((np.abs(left - right) <= TOLERANCE).all())
