"""Files mapped into memory without holding a descriptor, and what of them lies in memory.

Python's ``mmap`` keeps a duplicate of the descriptor for as long as the map lives (up to Python 3.12 always), and a
store of 100,000 images has more shards than a process may usually have files open. The C library's own ``mmap`` does
not. See mmap(2), madvise(2) and mincore(2).

Is a map safe? Reading one beyond the end of a file that became shorter, or where the disk fails, kills the process with
SIGBUS instead of raising an error. Sizes are checked when a file is mapped, and nothing of madkit changes a file of a
store in place: extraction and repair write another file and rename it, prune unlinks, and a map goes on showing the
file that it was made of after both. Who has to fear other programs or a failing disk reads with ``check=True``, which
goes through descriptors.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

_PAGE = mmap.PAGESIZE
_LINUX = sys.platform == "linux"
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_longlong
)  # fmt: skip
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)


class MappedFile:
    """A whole file as read-only bytes.

    Attributes:
        data: [size] uint8; the map lives as long as any view of it.
        tells: whether :meth:`absent` is to be believed (Linux tells owners of a file and those who may write it, and
            pretends to others that everything is in memory).

    Raises:
        OSError: the system refuses, such as for a limit of the address space.
    """

    def __init__(self, descriptor: int) -> None:
        facts = os.fstat(descriptor)
        self.data: npt.NDArray[np.uint8] = (
            np.asarray(_Pages(descriptor, facts.st_size)) if facts.st_size else np.empty(0, np.uint8)
        )  # nothing cannot be mapped
        self._start = self.data.ctypes.data
        self.tells = _LINUX and os.geteuid() in (0, facts.st_uid)

    def absent(self, begin: int, end: int) -> bool:
        """Whether part of the bytes [begin, end) would have to come from the disk."""
        first = begin // _PAGE * _PAGE
        pages = self._pages(first, end)
        return pages is not None and b"\0" in pages

    def cached_bytes(self) -> int | None:
        """How much of the file is in memory, in whole pages; None where the system does not say."""
        if not self.tells:
            return None
        pages = self._pages(0, len(self.data))
        return None if pages is None else (len(pages) - pages.count(b"\0")) * _PAGE

    def _pages(self, first: int, end: int) -> bytes | None:
        """Return a byte per page, 0 where it is not in memory (its lowest bit counts, and Linux sets no other)."""
        pages = ctypes.create_string_buffer(-(-(end - first) // _PAGE))
        if not _LINUX or _libc.mincore(self._start + first, end - first, pages):
            return None
        return pages.raw

    def advise(self, begin: int, end: int) -> None:
        """Have the bytes [begin, end) read into memory without waiting for them."""
        if _LINUX:
            first = begin // _PAGE * _PAGE
            _libc.madvise(self._start + first, end - first, mmap.MADV_WILLNEED)  # advice: nobody is hurt if it fails


class _Pages:
    """Owner of a map of at least one byte, as NumPy wants it."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._size = size
        self._start: int | None = None
        address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        if address == _FAILED:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self._start = address
        self.__array_interface__: dict[str, Any] = {
            "version": 3,
            "typestr": "|u1",
            "shape": (size,),
            "data": (address, True),
        }

    def __del__(self) -> None:
        if self._start is not None:
            _libc.munmap(self._start, self._size)
