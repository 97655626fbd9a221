"""LMDB databases of ViLBERT and ViLBERT multi-task: one pickled record per image, and a pickled list of the keys.

Key: the image id in text (on VCR the path of the image, with `.jpg`). Record: `image_id`, `image_w`, `image_h`,
`num_boxes`, `boxes` (absolute corners, float32 [n, 4]) and `features` (float32 [n, dim]), both as base64 or as arrays.
`b"keys"` holds the list of keys. Pickles go through the restricted unpickler. The whole-image region with the mean
feature that ViLBERT's own reader puts in front stands in no file, and is not added here.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from madkit.core.errors import DataError
from madkit.regions.assemble import from_pixels, image_size
from madkit.regions.base64_arrays import decode_floats
from madkit.regions.interface import Regions
from madkit.regions.keyed import KeyedReader
from madkit.regions.lmdb_store import LmdbStore
from madkit.regions.safe_pickle import load_pickle

_KEYS = b"keys"


class VilbertLmdbReader(KeyedReader):
    """Reads records on demand. Safe for threads, and for processes forked after opening."""

    _expects = "an LMDB of pickled records, with the list of their ids under the key 'keys'"

    def _list_ids(self) -> list[str]:
        self._store = LmdbStore(self._path)
        listed = self._store.get(_KEYS)
        if listed is None:
            raise DataError(f"{self._path}: the record 'keys', a list of all image ids, is missing.")
        keys = load_pickle(listed, f"{self._path}, record 'keys'")
        if not isinstance(keys, list | tuple) or not all(isinstance(key, str | bytes) for key in keys):
            raise DataError(f"{self._path}, record 'keys': no list of image ids.")
        ids = [key if isinstance(key, str) else key.decode(errors="replace") for key in keys]
        if len(set(ids)) != len(ids):
            twice = Counter(ids).most_common(1)[0][0]
            raise DataError(f"{self._path}, record 'keys': the image {twice!r} is listed twice.")
        return ids

    def close(self) -> None:
        """Close the database; a later `get` opens it again."""
        self._store.close()

    def _read(self, image_id: str) -> Regions:
        where = self._where(image_id)
        raw = self._store.get(image_id.encode())
        if raw is None:
            raise DataError(f"{where}: listed under 'keys', but it has no record.")
        record = load_pickle(raw, where)
        if not isinstance(record, dict):
            raise DataError(f"{where}: the record is no dictionary.")
        count = record.get("num_boxes")
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 0:
            raise DataError(f"{where}: 'num_boxes' is {str(count)[:40]} and no number of boxes.")
        regions = from_pixels(
            _floats(record, "boxes", int(count), 4, where),
            _floats(record, "features", int(count), None, where),
            None,
            image_size(record.get("image_w"), record.get("image_h"), where),
            where,
        )
        return self._selection.apply(regions, where)


def _floats(record: dict[Any, Any], name: str, count: int, columns: int | None, where: str) -> NDArray[Any]:
    """Base64 or an array as float32 [count, columns]."""
    value = record.get(name)
    if isinstance(value, str):
        value = value.encode("latin1", errors="replace")  # Python 2 wrote the base64 as a byte string
    if isinstance(value, bytes | bytearray):
        return decode_floats(bytes(value), name, count, columns, where)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
        raise DataError(f"{where}: '{name}' is missing, or neither base64 nor an array of numbers.")
    array = np.asarray(value, dtype=np.float32)
    if array.ndim != 2 or len(array) != count or (columns is not None and array.shape[1] != columns):
        raise DataError(f"{where}: '{name}' has the shape {array.shape}, which does not fit {count} boxes.")
    return array
