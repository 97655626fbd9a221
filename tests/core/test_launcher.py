"""One of several processes is what a launcher started, and nobody whom a cluster's variables alone would make one."""

from __future__ import annotations

import pytest

from madkit.core import launcher
from madkit.core.job import Job

FOUR = {"RANK": "3", "WORLD_SIZE": "8", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


def place() -> tuple[bool, int, int, int]:
    return launcher.launched(), launcher.rank(), launcher.world_size(), launcher.local_rank()


@pytest.mark.parametrize("absent", FOUR)
def test_one_variable_less_is_no_launcher(monkeypatch: pytest.MonkeyPatch, absent: str) -> None:
    for name, value in {**FOUR, "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert place() == (True, 3, 8, 1)
    monkeypatch.delenv(absent)
    assert place() == (False, 0, 1, 0)
    job = Job("evaluate")
    assert (job.number, job.count) == (0, 1)


def test_a_launcher_that_does_not_number_a_machines_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for name, value in FOUR.items():
        monkeypatch.setenv(name, value)
    assert launcher.local_rank() == 3
    job = Job("evaluate")
    assert (job.number, job.count, job.first) == (3, 8, False)


def test_processes_of_one_machine_are_counted_where_the_launcher_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    for name in FOUR:
        monkeypatch.delenv(name, raising=False)
    assert launcher.local_world_size() == 1
    for name, value in FOUR.items():
        monkeypatch.setenv(name, value)
    assert launcher.local_world_size() == 4
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert launcher.local_world_size() == 1
