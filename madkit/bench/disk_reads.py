"""What the disk itself gives: random reads past the system's page cache, which no reader of cold batches can beat."""

from __future__ import annotations

import mmap
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

_BLOCK = 4096  # what direct reads are aligned to
DEPTHS = (1, 2, 4, 8)
"""How many reads are under way at a time; the fastest counts."""


def disk_seconds(path: Path, size: int, count: int, draw: np.random.Generator) -> float | None:
    """Read random ranges of a file straight from the disk (O_DIRECT), and return the seconds of the fastest way.

    Args:
        path: a file of several times that size.
        size: bytes of a range; whole blocks are read.
        count: ranges.
        draw: chooses them.

    Returns:
        Seconds for all ranges with the best of :data:`DEPTHS` reads at a time; None where the system has no such reads.
    """
    length = -(-size // _BLOCK) * _BLOCK
    blocks = (path.stat().st_size - length) // _BLOCK
    if blocks < 1 or not hasattr(os, "O_DIRECT") or not hasattr(os, "preadv"):
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:  # such as on tmpfs of older kernels
        return None
    try:
        taken = []
        for depth in DEPTHS:
            places: list[int] = (draw.integers(0, blocks, count) * _BLOCK).tolist()
            taken.append(_read(descriptor, places, length, depth))
        return min(taken)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _read(descriptor: int, places: list[int], length: int, depth: int) -> float:
    buffers = [mmap.mmap(-1, length) for _ in range(depth)]  # their pages are aligned

    def work(number: int) -> None:
        for place in places[number::depth]:
            os.preadv(descriptor, [buffers[number]], place)

    with ThreadPoolExecutor(depth) as pool:
        for buffer in buffers:
            buffer[:] = bytes(length)
        list(pool.map(_nothing, range(depth)))  # the threads are there
        started = time.perf_counter()
        list(pool.map(work, range(depth)))
        return time.perf_counter() - started


def _nothing(_: int) -> None:
    return None
