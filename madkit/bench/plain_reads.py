"""One image of a region file in the fewest lines, nothing checked: the floor that madkit's readers are held against."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from madkit.regions.butd_hdf5 import ids_path
from madkit.regions.tsv_index import open_index

Arrays = tuple[np.ndarray[Any, Any], ...]


class Plain(Protocol):
    """Boxes and features of an image."""

    def get(self, image_id: str) -> Arrays: ...  # noqa: D102


class PlainTsv:
    """A TSV whose row offsets are known (madkit's index holds them)."""

    def __init__(self, path: Path) -> None:
        index = open_index(path)
        places = zip(index.starts.tolist(), index.lengths.tolist(), strict=True)
        self._rows: dict[str, tuple[int, int]] = dict(zip(index.ids, places, strict=True))
        self._descriptor = os.open(path, os.O_RDONLY)

    def get(self, image_id: str) -> Arrays:
        """Decode the row: boxes, features, confidences."""
        start, length = self._rows[image_id]
        cells = os.pread(self._descriptor, length, start).split(b"\t")
        count = int(cells[7])
        boxes = np.frombuffer(base64.b64decode(cells[8]), "<f4").reshape(count, 4)
        features = np.frombuffer(base64.b64decode(cells[9]), "<f4").reshape(count, -1)
        return boxes, features, np.frombuffer(base64.b64decode(cells[4]), "<f4")


class PlainNpz:
    """A folder of npz files and `np.load`."""

    def __init__(self, path: Path) -> None:
        self._folder = path

    def get(self, image_id: str) -> Arrays:
        """Load the file: boxes, features, confidences as float32."""
        with np.load(self._folder / image_id) as file:
            return tuple(file[name].astype(np.float32) for name in ("norm_bb", "features", "conf"))


class PlainHdf5:
    """An adaptive HDF5 file and h5py's slices."""

    def __init__(self, path: Path) -> None:
        import h5py

        self._file = h5py.File(path, "r")
        self._rows: dict[str, int] = json.loads(ids_path(path).read_bytes())
        self._spans = self._file["pos_boxes"][:]

    def get(self, image_id: str) -> Arrays:
        """Slice the data sets: boxes and features as float32."""
        start, end = self._spans[self._rows[image_id]]
        return tuple(self._file[name][start:end].astype(np.float32) for name in ("spatial_features", "image_features"))


PLAIN: dict[str, Callable[[Path], Plain]] = {
    "lxmert-tsv": PlainTsv,
    "uniter-npz": PlainNpz,
    "butd-hdf5": PlainHdf5,
}
