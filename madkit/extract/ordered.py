"""Threads that work ahead of their consumer, whose results come in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def ordered_map(
    function: Callable[[A], B], items: Iterable[A], *, threads: int, window: int
) -> Generator[Future[B], None, None]:
    """Yield finished futures of ``function`` over ``items`` in order, at most ``window`` ahead of the consumer.

    ``items`` is read in the consumer's thread, only as far as the window reaches.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="madkit-extract") as pool:
        waiting: deque[Future[B]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= window:
                    yield _done(waiting.popleft())
            while waiting:
                yield _done(waiting.popleft())
        finally:
            for future in waiting:
                future.cancel()


def _done(future: Future[B]) -> Future[B]:
    future.exception()  # waits
    return future
