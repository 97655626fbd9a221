"""Copying ranges of memory maps into a batch, wherever they are: in memory, or still on the disk.

A map is the fastest way to files that the system has cached and the slowest to those that it has not: the process stops
at the first page of every row, one row after the other, and each time the system reads much more than the row. So what
is not in memory is announced first, and comes all at once. Looking costs as much as copying a short row; therefore it
stops once everything was in memory a few times.
"""

from __future__ import annotations

import os
import resource
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from madkit.cache.mapped import MappedFile

Copy = tuple[MappedFile, int, int, int, int]
"""Which bytes [begin, end) of a file go to which bytes [begin, end) of the batch."""

THREADS = min(4, os.cpu_count() or 1)
THREAD_BYTES = 8 << 20
"""Batches below this size are copied by the caller's own thread: handing over costs more than copying."""
SMALL_BYTES = 64 << 10
"""Ranges below this size are copied without releasing the interpreter, which would take longer than they do."""
WINDOW_BYTES = 32 << 20
"""How far ahead of copying rows are announced that have to come from the disk."""
_WATCHED = 4
"""After a batch that was not all in memory so many batches are looked at before copying. Later the system's count of
page faults that went to the disk tells whether to look again; it comes too late for the batch, but costs nothing."""
_WATCHED_BLINDLY = 64  # the same where the system does not tell what is in memory
_WHO = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)

_pool: ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()


def _threads() -> ThreadPoolExecutor:
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(THREADS, thread_name_prefix="madkit-read")
        return _pool


def _forget_pool() -> None:
    global _pool, _pool_lock
    _pool, _pool_lock = None, threading.Lock()  # threads do not survive a fork, and a held lock would stay held


os.register_at_fork(after_in_child=_forget_pool)


class Copier:
    """Copies batches of one array, and remembers whether its rows tend to be in memory. Safe in several threads."""

    def __init__(self) -> None:
        self._watch = _WATCHED

    def __call__(self, copies: list[Copy], flat: npt.NDArray[np.uint8]) -> None:
        """Copy, and announce before what has to come from the disk."""
        if not self._watch:
            if _copy(copies, flat):
                self._watch = _WATCHED if copies[0][0].tells else _WATCHED_BLINDLY
            return
        self._watch -= 1
        windows = _windows(copies)
        missing = _announce(windows[0])
        for window, following in zip(windows, [*windows[1:], []], strict=True):
            missing |= _announce(following)
            missing |= _copy(window, flat) > 0
        if missing:
            self._watch = max(self._watch, _WATCHED)


def _windows(copies: list[Copy]) -> list[list[Copy]]:
    """Cut into runs of about :data:`WINDOW_BYTES`, at least one."""
    windows: list[list[Copy]] = [[]]
    size = 0
    for copy in copies:
        if size > WINDOW_BYTES:
            windows.append([])
            size = 0
        windows[-1].append(copy)
        size += copy[2] - copy[1]
    return windows


def _announce(copies: list[Copy]) -> bool:
    """Have bytes read into memory that are not there, without waiting. True where the system says that some are."""
    missing = False
    for file, begin, end, _, _ in copies:
        if not file.tells or file.absent(begin, end):
            file.advise(begin, end)
            missing |= file.tells
    return missing


def _copy(copies: list[Copy], flat: npt.NDArray[np.uint8]) -> int:
    """Copy, in threads where that pays. Returns how many page faults went to the disk."""
    if len(copies) < 2 or sum(copy[2] - copy[1] for copy in copies) < THREAD_BYTES:
        return _copy_here(copies, flat)
    step = -(-len(copies) // THREADS)
    parts = [copies[start : start + step] for start in range(0, len(copies), step)]
    futures = [_threads().submit(_copy_here, part, flat) for part in parts[1:]]
    return _copy_here(parts[0], flat) + sum(future.result() for future in futures)


def _copy_here(copies: list[Copy], flat: npt.NDArray[np.uint8]) -> int:
    before = _disk_faults()
    small = flat.data
    for file, begin, end, target, stop in copies:
        if end - begin < SMALL_BYTES:
            small[target:stop] = file.data[begin:end].data
        else:
            flat[target:stop] = file.data[begin:end]
    return _disk_faults() - before


def _disk_faults() -> int:
    return resource.getrusage(_WHO).ru_majflt
