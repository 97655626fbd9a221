"""When a batch is looked at before it is copied, and what is announced then."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from madkit.cache import copying
from madkit.cache.copying import Copier
from madkit.cache.mapped import MappedFile


class _File:
    """A map that notes what happens to it; bytes from ``cold`` on are on the disk until they are announced."""

    def __init__(self, cold: int, *, tells: bool = True) -> None:
        self.bytes = np.arange(200, dtype=np.uint8)
        self.tells = tells
        self.cold = cold
        self.log: list[tuple[str, int]] = []

    @property
    def data(self) -> Any:
        file = self

        class Bytes:
            def __getitem__(self, place: slice) -> Any:
                file.log.append(("copy", place.start))
                return file.bytes[place]

        return Bytes()

    def absent(self, begin: int, end: int) -> bool:
        self.log.append(("look", begin))
        return end > self.cold

    def advise(self, begin: int, end: int) -> None:
        self.log.append(("announce", begin))


def _copy(copier: Copier, file: _File, *begins: int) -> list[tuple[str, int]]:
    file.log.clear()
    out = np.zeros(10 * len(begins), np.uint8)
    places = [(begin, begin + 10, 10 * number, 10 * number + 10) for number, begin in enumerate(begins)]
    copier([(cast(MappedFile, file), *place) for place in places], out)
    np.testing.assert_array_equal(out, np.concatenate([file.bytes[begin : begin + 10] for begin in begins]))
    return file.log


def test_only_what_is_on_the_disk_is_announced_and_all_of_it_before_copying() -> None:
    log = _copy(Copier(), _File(cold=100), 50, 120, 0, 150)
    assert [place for what, place in log if what == "announce"] == [120, 150]
    assert [what for what, _ in log[-4:]] == ["copy"] * 4


def test_nobody_looks_after_four_batches_in_memory_until_a_page_fault_went_to_the_disk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copier, file = Copier(), _File(cold=200)
    looked = [("look", 3) in _copy(copier, file, 3) for _ in range(6)]
    assert looked == [True] * 4 + [False] * 2
    counts = iter([7, 9])  # before and after copying
    monkeypatch.setattr(copying, "_disk_faults", lambda: next(counts, 9))
    file.cold = 0
    assert _copy(copier, file, 3) == [("copy", 3)]
    for _ in range(9):  # every batch comes from the disk
        assert _copy(copier, file, 3) == [("look", 3), ("announce", 3), ("copy", 3)]
    file.cold = 200
    looked = [("look", 3) in _copy(copier, file, 3) for _ in range(6)]
    assert looked == [True] * 4 + [False] * 2


def test_where_the_system_does_not_tell_everything_is_announced_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    copier, file = Copier(), _File(cold=0, tells=False)
    assert [("announce", 3) in _copy(copier, file, 3) for _ in range(5)] == [True] * 4 + [False]
    counts = iter([0, 1])
    monkeypatch.setattr(copying, "_disk_faults", lambda: next(counts, 1))
    assert _copy(copier, file, 3) == [("copy", 3)]
    assert [("announce", 3) in _copy(copier, file, 3) for _ in range(66)] == [True] * 64 + [False] * 2


def test_large_batches_are_announced_a_window_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "WINDOW_BYTES", 19)
    log = [event for event in _copy(Copier(), _File(cold=0), 0, 20, 40, 60, 80) if event[0] != "look"]
    announced = [place for what, place in log if what == "announce"]
    assert announced == [0, 20, 40, 60, 80]
    assert log.index(("announce", 60)) < log.index(("copy", 0)) < log.index(("announce", 80)) < log.index(("copy", 40))
