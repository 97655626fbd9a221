"""VL-BERT's region files: one JSON per image, in a folder or in a zip (`<name>.zip@/<name>` in its configurations).

Keys: `image_w`, `image_h`, `num_boxes`, `boxes` (base64 of float32 [n, 4], absolute corners), `features` (base64 of
float32 [n, dim]). `scores` [n] become confidences; where they are missing, `classes` with a distribution for every box
gives its highest value, by which VL-BERT itself orders boxes. `image_box_feature`, the vector of the whole image, is
left unread, and so are `attributes`: a student that wants a whole-image region makes it out of the others' mean. The id
is the file's name without `.json`, a plain integer in the originals.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from madkit.core import archives
from madkit.core.errors import DataError, NotFoundError
from madkit.regions.assemble import from_pixels, image_size
from madkit.regions.base64_arrays import decode_floats
from madkit.regions.file_tree import list_tree
from madkit.regions.interface import Regions
from madkit.regions.keyed import KeyedReader

_MARK = ".zip@"  # VL-BERT's way of writing a path that goes on inside a zip


def folder_of(path: Path) -> Path:
    """The folder, or virtual folder in a zip, that a path in VL-BERT's or in madkit's spelling means.

    `x.zip` means the one folder in it where all of its files lie in one.
    """
    before, mark, behind = str(path).partition(_MARK)
    root = Path(before + _MARK[:-1]) / behind.lstrip("/") if mark else path
    if not root.is_file():
        return root
    folders = {file.parent for file in archives.walk(root) if file.suffix == ".json"}
    if len(folders) > 1:
        listed = ", ".join(sorted(str(folder.relative_to(root)) for folder in folders)[:5])
        raise DataError(f"{root} holds several folders of JSON files ({listed}).", hint=f"name one: {root}@/FOLDER")
    return folders.pop() if folders else root


class VlBertReader(KeyedReader):
    """Reads `<folder>/<image>.json` on demand. Safe for threads, and for processes forked after opening."""

    _expects = "one JSON file per image with image_w, image_h, num_boxes, boxes and features"

    def _list_ids(self) -> list[str]:
        self._folder = folder_of(self._path)
        if self._folder.is_dir():
            names = list_tree(self._folder, ".json")
        else:
            archive = archives.split(self._folder)
            if archive is None:
                raise NotFoundError(f"{self._path} is neither a folder nor in a zip that exists.")
            if not archives.is_folder(self._folder):
                raise NotFoundError(f"The zip {archive[0]} has no folder '{archive[1]}'.")
            names = [
                file.relative_to(self._folder).as_posix()
                for file in archives.walk(archive[0])
                if file.suffix == ".json" and file.is_relative_to(self._folder)
            ]
        ids = [name.removesuffix(".json") for name in names]
        return sorted(ids, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))

    def _where(self, image_id: str) -> str:
        return str(self._folder / f"{image_id}.json")

    def _read(self, image_id: str) -> Regions:
        where = self._where(image_id)
        record = _parse(archives.read_bytes(self._folder / f"{image_id}.json"), where)
        count = _count(record, where)
        regions = from_pixels(
            decode_floats(_text(record, "boxes", where), "boxes", count, 4, where),
            decode_floats(_text(record, "features", where), "features", count, None, where),
            _confidence(record, count, where),
            image_size(record.get("image_w"), record.get("image_h"), where),
            where,
        )
        return self._selection.apply(regions, where)


def _parse(raw: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(raw)
    except (ValueError, RecursionError):  # bad UTF-8 is a ValueError too
        raise DataError(f"{where} is no valid JSON; it is damaged or was cut off.", hint="get it again") from None
    if not isinstance(record, dict):
        raise DataError(f"{where} is no JSON object.")
    return record


def _count(record: dict[str, Any], where: str) -> int:
    count = record.get("num_boxes")
    if type(count) is not int or count < 0:
        raise DataError(f"{where}: 'num_boxes' is {str(count)[:40]} and no number of boxes.")
    return count


def _text(record: dict[str, Any], name: str, where: str) -> bytes:
    value = record.get(name)
    if not isinstance(value, str):
        raise DataError(f"{where}: '{name}' is missing or no text.")
    return value.encode(errors="replace")


def _confidence(record: dict[str, Any], count: int, where: str) -> NDArray[Any] | None:
    if record.get("scores") is not None:
        return _numbers(record, "scores", count, 1, where)
    if not isinstance(record.get("classes"), str):
        return None
    classes = decode_floats(_text(record, "classes", where), "classes", count, None, where)
    # One column would be class numbers; a distribution over classes has one column for each.
    return classes.max(axis=1) if classes.shape[1] > 1 else None


def _numbers(record: dict[str, Any], name: str, count: int, columns: int, where: str) -> NDArray[Any]:
    value = record[name]
    if isinstance(value, str):
        return decode_floats(_text(record, name, where), name, count, columns, where)
    try:
        return np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError):
        raise DataError(f"{where}: '{name}' is no list of numbers.") from None
