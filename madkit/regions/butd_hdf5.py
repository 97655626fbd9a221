"""HDF5 files of bottom-up-attention features, as hengyuan-hu's and the BAN code write them.

Fixed layout (36 boxes an image): `image_features` [images, k, dim], `image_bb` [images, k, 4], `spatial_features`
[images, k, 6]. Adaptive layout: the same with all boxes of all images in one first axis, and `pos_boxes` int32
[images, 2] with the first row of each image and the one behind its last. `image_bb` are absolute corners;
`spatial_features` are x1, y1, x2, y2, width, height as shares of the image. Which row belongs to which image stands
in a file beside it, {image id: row}: `<stem>_imgid2idx.pkl` in the originals, a Python 2 pickle with numbers as ids,
which the restricted unpickler reads; madkit writes `<stem>_imgid2idx.json`, and prefers it where both are there.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from madkit.core.errors import DataError, NotFoundError
from madkit.core.files import read_json
from madkit.core.registry import suggest
from madkit.regions.geometry import check_features, check_normalised, check_scale
from madkit.regions.interface import Regions
from madkit.regions.safe_pickle import load_pickle

if TYPE_CHECKING:
    import h5py


Array = NDArray[Any]

_SETS = ("image_bb", "spatial_features", "image_features")
_SIZE_ERROR = 0.05  # pixels; float32 columns give a size within 0.001
_LONGEST_RUN = 4096  # boxes (fixed layout: images) that `get_many` reads at once


def ids_path(path: Path) -> Path:
    """The file with the image ids that madkit writes beside an HDF5 file; the originals have a `.pkl` of that name."""
    return path.with_name(f"{path.stem}_imgid2idx.json")


class ButdHdf5Reader:
    """Reads regions lazily, one image at a time. Safe for threads, and for processes forked after opening."""

    def __init__(self, path: Path) -> None:
        """Open the file and check its layout. Raises NotFoundError or DataError."""
        self._path = path
        self._lock = threading.Lock()
        self._file: h5py.File | None = None
        self._sets: tuple[Any, ...] = ()
        self._pid = -1
        if not path.is_file():
            raise NotFoundError(f"The region file {path} does not exist.")
        ids_file, self._rows = self._read_ids()
        with self._lock:
            file = self._opened()
            self.adaptive = "pos_boxes" in file
            images = self._check_layout(file)
            self._spans = self._read_spans(file) if self.adaptive else []
            self._dim = int(file["image_features"].shape[-1])
        if len(self._rows) != images or set(self._rows.values()) != set(range(images)):
            raise DataError(f"{ids_file} does not number the {images} images of {path.name} from 0, each once.")

    @property
    def dim(self) -> int:
        """Length of a feature vector."""
        return self._dim

    def ids(self) -> Sequence[str]:
        """The ids of all images, in the file's order."""
        return sorted(self._rows, key=self._rows.__getitem__)

    def get(self, image_id: str) -> Regions:
        """The regions of an image.

        Raises NotFoundError for an unknown id, DataError naming the image for boxes out of order or outside the image,
        contradicting columns, NaN.
        """
        row = self._row(image_id)
        with self._lock:
            pixels, spatial, features = self._read(*self._span(row))
        return _checked(pixels, spatial, features, f"{self._path}, image {image_id}")

    def get_many(self, image_ids: Sequence[str]) -> list[Regions]:
        """The regions of many images, in their order, as `get` gives them; neighbours in the file are read together."""
        spans = {image_id: self._span(self._row(image_id)) for image_id in image_ids}
        found: dict[str, Regions] = {}
        for run in _runs(spans):
            first = spans[run[0]][0]
            with self._lock:
                blocks = self._read(first, spans[run[-1]][1])
            for image_id in run:
                start, stop = (position - first for position in spans[image_id])
                pixels, spatial, features = (block[start:stop] for block in blocks)
                found[image_id] = _checked(pixels, spatial, features, f"{self._path}, image {image_id}")
        return [found[image_id] for image_id in image_ids]

    def close(self) -> None:
        """Close the file; a later `get` opens it again."""
        with self._lock:
            if self._file is not None and self._pid == os.getpid():
                self._file.close()
            self._file, self._sets = None, ()

    def _row(self, image_id: str) -> int:
        row = self._rows.get(image_id)
        if row is None:
            raise NotFoundError(f"{self._path} has no image {image_id!r}.{suggest(image_id, list(self._rows)[:2000])}")
        return row

    def _span(self, row: int) -> tuple[int, int]:
        """First box of an image and the one behind its last (fixed layout: the image's own row)."""
        return self._spans[row] if self._spans else (row, row + 1)

    def _read(self, start: int, stop: int) -> tuple[Array, Array, Array]:
        """Boxes, spatial columns and features of a stretch of the first axis; the caller holds the lock."""
        self._opened()
        try:
            pixels, spatial, features = (data[start:stop] for data in self._sets)
        except OSError as error:
            raise DataError(f"{self._path}: the file is damaged ({error}).") from None
        return pixels, spatial, features

    def _opened(self) -> h5py.File:
        """The open file; a forked child opens its own, because HDF5 handles do not survive a fork."""
        import h5py

        if self._file is None or self._pid != os.getpid():
            try:
                self._file = h5py.File(self._path, "r")
            except OSError as error:
                raise DataError(f"{self._path} is no readable HDF5 file ({error}).") from None
            self._sets = tuple(self._file.get(name) for name in _SETS)
            self._pid = os.getpid()
        return self._file

    def _read_ids(self) -> tuple[Path, dict[str, int]]:
        """The file with the ids, and what it says."""
        path = ids_path(self._path)
        pickled = path.with_suffix(".pkl")
        if path.is_file():
            rows = read_json(path)
            if not isinstance(rows, dict) or not all(type(row) is int for row in rows.values()):
                raise DataError(f"{path} must be a JSON object from image id to row number.")
            return path, rows
        if pickled.is_file():
            return pickled, _ids_of(load_pickle(pickled.read_bytes(), str(pickled)), pickled)
        raise NotFoundError(
            f"The image ids of {self._path.name} are missing: neither {path} nor {pickled.name} exists.",
            hint=f"write {path.name} as a JSON object from image id to row number",
        )

    def _check_layout(self, file: h5py.File) -> int:
        """Number of images. Raises DataError when data sets are missing or their shapes do not fit together."""
        axes = 2 if self.adaptive else 3
        shapes: dict[str, tuple[int, ...]] = {}
        for name, columns in (("image_features", None), ("image_bb", 4), ("spatial_features", 6)):
            if name not in file:
                raise DataError(f"{self._path}: the data set '{name}' is missing.")
            shape = file[name].shape
            if len(shape) != axes or (columns is not None and shape[-1] != columns):
                raise DataError(f"{self._path}: '{name}' has the shape {shape}, which the layout does not allow.")
            shapes[name] = shape[:-1]
        if len(set(shapes.values())) != 1:
            raise DataError(f"{self._path}: the data sets have different numbers of boxes ({shapes}).")
        return int(file["pos_boxes"].shape[0] if self.adaptive else shapes["image_bb"][0])

    def _read_spans(self, file: h5py.File) -> list[tuple[int, int]]:
        spans = file["pos_boxes"][:]
        boxes = file["image_bb"].shape[0]
        if spans.ndim != 2 or spans.shape[1] != 2:
            raise DataError(f"{self._path}: 'pos_boxes' must have two columns, its shape is {spans.shape}.")
        bad = np.flatnonzero((spans[:, 0] < 0) | (spans[:, 1] < spans[:, 0]) | (spans[:, 1] > boxes))
        if len(bad):
            raise DataError(f"{self._path}: row {bad[0]} of 'pos_boxes' points outside the {boxes} boxes.")
        return [(int(start), int(stop)) for start, stop in spans]


def _ids_of(rows: Any, path: Path) -> dict[str, int]:
    """A pickled {image id: row} with ids and rows as Python's own text and numbers."""
    found: dict[str, int] = {}
    if not isinstance(rows, dict):
        raise DataError(f"{path} must be a dictionary from image id to row number.")
    for key, row in rows.items():
        name = key.decode(errors="replace") if isinstance(key, bytes) else str(key)
        if isinstance(key, bool) or not isinstance(key, int | np.integer | str | bytes):
            raise DataError(f"{path}: {str(key)[:40]!r} is no image id.")
        if isinstance(row, bool) or not isinstance(row, int | np.integer):
            raise DataError(f"{path}: the row of image {name[:40]!r} is {str(row)[:40]!r}, no number.")
        if name in found:
            raise DataError(f"{path}: the image {name!r} comes twice, as a number and as text.")
        found[name] = int(row)
    return found


def _checked(pixels: Array, spatial: Array, features: Array, where: str) -> Regions:
    """The regions of one image ([n, columns], or [1, n, columns] in the fixed layout) after all checks."""
    if spatial.ndim == 3:
        pixels, spatial, features = pixels[0], spatial[0], features[0]
    boxes = check_normalised(spatial[:, :4], spatial[:, 4:6], where)
    size = _whole_size(check_scale(pixels, spatial[:, :4], where)) if len(boxes) else None
    return Regions(boxes, check_features(features, where), size=size)


def _whole_size(sides: tuple[float, float]) -> tuple[int, int] | None:
    """The image's size in pixels as the two kinds of boxes give it, None where their precision cannot."""
    width, height = (round(side) for side in sides)
    return (width, height) if max(abs(sides[0] - width), abs(sides[1] - height)) < _SIZE_ERROR else None


def _runs(spans: Mapping[str, tuple[int, int]]) -> Iterator[list[str]]:
    """The images in the file's order, cut where the file has a gap and where a stretch gets long."""
    run: list[str] = []
    for image_id in sorted(spans, key=spans.__getitem__):
        start, stop = spans[image_id]
        if run and (start != spans[run[-1]][1] or stop - spans[run[0]][0] > _LONGEST_RUN):
            yield run
            run = []
        run.append(image_id)
    if run:
        yield run
