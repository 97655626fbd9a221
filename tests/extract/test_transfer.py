"""The ring of buffers, on a device that does nothing before it must: reusing a buffer too early gives nonsense."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from madkit.extract.image_encoding import EncodedImages
from madkit.extract.transfer import TransferRing

torch.set_num_threads(1)


class LazyStreams:
    """A device whose queue runs only as far as someone waits for, and always the newest state of a host buffer."""

    def __init__(self) -> None:
        self.queue: list[Callable[[], None]] = []
        self.done = 0
        self.buffers = 0
        self.most = 0
        self.finished = 0

    def buffer(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        self.buffers += 1
        return torch.full(tuple(shape), 77).to(dtype)

    def upload(self, host: Tensor) -> Tensor:
        there = torch.full_like(host, 99)
        self.enqueue(lambda: there.copy_(host))
        return there

    def enqueue(self, work: Callable[[], Any]) -> None:
        self.queue.append(work)
        self.most = max(self.most, len(self.queue) - self.done)

    def download(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> int:
        for there, host in pairs:
            self.enqueue(lambda there=there, host=host: host.copy_(there))
        return len(self.queue)

    def wait(self, event: int) -> None:
        for work in self.queue[self.done : event]:
            work()
        self.done = max(self.done, event)

    def finish(self) -> None:
        self.wait(len(self.queue))
        self.finished += 1


def ring_of(streams: LazyStreams, batch: int, slots: int, *, selected: bool = False) -> TransferRing:
    """A ring around an encoder that gives each image's first pixel as tokens and as its global vector."""

    def encode(images: Tensor) -> EncodedImages:
        tokens = torch.zeros(len(images), 2, 3, dtype=torch.float16)
        globals_ = torch.zeros(len(images), 3, dtype=torch.float16)
        places = torch.zeros(len(images), 2, dtype=torch.int32) if selected else None
        finite = torch.zeros((), dtype=torch.bool)

        def compute() -> None:
            first = images[:, 0, 0, 0]
            tokens.copy_(first[:, None, None].expand_as(tokens))
            globals_.copy_(first[:, None].expand_as(globals_))
            finite.copy_((first != 13).all())
            if places is not None:
                places.copy_(first[:, None].expand_as(places))

        streams.enqueue(compute)
        return EncodedImages(tokens, globals_, places, finite)

    return TransferRing(encode, streams, batch=batch, slots=slots)


def images_of(values: Sequence[int]) -> list[Tensor]:
    return [torch.full((3, 2, 2), value, dtype=torch.uint8) for value in values]


@settings(max_examples=60)
@given(st.lists(st.lists(st.integers(0, 255), min_size=1, max_size=4), max_size=12), st.integers(1, 5), st.booleans())
def test_every_batch_comes_back_once_in_order(batches: list[list[int]], slots: int, selected: bool) -> None:
    streams = LazyStreams()
    ring = ring_of(streams, 4, slots, selected=selected)
    seen = []
    for key, found in ring.run((number, images_of(values)) for number, values in enumerate(batches)):
        values = batches[key]
        np.testing.assert_array_equal(
            found.tokens, np.broadcast_to(np.array(values)[:, None, None], (len(values), 2, 3))
        )
        np.testing.assert_array_equal(found.globals, np.broadcast_to(np.array(values)[:, None], (len(values), 3)))
        assert (found.positions is not None) == selected
        if found.positions is not None:
            np.testing.assert_array_equal(found.positions[:, 1], values)
        assert found.finite == (13 not in values)
        seen.append(key)
    assert seen == list(range(len(batches)))
    assert streams.finished == 1
    assert streams.done == len(streams.queue)
    assert streams.buffers <= slots * (5 if selected else 4)  # memory is that of the ring, whatever goes through it


def test_the_device_is_ahead_of_the_host_by_the_ring_and_no_further() -> None:
    streams = LazyStreams()
    taken = []

    def batches() -> Iterator[tuple[int, list[Tensor]]]:
        for number in range(9):
            taken.append(number)
            yield number, images_of([number])

    results = ring_of(streams, 1, 3).run(batches())
    for expected in range(5):
        key, found = next(results)
        assert (key, int(found.globals[0, 0])) == (expected, expected)
        assert taken[-1] == expected + 3  # three under way, and the next is read before its slot is free
    results.close()
    assert streams.finished == 1  # nothing is left running behind a consumer that went away


def test_an_error_in_the_middle_waits_for_the_device() -> None:
    streams = LazyStreams()

    def batches() -> Iterator[tuple[int, list[Tensor]]]:
        yield from ((number, images_of([number])) for number in range(4))
        raise RuntimeError("no more images")

    seen = []
    with pytest.raises(RuntimeError, match="no more images"):
        for key, _ in ring_of(streams, 1, 3).run(batches()):
            seen.append(key)
    assert seen == [0]  # what was under way is dropped with its unit
    assert streams.finished == 1
    assert streams.done == len(streams.queue)


def test_an_encoder_that_fails() -> None:
    streams = LazyStreams()

    def encode(images: Tensor) -> EncodedImages:
        raise ValueError("out of memory")

    with pytest.raises(ValueError, match="out of memory"):
        list(TransferRing(encode, streams, batch=1).run([(0, images_of([1]))]))
    assert streams.finished == 1
