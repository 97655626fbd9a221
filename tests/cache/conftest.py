"""Stores of random values, written without any teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from madkit.cache.layout import image_layout, text_layout
from madkit.cache.plan import PARTS, StorePlan
from madkit.cache.writer import StoreWriter


@dataclass
class Written:
    """A store and what was put into it."""

    path: Path
    images: npt.NDArray[np.float16]
    image_globals: npt.NDArray[np.float16]
    texts: list[str]
    tokens: list[npt.NDArray[np.float16]]
    spans: list[npt.NDArray[np.int32]]
    text_globals: npt.NDArray[np.float16]
    plan: StorePlan

    def fill(self, writer: StoreWriter, units: int | None = None) -> int:
        """Write what is missing, at most so many units, and complete the store if that is all; return the number."""
        todo = [(part, unit) for part in PARTS for unit in writer.pending(part)]
        for part, number in todo[:units]:
            writer.write_unit(part, number, self.unit(writer.plan, part, number))
        if units is None and not writer.finished:
            writer.finish(seconds=1.0)
        return len(todo[:units])

    def unit(self, plan: StorePlan, part: str, number: int) -> dict[str, npt.NDArray[np.generic]]:
        rows = plan.items(part, number)
        if part == "images":
            return {
                "tokens": self.images[rows.start : rows.stop],
                "globals": self.image_globals[rows.start : rows.stop],
            }
        empty = np.zeros((0, self.text_globals.shape[1]), np.float16)
        return {
            "tokens": np.concatenate([empty, *self.tokens[rows.start : rows.stop]]),
            "spans": np.concatenate([np.zeros((0, 2), np.int32), *self.spans[rows.start : rows.stop]]),
            "globals": self.text_globals[rows.start : rows.stop],
        }


def make_store(
    path: Path, lengths: Sequence[int], images: int = 25, *, dim: int = 6, shard_mb: float = 0.0005, finish: bool = True
) -> Written:
    rng = np.random.default_rng(images + len(lengths))

    def half(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float16)

    sizes = np.array(lengths, dtype=np.int64)
    texts = [f"text {number}" for number in range(len(lengths))]
    plan = StorePlan(
        identity={"teacher": "test", "task": "vcr", "source": "mini-vcr", "revision": "r", "shared_space": True}
        | {"logit_scale": 1.0},
        image_ids=[f"image {number}" for number in range(images)],
        image_aliases={"other name": 0} if images else {},
        texts=texts,
        lengths=sizes,
        images=image_layout(images, (2, 2), dim, shard_mb),
        text=text_layout(sizes, dim, shard_mb),
        facts={},
    )
    written = Written(
        path,
        half(images, 4, dim),
        half(images, dim),
        texts,
        [half(length, dim) for length in lengths],
        [rng.integers(0, 99, (length, 2), dtype=np.int32) for length in lengths],
        half(len(lengths), dim),
        plan,
    )
    with StoreWriter(path, plan) as writer:
        if finish:
            written.fill(writer)
    return written


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Syncing hundreds of small files takes minutes on a busy disk, and no test here cuts the power."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture
def store(tmp_path: Path) -> Written:
    """A complete store of several shards: 25 images, 60 texts, some of them empty or longer than a chunk."""
    lengths = [3, 0, 5, 300, 1, 128, 127, 0, *([4] * 50), 129, 2]
    return make_store(tmp_path / "cache" / "test-mini-vcr-000000000000", lengths)


@pytest.fixture
def maker() -> Callable[..., Written]:
    """The function that writes such a store."""
    return make_store
