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

from madkit.distill.loop import ahead
from madkit.distill.loop.ahead import Ahead, each_tensor
from madkit.mad.chosen import Lookup


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


def test_on_a_gpu_a_table_in_memory_is_read_and_the_thread_is_on_its_device(monkeypatch):
    settled: list[tuple[str, str]] = []
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor)
        return tensor

    cuda = torch.cuda
    monkeypatch.setattr(cuda, "Stream", lambda device: SimpleNamespace(device=device))
    monkeypatch.setattr(cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(cuda, "Event", lambda: SimpleNamespace(record=lambda _: None))
    monkeypatch.setattr(cuda, "set_device", lambda to: settled.append((threading.current_thread().name, str(to))))
    monkeypatch.setattr(ahead, "_pinned", pin)
    table, rows = torch.arange(2000.0).view(1000, 2), torch.tensor([[3, 0], [999, 3]])
    with Ahead(lambda *_: Taught(Lookup(table, rows), torch.zeros(5)), on=True, device="cuda:1") as batches:
        batches.announce([np.asarray([0])], 0)
        found = batches(np.asarray([0]), 0).batch
    assert torch.equal(found.target, table[rows])
    assert sorted(tensor.numel() for tensor in pinned) == [5, 8]  # never the table of 2,000
    assert settled == [("madkit-batch_0", "cuda:1")]
