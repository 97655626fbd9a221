"""A disk that is full, a folder that cannot be written, files that may not grow: clear errors, and nothing is lost."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from madkit.cache import TokenCache, verify_cache
from madkit.cli.errors import explain
from madkit.core.errors import CacheError, NotFoundError

LENGTHS = [3, 0, 5, 40, 1, 9] * 3


class Disk:
    """Room for so many bytes; what does not fit any more is written in part, as a real disk does."""

    def __init__(self, room: float) -> None:
        self.room = room
        self.used = 0

    def fits(self, data: bytes | memoryview) -> int:
        fits = int(min(len(data), max(0.0, self.room - self.used)))
        self.used += fits
        return fits


class LimitedFile:
    def __init__(self, file: Any, disk: Disk) -> None:
        self.file, self.disk = file, disk

    def write(self, data: bytes) -> None:
        fits = self.disk.fits(data)
        self.file.write(data[:fits])
        if fits < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __enter__(self) -> LimitedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def flush(self) -> None:
        self.file.flush()

    def fileno(self) -> int:
        return int(self.file.fileno())


@contextlib.contextmanager
def limited(disk: Disk) -> Iterator[None]:
    """Let everything that madkit writes go to a disk of this size."""
    opened, written = Path.open, os.write

    def open_limited(self: Path, mode: str = "r", *more: Any, **options: Any) -> Any:
        file = opened(self, mode, *more, **options)
        return LimitedFile(file, disk) if mode == "wb" else file

    def write_limited(descriptor: int, data: bytes) -> int:
        fits = disk.fits(data)
        if data and not fits:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written(descriptor, data[:fits])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", open_limited)
        patch.setattr("madkit.core.files.os.write", write_limited)
        yield


def payload(store: Path) -> dict[str, bytes]:
    return {name: (store / name).read_bytes() for name in json.loads((store / "manifest.json").read_text())["files"]}


def test_a_disk_that_is_full_at_any_byte(tmp_path: Path, maker: Callable[..., Any]) -> None:
    """Plan, metadata, shards, journal, statistics, manifest: wherever it happens, the next run ends as the first."""
    unlimited = Disk(float("inf"))
    with limited(unlimited):
        whole = maker(tmp_path / "whole", LENGTHS, 12).path
    manifest = (whole / "manifest.json").stat().st_size
    last = [0.5 * manifest, manifest - 1, manifest + 1, manifest + 3000]  # in the manifest, and just before it
    rooms = [*(share / 24 * unlimited.used for share in range(24)), *(unlimited.used - left for left in last)]
    places = set()
    for number, room in enumerate(rooms):
        path = tmp_path / f"store {number}"
        with limited(Disk(room)), pytest.raises(OSError, match="No space left") as full:
            maker(path, LENGTHS, 12)
        place = Path(full.value.filename)
        assert place.is_relative_to(path)
        places.add("shard" if "c" in place.parts[-4:] else place.name)
        assert explain(full.value) == (
            f"The disk is full: {place}.",
            "free some space and run the same command again; finished work is kept.",
        )
        assert not list(path.rglob("*.tmp"))
        assert not (path / ".lock").exists()
        with pytest.raises((CacheError, NotFoundError)):
            TokenCache.open(path)
        with limited(Disk(0)), pytest.raises(OSError, match="No space left"):  # still full
            maker(path, LENGTHS, 12)
        assert payload(maker(path, LENGTHS, 12).path) == payload(whole)
        assert verify_cache(path).ok
    assert places >= {"plan.json", "zarr.json", "shard", "journal.jsonl", "manifest.json"}


def test_a_file_may_not_grow_beyond_a_limit(tmp_path: Path, maker: Callable[..., Any]) -> None:
    """The kernel's own limit (``ulimit -f``), with nothing replaced in between."""
    whole = maker(tmp_path / "whole", LENGTHS, 12, shard_mb=0.01).path
    shard = max((whole / "images/tokens").rglob("0"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (shard.stat().st_size - 1, hard))
        with pytest.raises(OSError, match="File too large") as large:
            maker(tmp_path / "store", LENGTHS, 12, shard_mb=0.01)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert explain(large.value)[0].startswith("File too large: ")
    assert not list((tmp_path / "store").rglob("*.tmp"))
    assert payload(maker(tmp_path / "store", LENGTHS, 12, shard_mb=0.01).path) == payload(whole)


@contextlib.contextmanager
def without_override() -> Iterator[None]:
    """Give up root's power over permissions (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH) in this thread for a while."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    old, new = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, old) == 0
    new[:] = old[:]
    new[0] &= ~0b110
    assert libc.capset(header, new) == 0
    try:
        yield
    finally:
        assert libc.capset(header, old) == 0


def test_a_folder_that_cannot_be_written(tmp_path: Path, maker: Callable[..., Any]) -> None:
    half = maker(tmp_path / "half", LENGTHS, 12, finish=False).path
    complete = maker(tmp_path / "complete", LENGTHS, 12).path
    before = sorted(half.rglob("*"))
    for path in (tmp_path, half, complete):
        path.chmod(0o555)
    try:
        with without_override():
            for path in (half, tmp_path / "new"):
                with pytest.raises(OSError, match="Permission denied") as denied:
                    maker(path, LENGTHS, 12)
                message, hint = explain(denied.value)
                assert message.startswith(f"Permission denied: {path}")
                assert "--workspace" in str(hint)
            with TokenCache.open(complete) as cache:  # reading needs no lock
                assert len(cache.images) == 12
            assert verify_cache(complete).ok
    finally:
        for path in (tmp_path, half, complete):
            path.chmod(0o755)
    assert sorted(half.rglob("*")) == before
    maker(half, LENGTHS, 12)
    assert payload(half) == payload(complete)
