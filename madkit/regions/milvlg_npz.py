"""Folders of `.npz` files from MILVLG's bottom-up-attention.pytorch, one per image; the id is the name without `.npz`.

`x` [n, dim], `bbox` [n, 4] corners in pixels of the original image, `image_h`, `image_w`, `num_bbox`, and `info`, a
pickled dictionary whose `objects_conf` are the confidences. Boxes are in the detector's order, not by confidence.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from madkit.core.errors import DataError
from madkit.regions.assemble import from_pixels, image_size
from madkit.regions.file_tree import list_tree
from madkit.regions.interface import Regions
from madkit.regions.keyed import KeyedReader
from madkit.regions.numpy_files import read_npz, read_npz_object

_ARRAYS = ("x", "bbox", "image_w", "image_h", "num_bbox")


class MilvlgNpzReader(KeyedReader):
    """Reads `<folder>/<image>.npz` (also in subfolders) on demand."""

    _expects = "one .npz file per image with the arrays x, bbox, image_w and image_h"

    def _list_ids(self) -> list[str]:
        return [name.removesuffix(".npz") for name in list_tree(self._path, ".npz")]

    def _read(self, image_id: str) -> Regions:
        path = self._path / f"{image_id}.npz"
        where = str(path)
        record = read_npz(path, _ARRAYS, where)
        for key in _ARRAYS[:4]:
            if key not in record:
                raise DataError(f"{where}: the array '{key}' is missing.")
        size = image_size(record["image_w"], record["image_h"], where)
        confidence = _confidence(read_npz_object(path, "info", where), where)
        regions = from_pixels(record["bbox"], record["x"], confidence, size, where)
        claimed, count = record.get("num_bbox"), len(regions.boxes)
        if claimed is not None and claimed.size == 1 and claimed.item() != count:
            raise DataError(f"{where}: 'num_bbox' is {claimed.item()}, but there are {count} boxes.")
        return self._selection.apply(regions, where)


def _confidence(info: Any, where: str) -> NDArray[Any] | None:
    if info is None:
        return None
    if not isinstance(info, dict):
        raise DataError(f"{where}: 'info' holds no dictionary.")
    scores = info.get("objects_conf")
    if scores is None:
        return None
    values = np.asarray(scores)
    if values.dtype.kind not in "fiu":
        raise DataError(f"{where}: 'objects_conf' in 'info' holds no numbers.")
    return values
