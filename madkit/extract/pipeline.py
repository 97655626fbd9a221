"""Moving items through the teacher: decoding ahead in threads, batches, and a writer behind a bounded queue.

Memory does not grow with the data: a window of decoded images, one unit being filled, and at most two waiting to be
written.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from madkit.cache.plan import Part
from madkit.cache.writer import StoreWriter
from madkit.core.errors import CacheError
from madkit.extract.selection import select_patches
from madkit.teachers.interface import TextTeacher, TokenizedText, VisionTeacher

Arrays = Mapping[str, npt.NDArray[Any]]
A = TypeVar("A")
B = TypeVar("B")


def ordered_map(
    function: Callable[[A], B], items: Iterable[A], *, threads: int, window: int
) -> Generator[Future[B], None, None]:
    """Yield finished futures of ``function`` over ``items`` in order, at most ``window`` ahead of the consumer."""
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


@contextmanager
def one_thread_per_operation(device: str) -> Iterator[int]:
    """On the CPU, let PyTorch use one thread per operation and say how many batches to encode at a time instead.

    Batches side by side need no waiting for each other inside every operation: on two busy cores the embedded teacher
    was eight times faster so, and the result no longer depends on the number of cores.
    """
    if torch.device(device).type != "cpu":
        yield 1
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def encode_images(
    teacher: VisionTeacher,
    images: Iterator[torch.Tensor],
    count: int,
    batch: int,
    advance: Callable[[int], None],
    parallel: int = 1,
    kept: int | None = None,
) -> Arrays:
    """Encode the ``count`` images of one unit, ``parallel`` batches at a time.

    Args:
        teacher: the encoder.
        images: uint8 [3, H, W] each.
        count: how many to take of them.
        batch: images per forward pass.
        advance: called with the number of images done.
        parallel: batches at a time.
        kept: tokens to keep of each image, chosen on the device before they are copied back; None for all.

    Returns:
        ``tokens`` [n, T, D] and ``globals`` [n, D], both float16, and ``positions`` [n, T] int32 of the tokens.
    """
    cells = teacher.grid[0] * teacher.grid[1]
    kept = cells if kept is None else kept
    tokens = np.empty((count, kept, teacher.dim), dtype=np.float16)
    positions = np.empty((count, kept), dtype=np.int32)
    positions[:] = np.arange(kept)
    globals_ = np.empty((count, teacher.dim), dtype=np.float16)

    def batches() -> Iterator[tuple[int, list[torch.Tensor]]]:
        for start in range(0, count, batch):
            yield start, list(islice(images, min(batch, count - start)))

    def encode(job: tuple[int, list[torch.Tensor]]) -> int:
        start, pixels = job
        output = teacher.encode(torch.stack(pixels))
        chosen = output.tokens
        if kept < cells:
            places = select_patches(output.tokens, output.global_, teacher.grid, kept)
            chosen = output.tokens.gather(1, places.unsqueeze(-1).expand(-1, -1, output.tokens.shape[-1]))
            positions[start : start + len(pixels)] = places.cpu().numpy()
        tokens[start : start + len(pixels)] = _half(chosen, teacher.name)
        globals_[start : start + len(pixels)] = _half(output.global_, teacher.name)
        return len(pixels)

    for done in ordered_map(encode, batches(), threads=parallel, window=parallel + 1):
        advance(done.result())
    return {"tokens": tokens, "globals": globals_, "positions": positions}


def encode_texts(
    teacher: TextTeacher,
    texts: Sequence[TokenizedText],
    token_budget: int,
    advance: Callable[[int], None],
    parallel: int = 1,
) -> Arrays:
    """Encode the texts of one unit, in batches of similar length, ``parallel`` of them at a time.

    Returns:
        ``tokens`` [sum of lengths, D] float16 and ``spans`` [sum of lengths, 2] int32, text after text, and
        ``globals`` [n, D] float16.
    """
    lengths = np.array([len(text.ids) for text in texts], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.empty((int(offsets[-1]), teacher.dim), dtype=np.float16)
    spans = np.zeros((int(offsets[-1]), 2), dtype=np.int32)
    globals_ = np.empty((len(texts), teacher.dim), dtype=np.float16)

    def encode(rows: list[int]) -> int:
        output = teacher.encode_tokenized([texts[row] for row in rows])
        places = np.concatenate([np.arange(offsets[row], offsets[row + 1]) for row in rows])
        tokens[places] = _half(output.tokens[output.mask.to(output.tokens.device)], teacher.name)  # text after text
        spans[places] = output.spans[output.mask].numpy()
        globals_[rows] = _half(output.global_, teacher.name)
        return len(rows)

    batches = length_batches(lengths, token_budget)
    for done in ordered_map(encode, batches, threads=parallel, window=parallel + 1):
        advance(done.result())
    return {"tokens": tokens, "spans": spans, "globals": globals_}


def length_batches(lengths: npt.NDArray[np.int64], token_budget: int) -> list[list[int]]:
    """Group texts, longest first, so that rows x longest text (two special tokens included) fits the budget."""
    order = np.argsort(-lengths, kind="stable").tolist()
    batches: list[list[int]] = []
    width = 0
    for row in order:
        if not batches or (len(batches[-1]) + 1) * width > token_budget:
            batches.append([])
            width = int(lengths[row]) + 2
        batches[-1].append(row)
    return batches


def _half(values: torch.Tensor, teacher: str) -> npt.NDArray[np.float16]:
    half = values.to(torch.float16)
    if not bool(torch.isfinite(half).all()):
        raise CacheError(
            f"The teacher '{teacher}' gives values that are not finite numbers of float16.",
            hint="check its weights; extract with --device cpu to compute in float32",
        )
    array: npt.NDArray[np.float16] = half.cpu().numpy()
    return array


class WriterThread:
    """Hands finished units to a :class:`StoreWriter` in a thread, so that encoding goes on while files are synced.

    Leaving the context waits until everything has been written, also after an error of the encoder; an error of the
    writer is raised by the next :meth:`put` or on leaving.
    """

    def __init__(self, writer: StoreWriter, *, depth: int = 2) -> None:
        self._writer = writer
        self._queue: queue.Queue[tuple[Part, int, Arrays, Mapping[int, str]] | None] = queue.Queue(maxsize=depth)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="madkit-write", daemon=True)

    def __enter__(self) -> WriterThread:
        self._thread.start()
        return self

    def put(self, part: Part, unit: int, arrays: Arrays, absent: Mapping[int, str] | None = None) -> None:
        """Queue a unit (see :meth:`StoreWriter.write_unit`); waits while the queue is full."""
        self._check()
        self._queue.put((part, unit, arrays, absent or {}))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._queue.put(None)
        self._thread.join()
        if kind is None:
            self._check()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            if self._error is None:
                try:
                    self._writer.write_unit(*job)
                except BaseException as error:
                    self._error = error
