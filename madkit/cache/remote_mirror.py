"""The local mirror of a remote store: files fetched whole when they are first needed, verified, within a size limit.

A payload file without write permission is one that the remote store holds as well: only such files may be dropped to
make room. What an extraction has written and not uploaded yet keeps its write permission, and stays.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import threading
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from madkit.cache.plan import PARTS, unit_of_file
from madkit.cache.remote_files import RemoteFolder
from madkit.core.errors import CacheError, UsageProblem
from madkit.core.workspace import mirror_root

LIMIT_VARIABLE = "MADKIT_CACHE_LIMIT_GB"
FREE_SHARE, FREE_BYTES = 0.05, 20e9
"""Without a limit, this share of the disk is kept free, but no more than so many bytes."""
PART = ".part"
_SMALL = ("unit_statistics", "channel_scales", "unit_cosines")
"""Arrays of a few KB per unit, which are read over all units at once and never make room."""
_SLOTS = 64
_OF_URL = re.compile(r"-[0-9a-f]{12}")  # the end of a mirror's folder, see `mirror_folder`
_STALE_PART_S = 3600.0
_TOUCH_S = 60.0
_RESCAN_S = 20.0
_READ_ONLY = stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH
_WRITABLE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


class Fetcher:
    """Brings files of a remote store into its mirror. Call it with their names, from any thread and process.

    Args:
        remote: the store's objects.
        mirror: its local folder.
        files: size and CRC-32 of each file, as in the manifest.
    """

    def __init__(self, remote: RemoteFolder, mirror: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
        self.remote = remote
        self.mirror = mirror
        self.files = files

    def __call__(self, *names: str) -> bool:
        """Bring files, several at a time, and return whether one was not there; one that is costs a look at its size.

        Raises:
            CacheError: a file does not arrive as the manifest says, or cannot be had at all.
        """
        wanted = [name for name in names if name in self.files and not self._there(name)]
        self.remote.each(self._bring, wanted)
        return bool(wanted)

    def _there(self, name: str) -> bool:
        path = self.mirror / name
        try:
            found = path.stat()
        except FileNotFoundError:
            return False
        if found.st_size != int(self.files[name]["bytes"]):
            return False
        if time.time() - found.st_mtime > _TOUCH_S:  # the oldest make room first
            with suppress(OSError):  # somebody else's file, or one that has just made room
                os.utime(path)
        return True

    def _bring(self, name: str) -> None:
        entry = self.files[name]
        target = self.mirror / name
        with _slot(self.mirror, name):
            if self._there(name):  # by another thread or process while we waited
                return
            make_room(int(entry["bytes"]))
            target.parent.mkdir(parents=True, exist_ok=True)
            wrong = ""
            for _ in range(2):
                part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}{PART}")
                try:
                    self.remote.download(name, part)
                    wrong = difference(part, entry)
                    if not wrong:
                        part.replace(target)
                        share(self.mirror, name)
                        return
                finally:
                    part.unlink(missing_ok=True)
        raise CacheError(
            f"{self.remote.url}/{name} is not what its manifest says: {wrong}, and so again on a second try.",
            hint=f"see what is wrong: madkit cache verify --cache {self.remote.url.rpartition('/')[0]}",
        )


def difference(path: Path, entry: Mapping[str, Any]) -> str:
    """Say in what a file differs from its entry in a manifest; empty where it does not."""
    size = path.stat().st_size
    if size != int(entry["bytes"]):
        return f"{size:,} bytes instead of {int(entry['bytes']):,}"
    digest = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest = zlib.crc32(block, digest)
    return "" if f"{digest:08x}" == entry["crc32"] else "its checksum is wrong"


@contextmanager
def _slot(mirror: Path, name: str) -> Iterator[None]:
    """Hold the lock for a file among all threads and processes. Nobody holds two, so nobody waits in a circle."""
    folder = mirror / ".fetch"
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / f"{zlib.crc32(name.encode()) % _SLOTS:02d}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def share(mirror: Path, name: str) -> None:
    """Mark a payload file as one that the remote store holds too, so that it may make room."""
    if unit_of_file(name) is not None and name.split("/")[1] not in _SMALL:
        with suppress(FileNotFoundError):
            (mirror / name).chmod(_READ_ONLY)


def size_limit() -> int | None:
    """Return the most bytes that mirrors may take, from ``MADKIT_CACHE_LIMIT_GB`` (10^9 bytes); None for no limit."""
    said = os.environ.get(LIMIT_VARIABLE, "").strip()
    if not said:
        return None
    try:
        limit = float(said)
    except ValueError:
        limit = -1.0
    if not 0 <= limit < float("inf"):
        raise UsageProblem(f"{LIMIT_VARIABLE} is '{said}', which is no size.", hint=f"{LIMIT_VARIABLE}=200")
    return int(limit * 1e9)


class _Room:
    """What this process last saw of the mirrors, so that not every file costs a walk through all of them."""

    lock = threading.Lock()
    used = 0
    seen = float("-inf")


def make_room(bytes_: int) -> None:
    """Drop the payload files that were not used for longest until ``bytes_`` more fit, as far as that is possible.

    A single file that is larger than the limit is fetched all the same: a slow run is better than none.
    """
    root = mirror_root()
    limit = size_limit()
    root.mkdir(parents=True, exist_ok=True)
    with _Room.lock:
        if limit is None:
            disk = shutil.disk_usage(root)
            excess = bytes_ + int(min(disk.total * FREE_SHARE, FREE_BYTES)) - disk.free
        else:
            if time.monotonic() - _Room.seen > _RESCAN_S or _Room.used + bytes_ > limit:
                _Room.used = sum(size for _, size, _, _ in _payload(root))
                _Room.seen = time.monotonic()
            excess = _Room.used + bytes_ - limit
            _Room.used += bytes_
        if excess <= 0:
            return
        for _, size, path, may_go in sorted(_payload(root)):
            if excess <= 0:
                break
            if may_go:
                path.unlink(missing_ok=True)
                excess -= size
                _Room.used -= size


def _is_payload(parts: tuple[str, ...]) -> bool:
    """Whether a folder is mirrors/<url>-<digest>/<store>/<part>/<array>/c/...: others may have mirrors there, too."""
    if len(parts) < 6 or not _OF_URL.fullmatch(parts[1][-13:]):
        return False
    return parts[3] in PARTS and parts[5] == "c"


def _payload(root: Path) -> Iterator[tuple[float, int, Path, bool]]:
    """Yield last use, bytes, path, and whether it may go, of every payload file of all mirrors."""
    for folder, _, names in os.walk(root / "mirrors"):
        if not _is_payload(Path(folder).relative_to(root).parts):
            continue
        for name in names:
            path = Path(folder, name)
            try:
                found = path.stat()
            except FileNotFoundError:
                continue
            if name.endswith(PART) and time.time() - found.st_mtime > _STALE_PART_S:  # left by a kill
                path.unlink(missing_ok=True)
                continue
            yield found.st_mtime, found.st_size, path, not found.st_mode & _WRITABLE
