"""Cutting the next step's micro-batches in a thread while the present step is computed.

A micro-batch is a pure function of its examples and its step, so it does not matter who makes it, or when.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

from madkit.distill.order import Indices

MakeBatch = Callable[[Indices, int], Any]


class Ahead:
    """A maker of micro-batches that may have made the next ones already. Use as a context manager."""

    def __init__(self, make: MakeBatch, *, on: bool) -> None:
        self._make = make
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="madkit-batch") if on else None
        self._made: dict[tuple[int, bytes], Future[Any]] = {}

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
        self._made = {(step, piece.tobytes()): self._pool.submit(self._make, piece, step) for piece in pieces}

    def __enter__(self) -> Ahead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
