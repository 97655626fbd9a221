"""Several processes of one job fill one store: the bytes of a single process, whoever is killed on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from madkit.cache import TokenCache, verify_cache
from madkit.cache.journal import journal_rows, journalled_units
from madkit.core.errors import CacheError
from madkit.core.files import FileLock
from madkit.extract.processes import Processes

Forks = Callable[..., dict[str, Any]]


def command(workspace: Path, teacher: Path, *more: object) -> list[object]:
    place = ("--workspace", workspace, "--teacher", f"local:{teacher}", "--task", "snli-ve")
    return ["extract", *place, "--device", "cpu", "--workers", 1, "--shard-mb", 0.0005, *more]


def payload(store: Path) -> dict[str, bytes]:
    files = json.loads((store / "manifest.json").read_text())["files"]
    return {name: (store / name).read_bytes() for name in files}


def store_of(workspace: Path) -> Path:
    (store,) = (workspace / "cache").iterdir()
    return store


def copied(workspace: Path, name: str) -> Path:
    return Path(shutil.copytree(workspace, workspace.with_name(name), ignore=shutil.ignore_patterns("cache")))


@pytest.mark.slow  # three times the imports of everything
def test_accelerate_launches_two_processes(workspace: Path, tiny_teacher: Path, forks: Forks) -> None:
    """The command of the documentation, as a user types it."""
    whole = copied(workspace, "whole")
    assert forks(*command(whole, tiny_teacher))["codes"] == [0]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ("--multi_gpu", "--num_processes", "2", "--main_process_port", str(port))
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *launch, "-m", "madkit"]
        + [str(argument) for argument in command(workspace, tiny_teacher, "--json")],
        capture_output=True, text=True, timeout=170,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (report,) = json.loads(done.stdout)["stores"]  # one report, of the whole
    assert (report["computed"], report["items"]) == (29, 29)
    assert done.stderr.count("2 processes share 20 shards") == 1
    assert payload(store_of(workspace)) == payload(store_of(whole))


def test_int8_and_absent_items_come_out_as_with_one_process(workspace: Path, tiny_teacher: Path, forks: Forks) -> None:
    images = workspace / "data/snli-ve/images"
    (images / "103.png").write_bytes((images / "103.png").read_bytes()[:60])
    (images / "107.png").unlink()
    whole = copied(workspace, "whole")
    more = ("--store-dtype", "int8", "--tokens", "selected:4")
    alone = forks(*command(whole, tiny_teacher, *more))
    many = forks(*command(workspace, tiny_teacher, *more), processes=3)
    assert (alone["codes"], many["codes"]) == ([1], [1, 1, 1])  # two images are missing
    assert "2 of 10 images cannot be read" in many["printed"][0]
    assert many["printed"][1:] == ["", ""]  # the first process speaks for all
    assert many["begun"] == [2, 2, 2]
    listed = [json.loads((store_of(place) / "absent.json").read_text()) for place in (whole, workspace)]
    assert [{Path(item["id"]).stem[:3] for item in one["images"]} for one in listed] == [{"103", "107"}] * 2
    allowed = forks(*command(workspace, tiny_teacher, *more, "--allow-missing"), processes=2)
    assert (allowed["codes"], allowed["begun"]) == ([0, 0], [0, 0])
    assert forks(*command(whole, tiny_teacher, *more, "--allow-missing"))["codes"] == [0]
    assert payload(store_of(workspace)) == payload(store_of(whole))
    rounding = [json.loads((store_of(place) / "manifest.json").read_text())["rounding"] for place in (whole, workspace)]
    assert rounding[0] == rounding[1]
    assert verify_cache(store_of(workspace)).ok


def test_a_killed_process_costs_its_shard_and_any_number_goes_on(
    workspace: Path, tiny_teacher: Path, forks: Forks
) -> None:
    whole = copied(workspace, "whole")
    assert forks(*command(whole, tiny_teacher))["codes"] == [0]
    kill = {"rank": 1, "signal": signal.SIGKILL, "units": 3, "seconds": 60.0}
    answer = forks(*command(workspace, tiny_teacher), processes=2, kill=kill)
    assert answer["codes"] == [1, -signal.SIGKILL]
    assert "Error: Another process of this job has ended." in answer["printed"][0]
    assert "Traceback" not in answer["printed"][0]
    store = store_of(workspace)
    assert (store / "journal-1.jsonl").is_file()
    done = journalled_units(store)
    assert answer["begun"][0] == 10
    assert len(done) >= 10 + answer["begun"][1] - 1
    with pytest.raises(CacheError, match=rf"unfinished \({len(done)} of 20 shards\)"):
        TokenCache.open(store)
    (plan,) = forks(*command(workspace, tiny_teacher, "--dry-run", "--json"))["printed"]
    assert json.loads(plan[plan.index("{") :])["stores"][0]["skipped"] > 0  # behind what stderr says
    again = forks(*command(workspace, tiny_teacher), processes=3)
    assert again["codes"] == [0, 0, 0], again["printed"]
    assert sum(again["begun"]) == 20 - len(done)
    assert payload(store) == payload(store_of(whole))
    lines = [(row["part"], row["unit"]) for row in journal_rows(store)]
    assert len(lines) == len(set(lines)) == 20
    assert not list(store.glob("journal-*"))
    assert not list(store.glob(".lock*"))


def test_the_first_process_may_be_the_one_that_is_killed(workspace: Path, tiny_teacher: Path, forks: Forks) -> None:
    kill = {"rank": 0, "signal": signal.SIGKILL, "units": 2, "seconds": 60.0}
    answer = forks(*command(workspace, tiny_teacher), processes=2, kill=kill)
    assert answer["codes"] == [-signal.SIGKILL, 1]
    assert "Error: Another process of this job has ended." in answer["printed"][1]
    assert forks(*command(workspace, tiny_teacher))["codes"] == [0]
    assert verify_cache(store_of(workspace)).ok


def test_a_signal_to_one_process_ends_all(workspace: Path, tiny_teacher: Path, forks: Forks) -> None:
    kill = {"rank": 1, "signal": signal.SIGTERM, "units": 1, "seconds": 60.0}
    answer = forks(*command(workspace, tiny_teacher), processes=2, kill=kill)
    assert answer["codes"] == [75, 75]
    assert "Stopped by SIGTERM" in answer["printed"][0]
    assert answer["printed"][1] == ""
    assert forks(*command(workspace, tiny_teacher))["codes"] == [0]
    assert verify_cache(store_of(workspace)).ok


def test_what_one_process_fails_at_is_said_once(workspace: Path, tiny_teacher: Path, forks: Forks) -> None:
    answer = forks(*command(workspace, tiny_teacher, "--tokens", "some"), processes=2)
    assert answer["codes"] == [2, 2]
    assert "some" in answer["printed"][0]
    assert answer["printed"][1] == ""
    assert forks(*command(workspace, tiny_teacher))["codes"] == [0]
    store = store_of(workspace)
    (store / "manifest.json").unlink()
    (store / "journal.jsonl").unlink()
    with FileLock(store / ".lock-1"):  # a process of an earlier job that is still there
        answer = forks(*command(workspace, tiny_teacher), processes=2)
    assert answer["codes"] == [1, 1]
    assert f"is in use by process {os.getpid()} on " in answer["printed"][0]


def test_units_are_dealt_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Processes().count == 1
    for name, value in {"RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    dealt = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        share = Processes().deal({"images": [2, 3, 5, 7, 11], "texts": [0, 1, 2, 3]})
        assert len(share["images"] + share["texts"]) == 3  # nobody has more
        dealt += [(part, unit) for part, units in share.items() for unit in units]
    assert sorted(dealt) == [("images", n) for n in (2, 3, 5, 7, 11)] + [("texts", n) for n in range(4)]
    assert (Processes().number, Processes.alone().number) == (2, 0)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert Processes().device("auto") == ("cpu", "as Accelerate was told")


def test_accelerate_with_cpu_starts_one_process_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What ``accelerate launch --cpu --num_processes 2`` leaves in the environment of the one process it starts."""
    for name, value in {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    with Processes() as processes:
        assert processes.count == 1
    assert "accelerate launch --multi_gpu --num_processes N" in capsys.readouterr().err
