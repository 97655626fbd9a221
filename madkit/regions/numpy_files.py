"""Arrays out of `.npy` and `.npz` files without ever running what a pickle in them says.

The header of a `.npy` file is a Python dictionary in text (numpy's NEP 1); here it is matched, not evaluated. That
reads headers of Python 2 too ("100L"), on which numpy warns. Arrays of objects are pickles behind such a header; they
are read by the restricted unpickler alone, and only where a layout needs them.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from madkit.core.archives import read_bytes
from madkit.core.errors import DataError, MadkitError

_MAGIC = b"\x93NUMPY"
_HEADER = re.compile(
    rb"\{\s*'descr':\s*'([<>|=]?[A-Za-z]\d*)',\s*'fortran_order':\s*(True|False),\s*"
    rb"'shape':\s*\(((?:\d{1,12}L?, ?)*(?:\d{1,12}L?)?)\),?\s*\}\s*"
)
_NUMBERS = "biuf"
_MOST_BYTES = 1 << 31  # of one array: the features of one image are below 10 MB


def read_npz(source: Path | bytes, names: Collection[str], where: str) -> dict[str, NDArray[Any]]:
    """The arrays of these names that an `.npz` file (or its bytes) holds; other members are not looked at.

    Raises:
        NotFoundError: the file does not exist.
        DataError: the file is damaged, or one of the arrays holds no numbers; the message names the member.
    """
    found = {}
    with _opened_zip(source, where) as archive:
        members = set(archive.namelist())
        for name in names:
            if f"{name}.npy" in members:
                found[name] = _read_member(archive, name, where)
    return found


def npz_names(source: Path | bytes, where: str) -> set[str]:
    """The names of the arrays in an `.npz` file. Raises like `read_npz`."""
    with _opened_zip(source, where) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


def read_npz_object(source: Path | bytes, name: str, where: str) -> Any:
    """The object that a member of an `.npz` file holds as a pickle, None where there is no such member.

    Raises:
        NotFoundError: the file does not exist.
        DataError: the file is damaged, or the pickle asks for more than plain data.
    """
    with _opened_zip(source, where) as archive:
        if f"{name}.npy" not in archive.namelist():
            return None
        try:
            data = archive.read(f"{name}.npy")
        except Exception as error:  # zipfile raises a dozen kinds, depending on which byte is wrong
            raise _damaged(where, f"'{name}'", error) from None
    return _object(data, f"{where}, '{name}'")


def read_npy(path: Path) -> NDArray[Any]:
    """The numbers of an `.npy` file. Raises NotFoundError, or DataError for a damaged file or one with objects."""
    with io.BytesIO(read_bytes(path)) as stream:
        return _read_numbers(stream, str(path))


def read_npy_object(path: Path) -> Any:
    """The object in an `.npy` file that holds a pickle, as `numpy.save` makes of a dictionary.

    Raises NotFoundError, or DataError for a damaged file and for a pickle that asks for more than plain data.
    """
    return _object(read_bytes(path), str(path))


def _opened_zip(source: Path | bytes, where: str) -> zipfile.ZipFile:
    if isinstance(source, Path) and not source.is_file():
        source = read_bytes(source)  # in a zip, or an error that names it
    try:
        return zipfile.ZipFile(io.BytesIO(source) if isinstance(source, bytes) else source)
    except Exception as error:  # zipfile raises a dozen kinds, depending on which byte is wrong
        raise _damaged(where, "it", error) from None


def _read_member(archive: zipfile.ZipFile, name: str, where: str) -> NDArray[Any]:
    try:
        with archive.open(f"{name}.npy") as stream:
            return _read_numbers(stream, f"{where}, '{name}'")
    except MadkitError:
        raise
    except Exception as error:  # zipfile and zlib raise a dozen kinds, depending on which byte is wrong
        raise _damaged(where, f"'{name}'", error) from None


def _damaged(where: str, what: str, error: Exception) -> DataError:
    reason = str(error) or type(error).__name__
    return DataError(f"{where}: {what} cannot be read as an npz file of arrays ({reason}); it is damaged.")


def _read_numbers(stream: Any, where: str) -> NDArray[Any]:
    dtype, fortran, shape = _read_header(stream, where)
    if dtype.kind not in _NUMBERS:
        raise DataError(f"{where} holds no numbers but {dtype.name} values.")
    size = math.prod(shape) * dtype.itemsize
    if size > _MOST_BYTES:
        raise DataError(f"{where} claims the shape {list(shape)}, which no image's array has.")
    data = stream.read(size + 1)  # one more: the check sum of a zip's member is looked at when its end is seen
    if len(data) != size:
        about = "more" if len(data) > size else f"{len(data)} bytes"
        raise DataError(f"{where} is damaged: its header promises {size} bytes, there are {about}.")
    array = np.frombuffer(bytearray(data), dtype=dtype)  # writable: PyTorch warns of arrays that are not
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


def _read_header(stream: BinaryIO, where: str) -> tuple[np.dtype[Any], bool, tuple[int, ...]]:
    start = stream.read(10)
    if start[:6] != _MAGIC or len(start) < 10:
        raise DataError(f"{where} is no npy array.")
    long = start[6] >= 2
    rest = stream.read(2) if long else b""
    length = int.from_bytes(start[8:10] + rest, "little")
    header = stream.read(min(length, 10_000))
    match = _HEADER.fullmatch(header)
    if match is None or len(header) != length:
        raise DataError(f"{where} has a header that describes no plain array.")
    try:
        dtype = np.dtype(match[1].decode())
    except (TypeError, ValueError):
        raise DataError(f"{where} has values of the unknown type {match[1].decode()!r}.") from None
    digits = match[3].replace(b"L", b"").replace(b" ", b"").strip(b",")
    shape = tuple(int(number) for number in digits.split(b",")) if digits else ()
    if len(shape) > 4:
        raise DataError(f"{where} has {len(shape)} axes.")
    return dtype, match[2] == b"True", shape


def _object(data: bytes, where: str) -> Any:
    """What the pickle behind an npy header holds; an array of one object gives that object."""
    from madkit.regions.safe_pickle import load_pickle

    stream = io.BytesIO(data)
    dtype, _, _ = _read_header(stream, where)
    if dtype.kind != "O":
        raise DataError(f"{where} should hold a dictionary, but holds {dtype.name} values.")
    value = load_pickle(stream.read(), where)
    return value.item() if isinstance(value, np.ndarray) and value.size == 1 else value
