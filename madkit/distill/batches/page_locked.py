"""Memory that large tensors of a batch are gathered into: page-locked where a GPU is to copy them, ordinary elsewhere.

A GPU copies from page-locked memory by itself. What is gathered into ordinary memory has to be copied into page-locked
memory first; and the region features of a batch of short sequences, 200 MB, come from the system anew each time, page
by page, which takes several times as long as the gathering. So whoever makes batches for a GPU says so, and they are
gathered where they are copied from.

PyTorch keeps page-locked memory that was let go, and hands it out again only after the copies that were queued from it
with `non_blocking` have ended. So there are as many buffers as batches under way, and none is overwritten too early.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_FOR_A_GPU: ContextVar[bool] = ContextVar("batches are made for a GPU", default=False)


@contextmanager
def page_locked() -> Iterator[None]:
    """What this thread gathers meanwhile is to be copied to a GPU."""
    before = _FOR_A_GPU.set(True)
    try:
        yield
    finally:
        _FOR_A_GPU.reset(before)


def gathered(table: Tensor, rows: Tensor) -> Tensor:
    """Rows [n] of a table [m, ...] in memory, in memory of their own."""
    if not _FOR_A_GPU.get():
        return table.index_select(0, rows)
    return torch.index_select(table, 0, rows, out=_locked((len(rows), *table.shape[1:]), table.dtype))


def _locked(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)
