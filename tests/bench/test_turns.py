"""Sides in turns: the order, the medians, and what is counted."""

from __future__ import annotations

import mmap
import time

import pytest
import torch

from madkit.bench.extract import AGAIN, noise, warn_of_noise, with_ratios
from madkit.bench.turns import Side, Speed, take_turns


def test_sides_go_there_and_back_and_are_tidied_up_after() -> None:
    calls: list[str] = []

    def side(name: str) -> Side:
        return Side(name, lambda pieces: calls.append(f"{name}{pieces}"), 4, lambda: calls.append("."))

    speeds = take_turns([side("a"), side("b"), side("c")], repeats=2, device="cpu")
    assert "".join(calls) == "a1.b1.c1.c1.b1.a1." * 2
    assert {name: (speed.turns, speed.items) for name, speed in speeds.items()} == dict.fromkeys("abc", (4, 4))


def test_a_side_is_as_fast_as_its_median_turn() -> None:
    naps = iter([0.02, 0.02, 0.2, 0.02])
    slow = Side("slow", lambda pieces: time.sleep(next(naps)), 10)
    speed = take_turns([slow], repeats=2, device="cpu")["slow"]
    assert speed.per_second == pytest.approx(10 / 0.02, rel=0.2)
    assert speed.quartiles[0] < speed.per_second <= speed.quartiles[1]
    assert speed.cpu_ms < 1  # it slept


def fill_fresh_memory(pieces: int) -> None:
    """Take 60 MB straight from the system: what an allocator has kept from other tests would not show as more."""
    with mmap.mmap(-1, 60_000_000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as fresh:
        for start in range(0, len(fresh), mmap.PAGESIZE):
            fresh[start] = 1


def test_turns_are_filled_and_their_memory_is_counted() -> None:
    asked: list[int] = []

    def nap(pieces: int) -> None:
        asked.append(pieces)
        time.sleep(0.01 * pieces)

    speed = take_turns([Side("nap", nap, 3)], repeats=1, device="cpu", turn_s=0.1)["nap"]
    assert asked[:2] == [1, 1]  # warming up, and measuring how long a piece takes
    assert 5 <= asked[2] == asked[3] <= 10
    assert speed.items == 3 * asked[2]
    assert speed.per_second == pytest.approx(300, rel=0.3)
    big = take_turns([Side("big", fill_fresh_memory, 1)], repeats=2, device="cpu")
    if big["big"].memory_mb is None:
        pytest.skip("this system does not tell the peak of resident memory")
    assert 55 < big["big"].memory_mb < 200
    assert torch.get_num_threads() >= 1


def test_ratios_are_made_of_the_numbers_shown() -> None:
    rows = [{"side": "peer", "per_second": 3.0}, {"side": "madkit", "per_second": 7.0}]
    found = with_ratios(rows, "madkit")
    assert [(row["default"], row["madkit_is"]) for row in found] == [(False, 2.33), (True, 1.0)]
    speeds = {name: Speed(rate, (rate, rate), 1.0, None, 2, 1) for name, rate in (("a", 5.0), ("a" + AGAIN, 4.0))}
    part = {"noise": noise(speeds, "a")}
    assert part["noise"] == {"side": "a", "per_second": [5.0, 4.0], "ratio": 1.25}
    document: dict[str, list[str]] = {"warnings": []}
    warn_of_noise(document, {"noise": {"side": "b", "ratio": 1.02}})
    assert document["warnings"] == []
    warn_of_noise(document, {"noise": {"side": "b", "ratio": 1.02}}, part)
    assert "differs from itself by 1.25x" in document["warnings"][0]
