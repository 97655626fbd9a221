"""Folders of MMF's and Pythia's features: `<image>.npy` [n, dim] and `<image>_info.npy`, a pickled dictionary.

The dictionary holds `bbox` [n, 4] (corners in pixels of the original image), `num_boxes`, `objects`, `cls_prob`
[n, classes], `image_width` and `image_height`. The extractor pads the boxes that survive its suppression (`num_boxes`
of them, by falling confidence) with suppressed ones up to a fixed number. The confidence is the highest class
probability, as the extractor takes it, and 0 for the padding.
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
from madkit.regions.numpy_files import read_npy, read_npy_object

_INFO = "_info.npy"
_WITH_BACKGROUND = 1601  # columns of `cls_prob` where the background, the first, was not cut off


class MmfNpyReader(KeyedReader):
    """Reads `<folder>/<image>.npy` (also in subfolders) on demand; the id is the path below it without `.npy`."""

    _expects = "two files per image, <image>.npy with the features and <image>_info.npy with the boxes"

    def _list_ids(self) -> list[str]:
        names = list_tree(self._path, ".npy")
        return [name.removesuffix(".npy") for name in names if not name.endswith(_INFO)]

    def _read(self, image_id: str) -> Regions:
        features = read_npy(self._path / f"{image_id}.npy")
        path = self._path / f"{image_id}{_INFO}"
        where = str(path)
        info = read_npy_object(path)
        if not isinstance(info, dict):
            raise DataError(f"{where}: there is no dictionary in it.")
        for key in ("bbox", "image_width", "image_height"):
            if key not in info:
                raise DataError(f"{where}: the key '{key}' is missing.")
        size = image_size(info["image_width"], info["image_height"], where)
        boxes = _numbers(info, "bbox", where)
        if boxes.ndim == 2 and features.ndim == 2 and len(features) > len(boxes):
            # some extractors pad the features alone; what stands behind the last box must be padding
            if features[len(boxes) :].any():
                raise DataError(f"{where}: {len(boxes)} boxes, but features of shape {features.shape}.")
            features = features[: len(boxes)]
        confidence = _confidence(info, len(boxes), where)
        return self._selection.apply(from_pixels(boxes, features, confidence, size, where), where)


def _numbers(info: dict[str, Any], key: str, where: str) -> NDArray[Any]:
    values = np.asarray(info[key])
    if values.dtype.kind not in "fiu":
        raise DataError(f"{where}: '{key}' holds no numbers.")
    return values


def _confidence(info: dict[str, Any], count: int, where: str) -> NDArray[Any] | None:
    if info.get("cls_prob") is None:
        return None
    shares = _numbers(info, "cls_prob", where)
    if shares.ndim != 2 or len(shares) != count or shares.shape[1] == 0:
        raise DataError(f"{where}: {count} boxes, but 'cls_prob' has the shape {shares.shape}.")
    best: NDArray[Any] = shares[:, 1 if shares.shape[1] == _WITH_BACKGROUND else 0 :].max(axis=1)
    survived = info.get("num_boxes", count)
    if not isinstance(survived, int | np.integer) or not 0 <= survived <= count:
        raise DataError(f"{where}: 'num_boxes' is {survived!r}, but there are {count} boxes.")
    return np.where(np.arange(count) < survived, best, 0)
