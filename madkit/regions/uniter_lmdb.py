"""UNITER's image databases: LMDB whose keys are the names of the `.npz` files.

The folder's name says what was kept: `feat_th0.2_max100_min10` (confidence above 0.2, at most 100 boxes, at least 10),
`feat_numbb36` (the first 36), `all`; with `_compressed`, a value is the bytes of an `.npz` file, else a msgpack map.
`nbb_th0.2_max100_min10.json` beside the database says how many boxes each image keeps. `__keys__` lists the images.

Where the caller sets no limits, those of the folder's name hold, which change nothing in a database that was written as
its name says. The original cuts by position; here boxes are sorted by confidence before any is left out.
"""

from __future__ import annotations

import json
import re
from functools import cached_property
from pathlib import Path

from madkit.core.errors import DataError, NotFoundError
from madkit.core.files import read_json
from madkit.regions.interface import Regions
from madkit.regions.keyed import KeyedReader
from madkit.regions.lmdb_store import DATA_FILE, LmdbStore, is_lmdb
from madkit.regions.msgpack_arrays import unpack_arrays
from madkit.regions.numpy_files import read_npz
from madkit.regions.selection import Selection
from madkit.regions.uniter_record import KEYS, uniter_regions

_LIST = b"__keys__"
_THRESHOLD = re.compile(r"feat_th(?P<th>\d+(?:\.\d+)?)_max(?P<max>\d+)_min(?P<min>\d+)(_compressed)?")
_FIXED = re.compile(r"feat_numbb(?P<max>\d+)(_compressed)?")


class UniterLmdbReader(KeyedReader):
    """Reads one database, given its folder or the folder above when that holds one database only."""

    _expects = "an LMDB folder like feat_th0.2_max100_min10 that UNITER's convert_imgdir wrote"

    def __init__(
        self,
        path: Path,
        *,
        min_confidence: float | None = None,
        min_boxes: int | None = None,
        max_boxes: int | None = None,
    ) -> None:
        """Open the database. Limits that are given replace those of the folder's name. Raises like `KeyedReader`."""
        self._database = find_database(path)
        self._store = LmdbStore(self._database)
        self._own_limits = min_confidence is None and min_boxes is None and max_boxes is None
        try:
            super().__init__(self._database, min_confidence=min_confidence, min_boxes=min_boxes, max_boxes=max_boxes)
        except BaseException:
            self._store.close()
            raise

    def close(self) -> None:
        """Release the database; a later `get` opens it again."""
        self._store.close()

    @cached_property
    def _named_selection(self) -> Selection:
        """What the folder's name says was kept."""
        match = _THRESHOLD.fullmatch(self._database.name)
        if match:
            return Selection(float(match["th"]), int(match["min"]), int(match["max"]))
        match = _FIXED.fullmatch(self._database.name)
        return Selection(max_boxes=int(match["max"])) if match else Selection()

    @cached_property
    def _kept(self) -> dict[str, int]:
        """Boxes to keep by image, from the nbb file; empty where there is none."""
        match = _THRESHOLD.fullmatch(self._database.name)
        if match is None:
            return {}
        name = self._database.name.removesuffix("_compressed").replace("feat_", "nbb_", 1)
        path = self._database.parent / f"{name}.json"
        if not path.is_file():
            return {}
        counts = read_json(path)
        if not isinstance(counts, dict) or not all(type(count) is int and count >= 0 for count in counts.values()):
            raise DataError(f"{path} must be a JSON object from image to number of boxes.")
        return counts

    def _list_ids(self) -> list[str]:
        listed = self._store.get(_LIST)
        if listed is None:
            return [_text(key, self._path) for key in self._store.all_keys()]
        try:
            names = json.loads(listed)
        except ValueError:
            raise DataError(f"{self._path}: the list of images under '__keys__' is no JSON.") from None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DataError(f"{self._path}: '__keys__' must hold a JSON list of names.")
        return [name for name in names if name != _LIST.decode()]

    def _read(self, image_id: str) -> Regions:
        where = self._where(image_id)
        value = self._store.get(image_id.encode())
        if value is None:
            raise DataError(f"{where}: '__keys__' lists the image, but its record is missing.")
        record = read_npz(value, KEYS, where) if value.startswith(b"PK") else unpack_arrays(value, where)
        if not self._own_limits:
            return uniter_regions(record, self._selection, where)
        regions = uniter_regions(record, self._named_selection, where)
        count = self._kept.get(image_id)
        if count is None or count >= len(regions.boxes):
            return regions
        return Selection(max_boxes=count).apply(regions, where)


def find_database(path: Path) -> Path:
    """The database at a path: the folder itself, that of a `data.mdb`, or the only database one level below.

    Raises NotFoundError where there is none, DataError naming them where there are several.
    """
    if path.name == DATA_FILE and path.is_file():
        return path.parent
    if not path.exists():
        raise NotFoundError(f"The database {path} does not exist.")
    if not path.is_dir() or is_lmdb(path):
        return path
    below = sorted(child for child in path.iterdir() if child.is_dir() and (child / DATA_FILE).is_file())
    if len(below) == 1:
        return below[0]
    if not below:
        raise DataError(f"{path} holds no LMDB database.", hint=f"give the folder that holds {DATA_FILE}")
    names = ", ".join(child.name for child in below)
    raise DataError(f"{path} holds several databases: {names}.", hint=f"name one: {below[0]}")


def _text(key: bytes, path: Path) -> str:
    try:
        return key.decode()
    except UnicodeDecodeError:
        raise DataError(f"{path}: the key {key[:40]!r} is no text.") from None
