"""Dictionaries of arrays in msgpack, as the package msgpack-numpy writes them.

That package is not used for reading: for arrays of objects it loads a pickle. Its encoding of an array is a map
{nd: true, type: data type, kind: "", shape, data: bytes}; arrays of objects have the kind "O", records "V", and both
are refused.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from madkit.core.errors import DataError, MadkitError

_NUMBERS = "biuf"


def unpack_arrays(data: bytes, where: str) -> dict[str, NDArray[Any]]:
    """The arrays of a msgpack map, by key; entries that are no arrays are left out.

    Raises:
        MadkitError: the package msgpack is not installed.
        DataError: the bytes are damaged, are no map, or hold an array of anything but numbers.
    """
    try:
        import msgpack
    except ImportError:
        raise MadkitError(
            f"{where} is packed with msgpack, which is not installed.", hint='install it: pip install "madkit[lmdb]"'
        ) from None
    try:
        # Old writers make raw strings of what new ones make binary, so everything is taken as bytes.
        record = msgpack.unpackb(data, raw=True, strict_map_key=False)
    except Exception as error:  # a damaged record may raise ValueError, TypeError (unhashable keys), OverflowError ...
        reason = str(error) or type(error).__name__
        raise DataError(f"{where}: the record cannot be unpacked with msgpack ({reason}); it is damaged.") from None
    if not isinstance(record, dict):
        raise DataError(f"{where}: the record is no msgpack map of arrays.")
    arrays = {}
    for key, value in record.items():
        name = key.decode("latin1") if isinstance(key, bytes) else str(key)
        if isinstance(value, dict) and value.get(b"nd") is True:
            arrays[name] = _array(value, f"{where}, '{name}'")
    return arrays


def _array(encoded: dict[bytes, Any], where: str) -> NDArray[Any]:
    code, shape, data = encoded.get(b"type"), encoded.get(b"shape"), encoded.get(b"data")
    if encoded.get(b"kind", b"") not in (b"", None):
        raise DataError(f"{where} is an array of objects or records, which is not read: it can hold a program.")
    try:
        dtype = np.dtype(code.decode("ascii")) if isinstance(code, bytes) and len(code) <= 4 else None
    except (TypeError, ValueError):
        dtype = None
    if dtype is None or dtype.kind not in _NUMBERS:
        raise DataError(f"{where} is an array of the type {code!r}, which are no numbers.")
    if not isinstance(shape, list) or not all(type(side) is int and side >= 0 for side in shape) or len(shape) > 4:
        raise DataError(f"{where} has no shape; the record is damaged.")
    if not isinstance(data, bytes) or len(data) != math.prod(shape) * dtype.itemsize:
        raise DataError(f"{where}: the shape {shape} and the length of the content differ; the record is damaged.")
    # writable: PyTorch warns of arrays that are not
    return np.frombuffer(bytearray(data), dtype=dtype).reshape(shape)
