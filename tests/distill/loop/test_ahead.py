"""Micro-batches that are made ahead are those that are made when asked for, and every tensor of them can be reached."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from madkit.distill.batches import page_locked
from madkit.distill.batches.region_features import RegionFeatures
from madkit.distill.loop import ahead
from madkit.distill.loop.ahead import Ahead, each_tensor
from madkit.mad.chosen import Lookup
from madkit.regions import Regions


@dataclass(frozen=True)
class Inner:
    values: torch.Tensor
    nothing: torch.Tensor | None = None
    names: tuple[str, ...] = ("a",)


@dataclass(frozen=True)
class Outer:
    inner: dict[str, Inner]
    pair: tuple[torch.Tensor, int]
    step: int = 3


def test_every_tensor_is_changed_and_nothing_else():
    found = Outer({"one": Inner(torch.ones(2))}, (torch.zeros(3), 7))
    changed = each_tensor(found, lambda tensor: tensor + 1)
    assert torch.equal(changed.inner["one"].values, torch.full((2,), 2.0))
    assert torch.equal(changed.pair[0], torch.ones(3))
    assert (changed.pair[1], changed.step, changed.inner["one"].names) == (7, 3, ("a",))
    assert changed.inner["one"].nothing is None
    assert torch.equal(found.inner["one"].values, torch.ones(2))  # the old one stays


@pytest.mark.parametrize("on", [True, False])
@pytest.mark.parametrize("device", [None, "cpu"])
def test_made_ahead_or_when_asked(on, device):
    made: list[tuple[int, str]] = []

    def make(piece: np.ndarray, step: int) -> tuple[list[int], int]:
        made.append((step, threading.current_thread().name))
        if step == 9:
            raise ValueError("no such step")
        return piece.tolist(), step

    first, second = np.asarray([1, 2]), np.asarray([3])
    with Ahead(make, on=on, device=device) as batches:
        batches.announce([first, second], 0)
        assert batches(first, 0) == ([1, 2], 0)
        assert batches(second, 0) == ([3], 0)
        assert batches(second, 4) == ([3], 4)  # never announced
        assert len(made) == 3
        assert made[0][1].startswith("madkit-batch") == on
        assert made[2][1] == threading.main_thread().name
        batches.announce([first], 9)
        with pytest.raises(ValueError, match="no such step"):
            batches(first, 9)


@dataclass(frozen=True)
class Taught:
    """A micro-batch whose targets are looked up in a table."""

    target: Any
    other: torch.Tensor

    def to(self, device: torch.device) -> Taught:
        assert device == torch.device("cuda:1")
        return self


def on_a_gpu(monkeypatch: pytest.MonkeyPatch, settled: list[tuple[str, str]]) -> None:
    cuda = torch.cuda
    monkeypatch.setattr(cuda, "Stream", lambda device: SimpleNamespace(device=device))
    monkeypatch.setattr(cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(cuda, "Event", lambda: SimpleNamespace(record=lambda _: None))
    monkeypatch.setattr(cuda, "set_device", lambda to: settled.append((threading.current_thread().name, str(to))))


def test_on_a_gpu_a_table_in_memory_is_read_and_the_thread_is_on_its_device(monkeypatch):
    settled: list[tuple[str, str]] = []
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor)
        return tensor

    on_a_gpu(monkeypatch, settled)
    monkeypatch.setattr(ahead, "_pinned", pin)
    table, rows = torch.arange(2000.0).view(1000, 2), torch.tensor([[3, 0], [999, 3]])
    with Ahead(lambda *_: Taught(Lookup(table, rows), torch.zeros(5)), on=True, device="cuda:1") as batches:
        batches.announce([np.asarray([0])], 0)
        found = batches(np.asarray([0]), 0).batch
    assert torch.equal(found.target, table[rows])
    assert sorted(tensor.numel() for tensor in pinned) == [5, 8]  # never the table of 2,000
    assert settled == [("madkit-batch_0", "cuda:1")]


class Numbered:
    """Regions of images, which are functions of their number."""

    dim = 6

    def get(self, name: str) -> Regions:
        count = 1 + int(name) % 4
        draw = np.random.default_rng(int(name))
        return Regions(draw.random((count, 4), dtype=np.float32), draw.standard_normal((count, 6)).astype(np.float32))


@pytest.mark.parametrize("limit", [None, 0], ids=["held", "read"])
def test_region_features_are_gathered_where_a_gpu_copies_them_from(monkeypatch, limit):
    """Into memory that is page-locked from the start, other memory for each batch; on the CPU into none of it."""
    taken: list[torch.Tensor] = []
    pinned: list[torch.Tensor] = []

    def locked(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        taken.append(torch.full(shape, torch.nan, dtype=dtype))
        return taken[-1]

    def pin(tensor: torch.Tensor) -> torch.Tensor:  # what is page-locked is not copied
        pinned.append(tensor)
        return tensor

    on_a_gpu(monkeypatch, [])
    monkeypatch.setattr(page_locked, "_locked", locked)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    features = RegionFeatures(Numbered(), [str(number) for number in range(64)], limit=limit)
    pieces = [np.asarray([7, 60, 7, 3]), np.asarray([1, 2, 3, 4])]
    made = [features.features(torch.from_numpy(piece), 4) for piece in pieces]
    assert not taken
    with Ahead(
        lambda piece, _: Taught(features.features(torch.from_numpy(piece), 4), torch.zeros(5)), on=True, device="cuda:1"
    ) as batches:
        batches.announce(pieces, 0)
        found = [batches(piece, 0).batch.target for piece in pieces]
        for got, wanted in zip(found, made, strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    assert [one.data_ptr() for one in found] == [one.data_ptr() for one in taken]
    assert len({one.data_ptr() for one in found}) == 2
    sizes = [tensor.numel() for tensor in pinned]
    assert sizes == [4 * 4 * 6, 5] * 2
    assert {tensor.data_ptr() for tensor in pinned[::2]} == {one.data_ptr() for one in taken}
    assert torch.equal(features.features(torch.from_numpy(pieces[0]), 4), made[0])
    assert len(taken) == 2
