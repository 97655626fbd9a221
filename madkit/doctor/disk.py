"""The disk behind a workspace: room, speed, locks. Writes into a temporary folder of the workspace alone."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from madkit.core.errors import MadkitError
from madkit.core.files import FileLock
from madkit.doctor.findings import Finding, failed, first_line, passed, warned

GROUP = "disk"
PREFIX = ".doctor-"
TRIAL_BYTES = 64 * 2**20
PIECE_BYTES = 4 * 2**20
LITTLE_GB, TOO_LITTLE_GB = 20.0, 1.0
SLOW_WRITE_MB, SLOW_READ_MB = 50.0, 100.0
_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "9p"}


@contextmanager
def trial_folder(workspace: Path) -> Iterator[Path]:
    """A new folder in the workspace that is gone afterwards, whatever happens. Raises OSError where none can be made.

    What a killed doctor left behind an hour ago goes as well.
    """
    for left in workspace.glob(f"{PREFIX}*"):
        if time.time() - left.stat().st_mtime > 3600:
            shutil.rmtree(left, ignore_errors=True)
    folder = workspace / f"{PREFIX}{uuid.uuid4().hex[:12]}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_room(place: Path) -> list[Finding]:
    """Free space and kind of the file system that holds ``place``, or will hold it."""
    there = next(path for path in [place, *place.absolute().parents] if path.exists())
    usage = shutil.disk_usage(there)
    free = usage.free / 1e9
    kind = file_system(there)
    said = f"{free:,.0f} of {usage.total / 1e9:,.0f} GB free"
    found = [passed(GROUP, "free space", said)]
    if free < TOO_LITTLE_GB:
        found = [failed(GROUP, "free space", said, "free some space: madkit cache prune, or --workspace DIR elsewhere")]
    elif free < LITTLE_GB:
        mend = "madkit extract --dry-run says what a cache will take; madkit cache prune frees some"
        found = [warned(GROUP, "free space", said, mend)]
    if kind in _NETWORK:
        mend = "caches are read fastest from a local disk: --cache DIR"
        found.append(warned(GROUP, "file system", f"{kind}, over the network", mend))
    return found


def check_speed(folder: Path) -> list[Finding]:
    """Write and read 64 MiB in a trial folder, and take a lock there."""
    path = folder / "trial"
    piece = os.urandom(PIECE_BYTES)
    try:
        began = time.perf_counter()
        with path.open("wb", buffering=0) as file:
            for _ in range(TRIAL_BYTES // PIECE_BYTES):
                file.write(piece)
            os.fsync(file.fileno())
            written = TRIAL_BYTES / (time.perf_counter() - began) / 1e6
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        began = time.perf_counter()
        with path.open("rb", buffering=0) as file:
            same = all(file.read(PIECE_BYTES) == piece for _ in range(TRIAL_BYTES // PIECE_BYTES))
        read = TRIAL_BYTES / (time.perf_counter() - began) / 1e6
    except OSError as error:
        return [failed(GROUP, "speed", f"nothing can be written ({first_line(error)})", "use another --workspace DIR")]
    if not same:
        return [failed(GROUP, "speed", "what is read is not what was written", "check the disk; use another one")]
    said = f"{written:,.0f} MB/s written, {read:,.0f} MB/s read"
    slow = written < SLOW_WRITE_MB or read < SLOW_READ_MB
    mend = "use a local disk: --workspace DIR, or --cache DIR for caches alone"
    found = [warned(GROUP, "speed", said, mend) if slow else passed(GROUP, "speed", said)]
    try:
        with FileLock(folder / ".lock"):
            found.append(passed(GROUP, "locks", "file locks work"))
    except MadkitError as error:
        found.append(failed(GROUP, "locks", error.message.rstrip("."), error.hint or ""))
    return found


def file_system(path: Path) -> str:
    """Kind of the file system that holds ``path`` ("ext4", "nfs"), "" where it cannot be told."""
    real = str(path.resolve())
    best, kind = "", ""
    try:
        lines = Path("/proc/mounts").read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        _, point, name, *_ = line.split()
        point = point.replace("\\040", " ")
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, name
    return kind
