"""From items to units: images decoded ahead in threads, batches through the encoder, finished units to a writer.

Memory does not grow with the data: a window of decoded images, one unit being filled, and at most two waiting to be
written. What a batch holds depends on its unit alone, so that a unit has the same bytes wherever an extraction began.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from madkit.cache.kept import KeptUnit, forget_unit, keep_unit
from madkit.cache.plan import Part
from madkit.cache.writer import StoreWriter
from madkit.core.errors import CacheError
from madkit.extract.image_encoding import ImageEncoder
from madkit.extract.ordered import ordered_map
from madkit.extract.text_encoding import TextEncoder
from madkit.extract.transfer import CudaStreams, HostImages, TransferRing
from madkit.teachers.interface import TokenizedText

Arrays = Mapping[str, npt.NDArray[Any]]


@contextmanager
def one_thread_per_operation(device: str) -> Iterator[int]:
    """Let PyTorch use one thread per operation, and say how many batches to encode at a time on the CPU instead.

    Batches side by side need no waiting for each other inside every operation: on two busy cores the embedded teacher
    was eight times faster so, and the result no longer depends on the number of cores. On a GPU the threads that decode
    images would each call threads of their own for every resizing: sixteen times sixteen on a machine of sixteen cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads if torch.device(device).type == "cpu" else 1
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True, slots=True)
class Slice:
    """A batch's place.

    Attributes:
        unit: the unit it belongs to.
        rows: images of that unit.
        start: its first image, counted from the unit's first.
    """

    unit: int
    rows: int
    start: int


def slices(unit: int, rows: int, batch: int, images: Iterator[Tensor]) -> Iterator[tuple[Slice, list[Tensor]]]:
    """Take one unit's images and yield them in batches, ``batch`` each and the rest last."""
    for start in range(0, rows, batch):
        yield Slice(unit, rows, start), list(islice(images, min(batch, rows - start)))


def encode_images(
    encoder: ImageEncoder,
    batches: Iterable[tuple[Slice, list[Tensor]]],
    advance: Callable[[int], None],
    parallel: int = 1,
) -> Generator[tuple[int, Arrays], None, None]:
    """Encode batches in order, and yield each unit's arrays as soon as its last batch is there.

    Args:
        encoder: the image side of a teacher.
        batches: see :func:`slices`; unit after unit.
        advance: called with the number of images done.
        parallel: batches at a time on the CPU. On a GPU a ring of buffers keeps it busy.

    Yields:
        (unit, arrays): ``tokens`` [n, T, D] and ``globals`` [n, D], both float16, and ``positions`` [n, T] int32 where
        tokens were selected.

    Raises:
        CacheError: a value is not finite.
    """
    arrays: dict[str, npt.NDArray[Any]] = {}
    for place, found in _encoded(encoder, batches, parallel):
        if not found.finite:
            raise _not_finite(encoder.teacher.name)
        if not place.start:
            arrays = {"tokens": np.empty((place.rows, *found.tokens.shape[1:]), np.float16)}
            arrays["globals"] = np.empty((place.rows, found.globals.shape[1]), np.float16)
            if found.positions is not None:
                arrays["positions"] = np.empty((place.rows, found.positions.shape[1]), np.int32)
        stop = place.start + len(found.globals)
        arrays["tokens"][place.start : stop] = found.tokens
        arrays["globals"][place.start : stop] = found.globals
        if found.positions is not None:
            arrays["positions"][place.start : stop] = found.positions
        advance(len(found.globals))
        if stop == place.rows:
            yield place.unit, arrays


def _encoded(
    encoder: ImageEncoder, batches: Iterable[tuple[Slice, list[Tensor]]], parallel: int
) -> Generator[tuple[Slice, HostImages], None, None]:
    if encoder.device.type == "cuda":
        ring = TransferRing(encoder.encode, CudaStreams(encoder.device), batch=encoder.batch)
        yield from ring.run(batches)
        return

    def encode(job: tuple[Slice, list[Tensor]]) -> tuple[Slice, HostImages]:
        place, images = job
        found = encoder.encode(torch.stack(images))
        positions = None if found.positions is None else found.positions.numpy()
        return place, HostImages(found.tokens.numpy(), found.globals.numpy(), positions, bool(found.finite))

    for future in ordered_map(encode, batches, threads=parallel, window=parallel + 1):
        yield future.result()


def encode_texts(encoder: TextEncoder, texts: Sequence[TokenizedText], advance: Callable[[int], None]) -> Arrays:
    """Encode the texts of one unit.

    Returns:
        ``tokens`` [sum of lengths, D] float16 and ``spans`` [sum of lengths, 2] int32, text after text, and
        ``globals`` [n, D] float16.

    Raises:
        CacheError: a value is not finite.
    """
    dim = encoder.teacher.dim
    offsets = np.concatenate([[0], np.cumsum([len(text.ids) for text in texts], dtype=np.int64)])
    tokens = np.empty((int(offsets[-1]), dim), dtype=np.float16)
    spans = np.zeros((int(offsets[-1]), 2), dtype=np.int32)
    globals_ = np.empty((len(texts), dim), dtype=np.float16)
    for found in encoder.encode_all(texts):
        if not found.finite:
            raise _not_finite(encoder.teacher.name)
        places = np.concatenate([np.arange(offsets[row], offsets[row + 1]) for row in found.rows])
        tokens[places], spans[places], globals_[found.rows] = found.tokens, found.spans, found.globals
        advance(len(found.rows))
    return {"tokens": tokens, "spans": spans, "globals": globals_}


def _not_finite(teacher: str) -> CacheError:
    return CacheError(
        f"The teacher '{teacher}' gives values that are not finite numbers of float16.",
        hint=f"in 16 bits, --compute-dtype float32 may do; in float32, look at it: madkit teachers check {teacher}",
    )


class WriterThread:
    """Hands finished units to a :class:`StoreWriter` in a thread, so that encoding goes on while files are synced.

    Leaving the context waits until everything has been written, also after an error of the encoder; an error of the
    writer is raised by the next :meth:`put` or on leaving.

    Args:
        writer: of the store.
        depth: units that may wait.
        keep: whether units are kept from a kill until they are in the journal (:mod:`madkit.cache.kept`).
    """

    def __init__(self, writer: StoreWriter, *, depth: int = 2, keep: bool = False) -> None:
        self._writer = writer
        self._keep = keep
        self._of = writer.digest if keep else ""
        self._queue: queue.Queue[KeptUnit | None] = queue.Queue(maxsize=depth)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="madkit-write", daemon=True)

    def __enter__(self) -> WriterThread:
        self._thread.start()
        return self

    def put(self, part: Part, unit: int, arrays: Arrays, absent: Mapping[int, str] | None = None) -> None:
        """Queue a unit (see :meth:`StoreWriter.write_unit`); waits while the queue is full."""
        self._check()
        job = KeptUnit(part, unit, arrays, absent or {})
        if self._keep:
            keep_unit(self._writer.folder, self._of, job)
        self._queue.put(job)

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
                    self._writer.write_unit(job.part, job.unit, job.arrays, job.absent)
                    if self._keep:
                        forget_unit(self._writer.folder, job.part, job.unit)
                except BaseException as error:
                    self._error = error
