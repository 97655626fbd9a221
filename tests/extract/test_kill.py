"""Signals and kills: an extraction that was stopped goes on, and ends with the bytes of one that was not."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from madkit.cache import verify_cache
from madkit.cache.journal import journal_rows
from madkit.core.interrupts import StopSignals

Forks = Callable[..., dict[str, Any]]
KILLS = 20


def payload(store: Path) -> dict[str, bytes]:
    files = json.loads((store / "manifest.json").read_text())["files"]
    return {name: (store / name).read_bytes() for name in files}


def command(workspace: Path, teacher: Path, shard_mb: float = 0.0005) -> list[object]:
    place = ("--workspace", workspace, "--teacher", f"local:{teacher}", "--task", "snli-ve")
    return ["extract", *place, "--device", "cpu", "--workers", 1, "--shard-mb", shard_mb]


def journalled(workspace: Path) -> dict[str, int]:
    """How many lines the journals have for each part."""
    found = {"images": 0, "texts": 0}
    for store in (workspace / "cache").glob("*"):
        for row in journal_rows(store):
            found[row["part"]] += 1
    return found


def test_sigkills_at_random_moments_cost_a_shard_each_and_no_byte(
    workspace: Path, tiny_teacher: Path, tmp_path: Path, forks: Forks, more_pictures: Callable[[Path], None]
) -> None:
    more_pictures(workspace / "data/snli-ve")
    whole = tmp_path / "whole"
    shutil.copytree(workspace, whole)
    one_item_each = 0.0002
    started = time.monotonic()
    assert forks(*command(whole, tiny_teacher, one_item_each))["codes"] == [0]
    long = time.monotonic() - started
    (expected,) = (whole / "cache").iterdir()
    chance = random.Random(4)
    before, hit, shards = journalled(workspace), {"images": 0, "texts": 0}, sum(journalled(whole).values())
    encoded = 0
    for number in range(KILLS):
        # half of them while some unit is written, half at any moment: starting, planning, encoding; over the whole way
        goal = round(shards * (number + chance.random()) / (KILLS + 1))
        units = max(1, goal - sum(before.values()))
        kill = {"rank": 0, "signal": signal.SIGKILL, "units": units, "seconds": 60.0}
        kill["then"] = chance.uniform(0, 0.004)
        if number % 2:
            kill |= {"seconds": chance.uniform(0.1, 1) * long, "then": 0}
        answer = forks(*command(workspace, tiny_teacher, one_item_each), kill=kill)
        assert answer["codes"] == [-signal.SIGKILL], answer["printed"][0]  # it was still at work
        after = journalled(workspace)
        new = sum(after.values()) - sum(before.values())
        assert new >= answer["begun"][0] - 1  # the shard being written is all that a kill can cost
        encoded += answer["encoded"][0]
        hit["images" if after["texts"] == 0 else "texts"] += 1
        before = after
    assert min(hit.values()) >= 4, hit  # in either part
    answer = forks(*command(workspace, tiny_teacher, one_item_each))
    assert answer["codes"] == [0], answer["printed"][0]
    assert "going on with" in answer["printed"][0]
    assert encoded + answer["encoded"][0] <= shards  # none was encoded to its end twice, written or not when killed
    (store,) = (workspace / "cache").iterdir()
    assert verify_cache(store).ok
    assert payload(store) == payload(expected)
    assert not list(store.glob(".kept-*"))
    lines = [(row["part"], row["unit"]) for row in journal_rows(store)]
    assert len(lines) == len(set(lines))  # nothing that had a line was done again


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGTERM, 75, "Stopped by SIGTERM after saving."), (signal.SIGINT, 130, "Stopped after saving")],
)
def test_a_signal_finishes_the_shard_and_says_how_to_go_on(
    workspace: Path, tiny_teacher: Path, forks: Forks, number: int, code: int, said: str
) -> None:
    kill = {"rank": 0, "signal": number, "units": 2, "seconds": 60.0}
    answer = forks(*command(workspace, tiny_teacher), kill=kill)
    assert answer["codes"] == [code]
    assert said in answer["printed"][0]
    assert "run the same command again" in answer["printed"][0]
    assert "Traceback" not in answer["printed"][0]
    (store,) = (workspace / "cache").iterdir()
    assert sum(journalled(workspace).values()) == answer["begun"][0]  # what was begun is in the journal
    assert not (store / "manifest.json").exists()
    assert not (store / ".lock").exists()
    assert not list(store.rglob("*.tmp"))
    again = forks(*command(workspace, tiny_teacher))
    assert again["codes"] == [0]
    assert again["begun"][0] == 20 - answer["begun"][0]
    assert verify_cache(store).ok


def test_signals_are_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
