"""Batches to a device and back while it computes: a ring of buffers that neither side waits for without need.

Three batches are under way at a time: one is copied in, one is computed, one is copied back. Each has a slot with
buffers of its own, in memory that the device reads and writes by itself. A slot is filled again only after its results
have been taken, which is after everything that touched its buffers has ended; so no other bookkeeping is needed.

What happens on the device hides behind :class:`Streams`, so that the order of things can be tested without one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from madkit.extract.image_encoding import EncodedImages

K = TypeVar("K")
SLOTS = 3


@dataclass(frozen=True, slots=True)
class HostImages:
    """What is kept of a batch, on the host.

    Attributes:
        tokens: [B, T, D] float16.
        globals: [B, D] float16.
        positions: [B, T] int32, or None where all tokens are kept.
        finite: whether every value is finite.
    """

    tokens: npt.NDArray[np.float16]
    globals: npt.NDArray[np.float16]
    positions: npt.NDArray[np.int32] | None
    finite: bool


class Streams(Protocol):
    """A device's queues: copies in, computing, copies back."""

    def buffer(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return a host buffer that the device can copy from and to while the host goes on."""

    def upload(self, host: Tensor) -> Tensor:
        """Queue a copy to the device. What is queued for computing afterwards waits for it."""

    def download(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> Any:
        """Queue copies (from device, to host) behind what has been queued for computing; return their event."""

    def wait(self, event: Any) -> None:
        """Wait for an event of :meth:`download`."""

    def finish(self) -> None:
        """Wait for everything."""


class CudaStreams:
    """CUDA streams of one device: computing on the current one, a stream of its own for each direction of copies."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._in = torch.cuda.Stream(device)
        self._out = torch.cuda.Stream(device)

    def buffer(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """See :class:`Streams`: pinned memory."""
        return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)

    def upload(self, host: Tensor) -> Tensor:
        """See :class:`Streams`."""
        computing = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._in):
            there = host.to(self._device, non_blocking=True)
        computing.wait_stream(self._in)
        there.record_stream(computing)  # its memory was taken on the other stream
        return there

    def download(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> Any:
        """See :class:`Streams`."""
        self._out.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._out):
            for there, host in pairs:
                host.copy_(there, non_blocking=True)
                there.record_stream(self._out)
        return self._out.record_event()

    def wait(self, event: Any) -> None:
        """See :class:`Streams`."""
        event.synchronize()

    def finish(self) -> None:
        """See :class:`Streams`."""
        torch.cuda.synchronize(self._device)


@dataclass(slots=True)
class _Slot:
    """Buffers of one batch, taken when the first batch shows their shapes."""

    pixels: Tensor | None = None
    results: list[Tensor] = field(default_factory=list)


class TransferRing:
    """Runs batches through a device in order, several at a time.

    Args:
        encode: from uint8 [B, 3, H, W] on the device to what is kept of it, without waiting for the device.
        streams: the device's queues.
        batch: most images of a batch.
        slots: batches under way at a time.
    """

    def __init__(
        self, encode: Callable[[Tensor], EncodedImages], streams: Streams, *, batch: int, slots: int = SLOTS
    ) -> None:
        self._encode = encode
        self._streams = streams
        self._batch = batch
        self._slots = [_Slot() for _ in range(slots)]

    def run(self, batches: Iterable[tuple[K, Sequence[Tensor]]]) -> Generator[tuple[K, HostImages], None, None]:
        """Yield (key, results) of every batch of (key, images uint8 [3, H, W] each), in order.

        Results lie in a slot's buffers: they are to be copied before the next ones are asked for. However this ends,
        the device has ended with the buffers before.
        """
        free = deque(self._slots)
        under_way: deque[tuple[K, int, _Slot, Any]] = deque()
        try:
            for key, images in batches:
                if not free:
                    yield self._collect(under_way[0])
                    free.append(under_way.popleft()[2])
                slot = free.popleft()
                under_way.append((key, len(images), slot, self._submit(slot, images)))
            while under_way:
                yield self._collect(under_way[0])
                under_way.popleft()
        finally:
            self._streams.finish()

    def _submit(self, slot: _Slot, images: Sequence[Tensor]) -> Any:
        if slot.pixels is None:
            slot.pixels = self._streams.buffer((self._batch, *images[0].shape), torch.uint8)
        pixels = slot.pixels[: len(images)]
        torch.stack(list(images), out=pixels)
        found = self._encode(self._streams.upload(pixels))
        kept = [found.tokens, found.globals, found.finite.reshape(1)]
        if found.positions is not None:
            kept.append(found.positions)
        if not slot.results:
            sizes = [(1,) if len(each.shape) == 1 else (self._batch, *each.shape[1:]) for each in kept]
            slot.results = [self._streams.buffer(size, each.dtype) for size, each in zip(sizes, kept, strict=True)]
        return self._streams.download(
            [(each, host[: len(each)]) for each, host in zip(kept, slot.results, strict=True)]
        )

    def _collect(self, job: tuple[K, int, _Slot, Any]) -> tuple[K, HostImages]:
        key, count, slot, event = job
        self._streams.wait(event)
        tokens, globals_, finite, *places = slot.results
        positions = places[0][:count].numpy() if places else None
        return key, HostImages(tokens[:count].numpy(), globals_[:count].numpy(), positions, bool(finite[0]))
