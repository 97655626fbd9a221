"""Pickles from other people's files, read without running anything that they ask for.

A pickle is a program: it may name any importable function and have it called. Here it may name only what stands in
`_ALLOWED`: plain containers, and NumPy's way of rebuilding an array, for which stand-ins check every argument before an
array is made. Whatever else is asked for, and any pickle that is cut off, damaged, or built to eat memory, ends in one
DataError.

What the stand-ins accept is what NumPy's own `__reduce__` of arrays, scalars and data types writes (protocols 0 to 5).
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO, Literal, NoReturn

import numpy as np

from madkit.core.errors import DataError

# Operations that reach outside the file: the extension registry (whose cache goes around `find_class`), persistent ids
# and buffers handed over beside the pickle.
_OUTSIDE = {"EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID", "NEXT_BUFFER", "READONLY_BUFFER"}
_MEMO = {"PUT", "BINPUT", "LONG_BINPUT"}


def load_pickle(data: bytes | BinaryIO, where: str) -> Any:
    """The object in a pickle (protocols 0 to 5, Python 2 too: its byte strings are read as Latin-1).

    Arrays come as a subclass of numpy.ndarray; `np.asarray` gives the plain kind.

    Args:
        data: the pickle, or an open file that holds it from its position on.
        where: file (and record) for the message.

    Raises:
        DataError: it asks for anything but containers, numbers, text and arrays, or it is damaged.
    """
    raw = data if isinstance(data, bytes) else data.read()
    try:
        _check_operations(raw)
        return _Unpickler(io.BytesIO(raw), encoding="latin1").load()
    except _Refused as refusal:
        raise DataError(
            f"{where}: this pickle asks for {refusal}, which data has no need of; nothing of it was run.",
            hint="get the file from its owner again; one that you trust can be rewritten as JSON or npz",
        ) from None
    except Exception as error:  # a damaged pickle may raise anything, MemoryError and RecursionError among it
        reason = str(error) or type(error).__name__
        raise DataError(
            f"{where}: this is no readable pickle ({reason}).", hint="get the file from its owner again"
        ) from None


class _Refused(Exception):
    """What a pickle asked for and does not get."""


def _check_operations(raw: bytes) -> None:
    """Walk over the operations without carrying any out.

    The C unpickler grows its memo to the largest number that a pickle names, so one operation of five bytes could make
    it fill 32 GB. No honest pickle numbers more objects than it has bytes.
    """
    for operation, argument, _ in pickletools.genops(raw):
        if operation.name in _OUTSIDE:
            raise _Refused(f"something outside of the file ({operation.name})")
        if operation.name in _MEMO and argument is not None and not 0 <= argument <= len(raw):
            raise _Refused(f"a memory of {argument} objects")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _Refused(f"'{module}.{name}'") from None


class _Call:
    """A callable that a pickle can call and do nothing else with.

    A pickle may also set attributes of what it has been given. Functions and classes of Python would take them, and
    keep them for the next pickle; an object without slots does not.
    """

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise _Refused(f"a change to '{name}' of a function")


class _DType:
    """Stands for a `numpy.dtype` until an array needs the real one: only plain numbers, text and objects."""

    __slots__ = ("code", "order")
    order: Literal["<", ">", "="]

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str):
            raise _Refused("an array type that is no plain one")
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Take the byte order out of NumPy's (version, order, subarray, names, fields, size, alignment, ...)."""
        if any(part is not None for part in state[2:5]):
            raise _Refused("an array type with fields")
        if state[1] not in ("<", ">", "=", "|"):
            raise _Refused(f"the byte order {state[1]!r}")
        self.order = "=" if state[1] == "|" else state[1]

    def real(self) -> np.dtype[Any]:
        dtype = np.dtype("O") if self.code in ("O", "O4", "O8") else np.dtype(self.code)
        if dtype.kind not in "biufcSUO" or dtype.subdtype is not None or dtype.itemsize == 0:
            raise _Refused(f"an array of type {dtype}")
        return dtype.newbyteorder(self.order)


class PickledArray(np.ndarray[Any, Any]):
    """An array that came out of a pickle, filled only with as many bytes or objects as its shape needs."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Take NumPy's (version, shape, type, Fortran order, content)."""
        shape, described, fortran, content = state[-4:]
        dtype = _real(described)
        if isinstance(content, str):
            content = content.encode("latin1")
        count = _count(shape)
        if dtype.hasobject:
            if not isinstance(content, list) or len(content) != count:
                raise ValueError(f"an object array of {count} entries with another number of them")
        elif not isinstance(content, bytes | bytearray) or len(content) != count * dtype.itemsize:
            raise ValueError(f"an array of shape {shape} whose content has another length")
        super().__setstate__((1, shape, dtype, bool(fortran), content))  # type: ignore[arg-type]  # NumPy wants an int


def _count(shape: Any) -> int:
    if not isinstance(shape, tuple) or len(shape) > 32 or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("an array without a shape")
    return math.prod(shape)


def _real(described: Any) -> np.dtype[Any]:
    if not isinstance(described, _DType):
        raise ValueError("an array without a type")
    return described.real()


def _empty_array(kind: Any, shape: Any, code: Any) -> PickledArray:
    """NumPy's `_reconstruct`: an empty array, whose shape and content the next operation sets."""
    if kind is not _NDARRAY or _count(shape) != 0:
        raise _Refused("an array that is built in an unusual way")
    return np.ndarray.__new__(PickledArray, (0,), "b")


def _array_from_buffer(content: Any, described: Any, shape: Any, order: Any) -> PickledArray:
    """NumPy's `_frombuffer` (protocol 5)."""
    dtype = _real(described)
    if dtype.hasobject or not isinstance(content, bytes | bytearray) or order not in ("C", "F"):
        raise ValueError("an array without content")
    if _count(shape) * dtype.itemsize != len(content):
        raise ValueError(f"an array of shape {shape} whose content has another length")
    flat = np.frombuffer(bytearray(content), dtype=dtype)
    return flat.reshape(shape, order=order).view(PickledArray)


def _scalar(described: Any, content: Any = b"") -> Any:
    dtype = _real(described)
    if isinstance(content, str):
        content = content.encode("latin1")
    if dtype.hasobject or not isinstance(content, bytes) or len(content) != dtype.itemsize:
        raise ValueError("a number whose content has another length")
    return np.frombuffer(content, dtype=dtype)[0]


def _encode(text: Any, encoding: Any = "latin1", *_: Any) -> bytes:
    """`_codecs.encode`, with which protocols 0 to 2 of Python 3 write bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise _Refused(f"an encoding into {encoding!r}")
    return text.encode("latin1")


def _bytes(*content: Any) -> bytes:
    return bytes(_plain_bytes(content))


def _bytearray(*content: Any) -> bytearray:
    return bytearray(_plain_bytes(content))


def _plain_bytes(content: tuple[Any, ...]) -> bytes:
    """The argument of bytes(...), which must be content: a number would be a length to fill memory with."""
    if not content:
        return b""
    if isinstance(content[0], str):
        return _encode(*content)
    if not isinstance(content[0], bytes | bytearray):
        raise _Refused("bytes that it does not hold")
    return bytes(content[0])


_NDARRAY = _Call(_empty_array)  # a mark only: arrays come from `_reconstruct`

_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _Call(_encode),
}
for _module in ("builtins", "__builtin__"):
    _ALLOWED[_module, "set"] = set
    _ALLOWED[_module, "frozenset"] = frozenset
    _ALLOWED[_module, "complex"] = complex
    _ALLOWED[_module, "bytes"] = _Call(_bytes)
    _ALLOWED[_module, "bytearray"] = _Call(_bytearray)
for _core in ("numpy.core", "numpy._core"):
    _ALLOWED[f"{_core}.multiarray", "_reconstruct"] = _Call(_empty_array)
    _ALLOWED[f"{_core}.multiarray", "scalar"] = _Call(_scalar)
    _ALLOWED[f"{_core}.numeric", "_frombuffer"] = _Call(_array_from_buffer)
_ALLOWED["numpy", "ndarray"] = _NDARRAY
_ALLOWED["numpy", "dtype"] = _Call(_DType)
