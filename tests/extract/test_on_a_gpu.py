"""Extraction on a GPU that is not there: all that computes is on it, the store is whole, who waits for it is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from madkit.cache import TokenCache, verify_cache
from madkit.core.workspace import Workspace
from madkit.extract import ordered
from madkit.extract.stage import extract
from madkit.extract.transfer import CudaStreams
from tests.pretended_training import AtOnce, training_on_pretended_cuda

torch.set_num_threads(1)
WAITING = {
    "madkit/extract/frozen.py weight_not_finite",  # once, when the teacher is loaded
    "madkit/extract/frozen.py _finite",
    "madkit/extract/text_encoding.py TextEncoder._encode",  # for the tokens of a batch; images come through a ring
}


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({}, torch.float16),
        ({"tokens": "selected:4", "store_dtype": "int8"}, torch.float16),
        ({"compute_dtype": "bfloat16", "tokens": "global"}, torch.bfloat16),
    ],
    ids=["all", "selected", "bfloat16"],
)
def test_a_store_is_filled_from_there(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], kind: torch.dtype
) -> None:
    linear, computed = torch.nn.functional.linear, []

    def watched(*arguments: Any) -> torch.Tensor:
        found = linear(*arguments)
        computed.append((found.device.type, found.dtype))
        return found

    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    monkeypatch.setattr("madkit.extract.options.device_of", torch.device)
    monkeypatch.setattr(ordered, "ThreadPoolExecutor", AtOnce)
    monkeypatch.setattr(CudaStreams, "buffer", lambda self, shape, dtype: torch.ones(tuple(shape), dtype=dtype))
    reads: set[str] = set()
    with training_on_pretended_cuda(reads):
        (done,) = extract(Workspace.at(workspace), "mini", ["snli-ve"], device="cuda", compile="off", **options)
    assert computed
    assert set(computed) == {("cuda", kind)}
    assert reads == WAITING
    assert done.computed == done.items > 20
    verify_cache(done.path)
    with TokenCache.open(done.path) as cache:  # of values there are none: what a ring's buffer held, and zeros
        assert set(np.asarray(cache.images.globals(np.arange(done.images))).ravel()) == {1.0}
        assert set(np.asarray(cache.texts.globals(np.arange(done.texts))).ravel()) == {0.0}
