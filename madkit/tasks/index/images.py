"""The images of a data set: one row for every image (and set of boxes) that its examples are about."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from madkit.core.errors import DataError
from madkit.tasks.example import Example, ImageRef
from madkit.tasks.index.files import open_batch, write_batch
from madkit.tasks.index.strings import Strings, floats, integers, offsets

NAME = "images"
Box = tuple[float, float, float, float]


class ImageTable:
    """Collects images while examples are written; every split of a data set shares one table.

    Args:
        root: folder that image paths are stored relative to; a path outside it is stored as it is.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._prefix = f"{root}/"
        self._rows: dict[tuple[object, ...], int] = {}
        self._last: tuple[Example, int] | None = None
        self._ids: list[str] = []
        self._paths: list[str] = []
        self._sizes: list[tuple[int, int]] = []
        self._boxes: list[tuple[Box, ...]] = []

    def __len__(self) -> int:
        return len(self._ids)

    def row_of(self, example: Example) -> int:
        """The row of an example's image, boxes and size; a new one where they are new."""
        image = example.image
        if self._last is not None:  # questions about one image come together, and hashing a path takes its time
            last, row = self._last
            same = image is last.image and example.boxes is last.boxes
            if same and example.width == last.width and example.height == last.height:
                return row
        key = (image, example.boxes, example.width, example.height)
        known = self._rows.get(key)
        if known is None:
            known = self._rows[key] = len(self._ids)
            path = str(image.path)
            self._ids.append(image.id)
            self._paths.append(path.removeprefix(self._prefix))
            self._sizes.append((example.width, example.height))
            self._boxes.append(example.boxes)
        self._last = (example, known)
        return known

    def check_ids(self) -> None:
        """Raise DataError where one id names two files: region features and teachers' tokens know images by id."""
        file_of: dict[str, str] = {}
        for name, path in zip(self._ids, self._paths, strict=True):
            if file_of.setdefault(name, path) != path:
                raise DataError(
                    f"{self.root}: the image id '{name}' names two files, {file_of[name]} and {path}.",
                    hint="check that all files are of one version of the data; every image needs an id of its own",
                )

    def write(self, folder: Path) -> None:
        """Write `images.arrow`."""
        sizes = np.asarray(self._sizes, dtype=np.int32).reshape(-1, 2)
        counts = np.asarray([len(boxes) for boxes in self._boxes], dtype=np.int32)
        flat = np.asarray([box for boxes in self._boxes for box in boxes], dtype=np.float64).reshape(-1)
        offsets = np.concatenate([[0], np.cumsum(counts * 4)]).astype(np.int32)
        write_batch(
            folder / f"{NAME}.arrow",
            {
                "id": pa.array(self._ids, pa.string()),
                "path": pa.array(self._paths, pa.string()),
                "width": pa.array(sizes[:, 0]),
                "height": pa.array(sizes[:, 1]),
                "boxes": pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat)),
            },
        )

    def content_of(self, rows: Sequence[int]) -> bytes:
        """A digest of some rows, without the places of their files."""
        digest = hashlib.sha256()
        for row in rows:
            digest.update(repr((self._ids[row], self._sizes[row], self._boxes[row])).encode())
        return digest.digest()


class StoredImages:
    """The rows of an `images.arrow`, made into objects when they are asked for and then kept.

    Args:
        path: the file.
        root: what the images' paths are relative to.
        files: where images lie, by id, if not where the table says: that of a suite stays as it is when the owners'
            files are imported from another place.
    """

    def __init__(self, path: Path, root: Path, files: Callable[[], Mapping[str, str]] | None = None) -> None:
        batch = open_batch(path)
        self._root = root
        self._files = files
        self._ids, self._paths = Strings(batch.column("id")), Strings(batch.column("path"))
        self._width, self._height = integers(batch.column("width")), integers(batch.column("height"))
        boxes = batch.column("boxes")
        self._offsets = offsets(boxes)
        self._boxes = floats(boxes.values)
        self._made: dict[int, tuple[ImageRef, tuple[Box, ...], int, int]] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def id(self, row: int) -> str:
        """The image id of a row."""
        return self._ids[row]

    def file(self, row: int) -> str:
        """The path of a row's image, relative to the root where it lies below it."""
        own = self._paths[row]
        return own if self._files is None else self._files().get(self._ids[row], own)

    def get(self, row: int) -> tuple[ImageRef, tuple[Box, ...], int, int]:
        """(image, boxes, width, height) of a row."""
        made = self._made.get(row)
        if made is None:
            flat = self._boxes[self._offsets[row] : self._offsets[row + 1]].tolist()
            boxes = tuple(zip(*(iter(flat),) * 4, strict=True))
            image = ImageRef(self._ids[row], self._root / self.file(row))
            made = self._made[row] = (image, boxes, self._width[row], self._height[row])
        return made
