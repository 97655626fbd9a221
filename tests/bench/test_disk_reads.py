"""Random reads past the page cache: they take time, and where there are none the benchmark goes without."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from madkit.bench.disk_reads import DEPTHS, disk_seconds


def test_every_range_is_read_once_at_every_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "flat.bin"
    path.write_bytes(os.urandom(64 * 4096))
    read: list[tuple[int, int]] = []

    def preadv(descriptor: int, buffers: list[memoryview], place: int) -> int:
        read.append((place, len(buffers[0])))
        return len(buffers[0])

    opened = os.open
    direct = 0x4000  # taken out again below: not every file system knows it, and what is asked here is which ranges
    monkeypatch.setattr(os, "O_DIRECT", direct, raising=False)
    monkeypatch.setattr(os, "open", lambda path, flags, *more, **named: opened(path, flags & ~direct, *more, **named))
    monkeypatch.setattr(os, "preadv", preadv, raising=False)
    seconds = disk_seconds(path, 5000, 10, np.random.default_rng(0))
    assert seconds is not None
    assert seconds > 0
    assert len(read) == 10 * len(DEPTHS)
    assert all(place % 4096 == 0 and length == 8192 and place + length <= 64 * 4096 for place, length in read)


def test_without_direct_reads_there_is_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "flat.bin"
    path.write_bytes(bytes(8 * 4096))
    draw = np.random.default_rng(0)
    assert disk_seconds(path, 9 * 4096, 1, draw) is None  # larger than the file

    def refuse(*_: object) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "preadv", refuse)
    assert disk_seconds(path, 4096, 1, draw) is None
