"""Maps without descriptors, and what the system says of their pages."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from madkit.cache.mapped import MappedFile


def _map(path: Path) -> MappedFile:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return MappedFile(descriptor)
    finally:
        os.close(descriptor)


def _drop(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fdatasync(descriptor)  # pages that are not yet written stay
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def test_a_map_shows_the_file_that_it_was_made_of(tmp_path: Path) -> None:
    """After its descriptor is closed, after another file took the name, and after that is gone."""
    path, other = tmp_path / "a", tmp_path / "b"
    content = np.random.default_rng(0).integers(0, 256, 10_001, dtype=np.uint8)
    content.tofile(path)
    found = _map(path)
    other.write_bytes(b"short")
    other.replace(path)
    np.testing.assert_array_equal(found.data, content)
    path.unlink()
    view = found.data[5000:]
    del found
    np.testing.assert_array_equal(view, content[5000:])
    assert not view.flags.writeable


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    found = _map(tmp_path / "a")
    assert found.data.shape == (0,)
    assert found.cached_bytes() in (0, None)


def test_what_cannot_be_mapped_is_an_oserror(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)  # a folder
    try:
        with pytest.raises(OSError):
            MappedFile(descriptor)
    finally:
        os.close(descriptor)


def test_pages_are_absent_once_dropped_and_there_once_announced(tmp_path: Path) -> None:
    path = tmp_path / "a"
    size = 64 * 4096
    path.write_bytes(os.urandom(size))
    found = _map(path)
    if not found.tells:
        pytest.skip("this system does not tell")
    assert not found.absent(0, size)
    assert found.cached_bytes() == size
    _drop(path)
    if found.cached_bytes():
        pytest.skip("this file system keeps its pages, as one in memory does")
    assert found.absent(0, size)
    assert found.absent(5000, 5001)
    found.advise(5000, 5001)
    deadline = time.monotonic() + 10
    while found.absent(5000, 5001) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not found.absent(5000, 5001)
    assert found.cached_bytes()
