"""Writing regions in other projects' layouts; `butd_writer` writes the HDF5 one.

What a layout has a place for and madkit does not know is left out where the owners' readers for fine-tuning can do
without, and zero where their rows have fixed columns; each writer says which.
"""

from __future__ import annotations

import base64
import json
import os
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from madkit.core.errors import DataError
from madkit.regions.file_tree import path_below
from madkit.regions.interface import Regions
from madkit.regions.new_files import new_file, new_folder

Named = tuple[str, Regions]
FloatName = Literal["float16", "float32"]


def write_uniter_npz(folder: Path, items: Iterable[Named], *, dtype: FloatName = "float16") -> int:
    """Write a folder of UNITER's `.npz` files: `norm_bb` [n, 6], `features`, and `conf` [n, 1] where it is known.

    `soft_labels`, which UNITER's pre-training reads and its fine-tuning does not, are left out. The file of an image is
    called after its id (with `.npz` behind it where it has none); "/" in an id makes subfolders.

    Args:
        folder: to be made; must not exist, or be empty.
        items: (image id, regions) of every image.
        dtype: of all arrays, float16 in the originals.

    Returns:
        The number of images.

    Raises:
        UsageProblem: the folder is there already.
        DataError: a repeated id, one that cannot be a file name, a feature that does not fit the dtype, no images.
    """
    with new_folder(folder) as temporary:

        def write(image_id: str, regions: Regions) -> None:
            path = path_below(temporary, f"{image_id.removesuffix('.npz')}.npz")
            path.parent.mkdir(parents=True, exist_ok=True)
            located = np.concatenate([regions.boxes, regions.boxes[:, 2:] - regions.boxes[:, :2]], axis=1)
            arrays = {"norm_bb": located.astype(dtype), "features": _fitting(regions.features, dtype, image_id)}
            if regions.confidence is not None:
                arrays["conf"] = regions.confidence[:, None].astype(dtype)
            np.savez(path, **arrays)  # type: ignore[arg-type]  # NumPy's stub takes the arrays for its options

        return _write_each(folder, items, write)


def write_lxmert_tsv(path: Path, items: Iterable[Named]) -> int:
    """Write LXMERT's TSV: ten columns, no header, float32.

    Class and attribute numbers and attribute confidences are zero, and so are object confidences that are not known:
    the layout has no way to leave columns out. Readers of it should take confidences that are all zero for unknown.

    Args:
        path: the file; an existing one is replaced.
        items: (image id, regions with the image's size) of every image.

    Returns:
        The number of images.

    Raises:
        DataError: a repeated id, one with a tab or line break, regions without image size, no images.
    """
    with new_file(path) as temporary, temporary.open("wb") as file:

        def write(image_id: str, regions: Regions) -> None:
            if not image_id or set(image_id) & set("\t\r\n"):
                raise DataError(f"{path.name}: the image id {image_id!r} cannot stand in a TSV.")
            width, height = _size(regions, image_id)
            count = len(regions.boxes)
            confidence = np.zeros(count) if regions.confidence is None else regions.confidence
            numbers, zeros = _base64(np.zeros(count), "<i8"), _base64(np.zeros(count), "<f4")
            boxes, features = _base64(_pixels(regions, image_id), "<f4"), _base64(regions.features, "<f4")
            cells = (image_id, height, width, numbers, _base64(confidence, "<f4"), numbers, zeros, count)
            file.write("\t".join(map(str, (*cells, boxes, features))).encode() + b"\n")

        written = _write_each(path, items, write)
        file.flush()
        os.fsync(file.fileno())
        return written


def write_vl_bert(path: Path, items: Iterable[Named]) -> int:
    """Write VL-BERT's JSON files, one per image: a folder, or a zip with one folder of the zip's name in it.

    Keys: image_h, image_w, num_boxes, boxes, features, and `scores` where confidences are known. VL-BERT itself looks
    for plain numbers as names; other ids are written as they are.

    Args:
        path: the folder (must not exist, or be empty), or a file that ends in `.zip` (an existing one is replaced).
        items: (image id, regions with the image's size) of every image.

    Returns:
        The number of images.

    Raises:
        UsageProblem: the folder is there already.
        DataError: a repeated id, one that cannot be a file name, regions without image size, no images.
    """
    if path.suffix.lower() == ".zip":
        with (
            new_file(path) as temporary,
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
        ):

            def add(image_id: str, regions: Regions) -> None:
                member = path_below(Path(path.stem), f"{image_id}.json").as_posix()
                file.writestr(member, _vl_bert_record(image_id, regions))

            return _write_each(path, items, add)
    with new_folder(path) as temporary:

        def write(image_id: str, regions: Regions) -> None:
            file = path_below(temporary, f"{image_id}.json")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(_vl_bert_record(image_id, regions), encoding="ascii")

        return _write_each(path, items, write)


def _vl_bert_record(image_id: str, regions: Regions) -> str:
    width, height = _size(regions, image_id)
    record = {
        "image_h": height,
        "image_w": width,
        "num_boxes": len(regions.boxes),
        "boxes": _base64(_pixels(regions, image_id), "<f4"),
        "features": _base64(regions.features, "<f4"),
    }
    if regions.confidence is not None:
        record["scores"] = _base64(regions.confidence, "<f4")
    return json.dumps(record)


def _write_each(target: Path, items: Iterable[Named], write: Callable[[str, Regions], None]) -> int:
    seen: set[str] = set()
    dim: int | None = None
    for image_id, regions in items:
        if image_id in seen:
            raise DataError(f"{target.name}: the image {image_id!r} comes twice.")
        seen.add(image_id)
        length = regions.features.shape[1]
        dim = length if dim is None else dim
        if length != dim:
            raise DataError(f"{target.name}, image {image_id}: features of length {length}, others have {dim}.")
        write(image_id, regions)
    if not seen:
        raise DataError(f"There are no regions to write to {target}.")
    return len(seen)


def _size(regions: Regions, image_id: str) -> tuple[int, int]:
    if regions.size is None:
        raise DataError(
            f"Image {image_id}: its size is not known, and this layout holds boxes in pixels.",
            hint="give the images' sizes, or write the layout uniter-npz, which needs none",
        )
    return regions.size


def _pixels(regions: Regions, image_id: str) -> NDArray[Any]:
    return regions.boxes.astype(np.float64) * np.asarray(_size(regions, image_id) * 2, dtype=np.float64)


def _fitting(features: NDArray[Any], dtype: FloatName, image_id: str) -> NDArray[Any]:
    if features.size and np.abs(features).max() > np.finfo(dtype).max:
        raise DataError(
            f"Image {image_id}: a feature value does not fit {dtype}.", hint="write the features as float32"
        )
    return features.astype(dtype)


def _base64(values: NDArray[Any], dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype=dtype).tobytes()).decode("ascii")
