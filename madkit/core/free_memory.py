"""How much memory a process may fill: its part of what is free on the machine, or of what its control group leaves.

Several processes on one machine (a GPU each, or the runs of a sweep) read at the same time, so each of them may take a
part of what it finds free, or together they would fill the machine several times over. Inside a container, or under a
cluster's scheduler, the machine's free memory says nothing of what its limit lets a process have.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from madkit.core.launcher import local_world_size

UNKNOWN = 4 * 2**30  # where the system does not say
_MEMINFO = Path("/proc/meminfo")
_OWN_GROUPS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")
# By version of control groups: where they lie, the names of limit and use, and in `memory.stat` of cached files.
_VERSIONS = {
    2: ("", "memory.max", "memory.current", "inactive_file"),
    1: ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
_beside = 1


def share_memory(processes: int) -> None:
    """Say that so many processes share this machine's memory, this one among them."""
    global _beside
    _beside = max(1, processes)


def memory_share(share: float) -> int:
    """Bytes that this process may fill where all processes of its kind here may fill `share` of what is free.

    A launcher says how many there are (`LOCAL_WORLD_SIZE` of torchrun and accelerate), or `share_memory`.
    """
    free = free_memory()
    return int(share * (UNKNOWN if free is None else free) / max(_beside, local_world_size()))


def free_memory() -> int | None:
    """Bytes that can be had without swapping and below every limit of this process; None where nobody says."""
    found = [left for left in (_of_machine(), *_of_groups()) if left is not None]
    return max(0, min(found)) if found else None


def _of_machine() -> int | None:
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration, ValueError, IndexError):
        return None


def _of_groups() -> Iterator[int]:
    """What each limit of this process's control group, and of those that it is in, leaves."""
    try:
        lines = _OWN_GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, place = rest.partition(":")
        version = 2 if number == "0" else 1
        if version == 1 and "memory" not in controllers.split(","):
            continue
        below, *names = _VERSIONS[version]
        root = _GROUPS / below
        folder = root / place.strip("/")
        for group in (folder, *folder.parents):
            left = _left(group, *names)
            if left is not None:
                yield left
            if group == root:
                break


def _left(group: Path, limit: str, use: str, cached: str) -> int | None:
    try:
        most, used = int((group / limit).read_text()), int((group / use).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return most - used + int(stat.get(cached, 0))  # cached files give way
    except (OSError, ValueError):  # no such file, or "max": no limit
        return None
