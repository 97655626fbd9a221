"""What a process may fill: its part of the machine, within the limits of its control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from madkit.core import free_memory as memory
from madkit.core.free_memory import free_memory, memory_share, share_memory

GB = 10**9


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with 100 GB free, whose files are these."""
    (tmp_path / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable:  {100 * GB // 1024} kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(memory, "_GROUPS", tmp_path / "groups")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(memory, "_beside", 1)
    return tmp_path


def limit(folder: Path, names: tuple[str, str, str], most: str, used: int, cached: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{most}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{names[2]} {cached}\n")


def test_memory_is_asked_of_the_machine():
    assert (free_memory() or 0) > 2**20


def test_processes_beside_each_other_share_what_is_free(machine, monkeypatch):
    assert memory_share(0.4) == pytest.approx(40 * GB, rel=1e-6)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert memory_share(0.4) == pytest.approx(40 * GB, rel=1e-6)  # a cluster's own habit: nobody launched this process
    for name, text in (("RANK", "3"), ("WORLD_SIZE", "16"), ("MASTER_ADDR", "x"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, text)
    assert memory_share(0.4) == pytest.approx(5 * GB, rel=1e-6)
    monkeypatch.delenv("RANK")
    share_memory(4)  # as a sweep says
    assert memory_share(0.4) == pytest.approx(10 * GB, rel=1e-6)


def test_the_limit_of_a_scheduler_counts_wherever_above_the_process_it_is_set(machine):
    new = ("memory.max", "memory.current", "inactive_file")
    (machine / "own").write_text("0::/slurm/job_7/step_0\n")
    limit(machine / "groups/slurm/job_7/step_0", new, "max", 3 * GB, 0)
    limit(machine / "groups/slurm/job_7", new, str(32 * GB), 12 * GB, 5 * GB)
    assert free_memory() == 25 * GB
    old = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    (machine / "own").write_text("5:cpu:/a\n4:memory:/docker/x\n")
    limit(machine / "groups/memory", old, str(16 * GB), 4 * GB, 0)  # a container sees its own group as the root
    assert free_memory() == 12 * GB


def test_systems_that_do_not_say(machine):
    (machine / "meminfo").unlink()
    assert free_memory() is None
    assert memory_share(0.5) == memory.UNKNOWN // 2
