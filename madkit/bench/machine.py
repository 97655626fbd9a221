"""What a measurement has to say about the machine, and what the machine has room for."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from madkit import __version__
from madkit.core.errors import RunError

_BUSY = 0.75  # running processes per core from which on timings mean little
_SPARE_BYTES = 100_000_000  # of disk, left alone
STAYED = 0.01  # of a file's pages in memory, from which on reading it is not cold


def machine_facts() -> dict[str, Any]:
    """Cores, memory, versions and load as plain JSON values."""
    return {
        "madkit": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load": round(os.getloadavg()[0], 2),
    }


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def busy(facts: dict[str, Any]) -> str | None:
    """A sentence for machines that others are using, None for a quiet one."""
    if facts["load"] <= _BUSY * facts["cores"]:
        return None
    return (
        f"The machine is busy (load {facts['load']:.1f} on {facts['cores']} cores): timings by the clock mean little, "
        "CPU time means more."
    )


def available_memory() -> int:
    """Bytes that a new process can have without swapping."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def need_space(folder: Path, needed: int, *, hint: str) -> None:
    """Raise RunError, with what to do about it, where a folder's disk has no room for so many bytes."""
    free = shutil.disk_usage(folder).free
    if needed + _SPARE_BYTES > free:
        raise RunError(
            f"The files need {needed / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB free.",
            hint=hint,
        )


def forget_cached(path: Path) -> bool:
    """Ask the system to drop a file from its page cache, so that reading it goes to the disk. False where it cannot."""
    if not hasattr(os, "posix_fadvise"):  # macOS
        return False
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # pages that are not yet written stay
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    return True


def drop_cached(path: Path) -> bool:
    """As `forget_cached`, and whether the pages really went: those of a file that lies in memory (tmpfs) never do."""
    if not forget_cached(path):
        return False
    stayed = cached_bytes([path])
    return stayed is not None and stayed <= STAYED * path.stat().st_size + 2**20


def cached_bytes(paths: Iterable[Path]) -> int | None:
    """How much of some files is in memory, in whole pages. None where the system does not tell."""
    from madkit.cache.mapped import MappedFile

    total = 0
    for path in paths:
        with path.open("rb") as file:
            found = MappedFile(file.fileno()).cached_bytes()
        if found is None:
            return None
        total += found
    return total
