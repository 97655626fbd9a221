"""Writing region features in the adaptive HDF5 layout that `butd_hdf5` reads."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from madkit.core.errors import DataError
from madkit.core.files import write_json_atomic
from madkit.regions.butd_hdf5 import ids_path
from madkit.regions.geometry import check_features, check_normalised

Item = tuple[str, NDArray[Any], NDArray[Any], tuple[int, int]]

_BUFFER_ROWS = 8192
_CHUNK_BYTES = 1 << 16
_MARGIN = 8 << 20  # bytes that must stay free: HDF5 writes behind our back, from its cache and for its tables


def write_butd_hdf5(path: Path, items: Iterable[Item], *, dtype: Literal["float16", "float32"] = "float16") -> int:
    """Write regions of many images as they come, in little memory, and the ids beside them.

    The file appears under its name only when it is whole; the ids file comes first, so that one never lies there
    without the other.

    Args:
        path: the HDF5 file to write; an existing one is replaced.
        items: (image id, boxes [n, 4] absolute corners in pixels, features [n, dim], (width, height)) of every image.
        dtype: of the stored features.

    Returns:
        The number of images.

    Raises:
        DataError: a repeated id, shapes that do not fit, boxes outside the image, NaN, no images.
        OSError: the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    rows: dict[str, int] = {}
    try:
        with _Output(temporary, dtype) as output:
            for image_id, boxes, features, (width, height) in items:
                if image_id in rows:
                    raise DataError(f"{path.name}: the image {image_id!r} comes twice.")
                rows[image_id] = len(rows)
                output.add(*_checked(boxes, features, width, height, f"{path.name}, image {image_id}"))
            if not rows:
                raise DataError(f"There are no regions to write to {path}.")
        write_json_atomic(ids_path(path), rows)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return len(rows)


def _checked(
    boxes: NDArray[Any], features: NDArray[Any], width: int, height: int, where: str
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    pixels = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
    if np.ndim(features) != 2 or len(features) != len(pixels):
        raise DataError(f"{where}: {len(pixels)} boxes, but features of shape {np.shape(features)}.")
    if width < 1 or height < 1:
        raise DataError(f"{where}: the image size {width} x {height} is not positive.")
    sides = np.array([width, height, width, height], dtype=np.float32)
    shares: NDArray[np.float32] = pixels / sides
    corners = check_normalised(shares, None, where)
    spatial = np.concatenate([corners, corners[:, 2:] - corners[:, :2]], axis=1)
    return pixels, spatial, check_features(features, where)


class _Output:
    """Collects rows and appends them to the data sets in large pieces."""

    def __init__(self, path: Path, dtype: str) -> None:
        import h5py

        self._path = path
        self._check_room(0)
        self._file = h5py.File(path, "w")
        self._dtype = dtype
        self._limit = float(np.finfo(dtype).max)
        self._buffer: list[tuple[NDArray[Any], ...]] = []
        self._buffered = 0
        self._written = 0
        self._ends: list[int] = [0]

    def add(self, pixels: NDArray[Any], spatial: NDArray[Any], features: NDArray[Any]) -> None:
        if features.size and np.abs(features).max() > self._limit:
            raise DataError(f"A feature value does not fit {self._dtype}.", hint="write the features as float32")
        self._buffer.append((pixels, spatial, features))
        self._buffered += len(pixels)
        self._ends.append(self._ends[-1] + len(pixels))
        if self._buffered >= _BUFFER_ROWS:
            self._flush()

    def _flush(self) -> None:
        if not self._buffer:
            return
        self._check_room(sum(part.nbytes for parts in self._buffer for part in parts))
        names = ("image_bb", "spatial_features", "image_features")
        for name, parts in zip(names, zip(*self._buffer, strict=True), strict=True):
            if len({part.shape[1] for part in parts}) != 1:
                raise DataError("The features of different images have different lengths.")
            block = np.concatenate(parts)
            kind = self._dtype if name == "image_features" else "float32"
            if name not in self._file:
                columns = block.shape[1]
                chunk = max(1, _CHUNK_BYTES // (columns * np.dtype(kind).itemsize))
                self._file.create_dataset(
                    name, shape=(0, columns), maxshape=(None, columns), chunks=(chunk, columns), dtype=kind
                )
            data = self._file[name]
            if block.shape[1] != data.shape[1]:
                raise DataError("The features of different images have different lengths.")
            data.resize(self._written + len(block), axis=0)
            data[self._written :] = block
        self._written += self._buffered
        self._buffer.clear()
        self._buffered = 0

    def _check_room(self, needed: int) -> None:
        """HDF5 does not survive a full disk: it cannot close its file then, and ends the process with a fault."""
        if shutil.disk_usage(self._path.parent).free < needed + _MARGIN:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))

    def __enter__(self) -> _Output:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._flush()
                spans = np.stack([self._ends[:-1], self._ends[1:]], axis=1).astype(np.int32)
                self._file.create_dataset("pos_boxes", data=spans)
        finally:
            self._file.close()
