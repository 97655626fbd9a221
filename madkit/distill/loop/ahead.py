"""Cutting the next step's micro-batches in a thread while the present step is computed.

A micro-batch is a pure function of its examples and its step, so it does not matter who makes it, or when. On a GPU the
thread also copies it there, from page-locked memory and on a stream of its own, beside what the present step computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, is_dataclass, replace
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor

from madkit.distill.batches.order import Indices
from madkit.distill.batches.page_locked import page_locked
from madkit.mad.chosen import Lookup

MakeBatch = Callable[[Indices, int], Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Staged:
    """A micro-batch on its way to a GPU.

    Attributes:
        batch: its tensors, on the device.
        arrived: recorded behind the copies.
    """

    batch: Any
    arrived: torch.cuda.Event

    def to(self, device: torch.device | str) -> Any:
        """The micro-batch on `device`, once it has arrived there: work that is queued from now on waits for it."""
        stream = torch.cuda.current_stream(torch.device(device))
        stream.wait_event(self.arrived)
        each_tensor(self.batch, lambda tensor: _used_on(tensor, stream))
        return self.batch.to(device)


class Ahead:
    """A maker of micro-batches that may have made the next ones already. Use as a context manager.

    Args:
        make: (indices, step) -> micro-batch.
        on: whether anything is made ahead.
        device: a GPU to which micro-batches are copied ahead, too; None, or a CPU: they are left where they are made.
    """

    def __init__(self, make: MakeBatch, *, on: bool, device: torch.device | str | None = None) -> None:
        self._make = make
        self._made: dict[tuple[int, bytes], Future[Any]] = {}
        self._device = None if device is None else torch.device(device)
        cuda = on and self._device is not None and self._device.type == "cuda"
        self._stream = torch.cuda.Stream(self._device) if cuda else None
        self._pool: ThreadPoolExecutor | None = None
        if on:
            # which GPU is the present one is a matter of each thread, and a new thread's is the first: without this,
            # the threads of all processes of a machine would take room on the first GPU for contexts of their own
            self._pool = ThreadPoolExecutor(1, "madkit-batch", self._settle if cuda else None)

    def __call__(self, piece: Indices, step: int) -> Any:
        """The micro-batch of `piece` in `step`. Raises what its making raised."""
        found = self._made.pop((step, piece.tobytes()), None)
        return self._make(piece, step) if found is None else found.result()

    def announce(self, pieces: Sequence[Indices], step: int) -> None:
        """Say which micro-batches `step` will ask for. What was announced and never asked for is forgotten."""
        if self._pool is None:
            return
        for future in self._made.values():
            future.cancel()
        self._made = {(step, piece.tobytes()): self._pool.submit(self._staged, piece, step) for piece in pieces}

    def _settle(self) -> None:
        assert self._stream is not None
        torch.cuda.set_device(self._stream.device)

    def _staged(self, piece: Indices, step: int) -> Any:
        if self._stream is None or self._device is None:
            return self._make(piece, step)
        with torch.cuda.stream(self._stream), page_locked():
            batch = _each(self._make(piece, step), Lookup, _looked_up)
            batch = each_tensor(batch, _pinned).to(self._device)
            arrived = torch.cuda.Event()
            arrived.record(self._stream)
        return Staged(batch, arrived)

    def __enter__(self) -> Ahead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def each_tensor(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`value`, a tensor or dataclasses, tuples and mappings of them, with every tensor changed."""
    return _each(value, Tensor, change)


def _each(value: Any, kind: type[T], change: Callable[[T], Any]) -> Any:
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, Mapping):
        return {name: _each(one, kind, change) for name, one in value.items()}
    if type(value) is tuple:
        return tuple(_each(one, kind, change) for one in value)
    if is_dataclass(value) and not isinstance(value, type):
        changed = {field.name: _each(getattr(value, field.name), kind, change) for field in fields(value)}
        return replace(value, **changed)
    return value


def _looked_up(lookup: Lookup) -> Tensor | Lookup:
    """The few rows of a table in memory, which is not to be page-locked as a whole; a table on a GPU is read there."""
    return lookup.to("cpu") if lookup.table.device.type == "cpu" else lookup


def _pinned(tensor: Tensor) -> Tensor:
    # a part of a wider table would be copied once more on its way, and not from page-locked memory; what was gathered
    # there (`page_locked`) stays where it is
    return tensor.contiguous().pin_memory() if tensor.device.type == "cpu" else tensor


def _used_on(tensor: Tensor, stream: torch.cuda.Stream) -> Tensor:
    """Tell the allocator that another stream reads a tensor, so that its memory is not given away too early."""
    if tensor.device.type == "cuda":
        tensor.record_stream(stream)
    return tensor
