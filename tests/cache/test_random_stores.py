"""Any batch of any store equals its row reads, what was written, and what zarr-python reads."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from madkit.cache import TokenCache
from madkit.cache.layout import image_layout, text_layout
from madkit.cache.plan import PARTS, StorePlan
from madkit.cache.writer import StoreWriter
from madkit.core.errors import CacheError

GRID = (2, 3)


@dataclass(frozen=True)
class Shape:
    """What a store is like."""

    images: int
    lengths: list[int]
    dim: int
    kept: int
    dtype: str
    shard_mb: float
    absent_images: frozenset[int]
    absent_texts: frozenset[int]
    seed: int


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    images = draw(st.integers(0, 9))
    # around a chunk of 128 tokens, and empty ones between
    lengths = draw(st.lists(st.one_of(st.integers(0, 6), st.sampled_from([0, 127, 128, 129, 300])), max_size=9))
    empty = [row for row, length in enumerate(lengths) if length == 0]
    return Shape(
        images=images,
        lengths=lengths,
        dim=draw(st.integers(1, 9)),
        kept=draw(st.sampled_from([0, 1, 4, 6])),  # of six patches
        dtype=draw(st.sampled_from(["float16", "int8"])),
        shard_mb=draw(st.sampled_from([0.0001, 0.001, 0.01])),
        absent_images=frozenset(draw(st.sets(st.integers(0, images - 1), max_size=3)) if images else ()),
        absent_texts=frozenset(draw(st.sets(st.sampled_from(empty), max_size=2)) if empty else ()),
        seed=draw(st.integers(0, 99)),
    )


class Written:
    """A store of random values, and the values."""

    def __init__(self, path: Path, shape: Shape) -> None:
        rng = np.random.default_rng(shape.seed)
        n, texts = shape.images, len(shape.lengths)

        def half(*size: int) -> np.ndarray:
            return (rng.standard_normal(size) * 3).astype(np.float16)

        self.image_tokens, self.image_globals = half(n, shape.kept, shape.dim), half(n, shape.dim)
        every = [np.sort(rng.permutation(6)[: shape.kept]) for _ in range(n)]
        self.positions = np.array(every, np.int32).reshape(n, shape.kept)
        self.text_tokens = [half(length if shape.kept else 0, shape.dim) for length in shape.lengths]
        self.spans = [rng.integers(0, 99, (len(tokens), 2), dtype=np.int32) for tokens in self.text_tokens]
        self.text_globals = half(texts, shape.dim)
        lengths = np.array(shape.lengths, np.int64).reshape(-1)
        sizes: dict[str, Any] = {"dtype": shape.dtype}
        self.plan = StorePlan(
            identity={"teacher": "t", "task": "vcr", "source": "s", "revision": "r", "dtype": shape.dtype},
            image_ids=[f"image {row}" for row in range(n)],
            image_aliases={},
            texts=[f"text {row}" for row in range(texts)],
            lengths=lengths,
            images=image_layout(n, GRID, shape.dim, shape.shard_mb, tokens=shape.kept, **sizes),
            text=text_layout(lengths, shape.dim, shape.shard_mb, tokens=shape.kept > 0, **sizes),
            facts={},
            absent_texts=dict.fromkeys(shape.absent_texts, "it is empty"),
        )
        with StoreWriter(path, self.plan) as writer:
            for part in PARTS:
                for unit in writer.pending(part):
                    rows = self.plan.items(part, unit)
                    absent = dict.fromkeys(shape.absent_images & set(rows), "not an image") if part == "images" else {}
                    writer.write_unit(part, unit, self._unit(part, slice(rows.start, rows.stop), shape), absent)
            writer.finish(seconds=0.0)

    def _unit(self, part: str, rows: slice, shape: Shape) -> dict[str, npt.NDArray[Any]]:
        if part == "images":
            found = {"globals": self.image_globals[rows], "tokens": self.image_tokens[rows]}
            if 0 < shape.kept < 6:
                found["positions"] = self.positions[rows]
            return found if shape.kept else {"globals": found["globals"]}
        if not shape.kept:
            return {"globals": self.text_globals[rows]}
        none = np.zeros((0, shape.dim), np.float16)
        return {
            "globals": self.text_globals[rows],
            "tokens": np.concatenate([none, *self.text_tokens[rows]]),
            "spans": np.concatenate([np.zeros((0, 2), np.int32), *self.spans[rows]]),
        }


@pytest.mark.parametrize("check", [False, True])
@settings(max_examples=20, deadline=None)
@given(shape=shapes(), data=st.data())
def test_any_batch_equals_row_reads_what_was_written_and_zarr_python(
    check: bool, shape: Shape, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        written = Written(Path(folder) / "store", shape)
        group = zarr.open_group(Path(folder) / "store", mode="r")
        with TokenCache.open(Path(folder) / "store", check=check) as cache:
            rows = _batch(data, shape.images, shape.absent_images)
            if rows:
                _images(cache, written, group, shape, rows)
            for row in shape.absent_images:
                with pytest.raises(CacheError, match=f"no values for row {row} of its images: not an image"):
                    cache.images.globals([*rows, row])
            rows = _batch(data, len(shape.lengths), shape.absent_texts)
            if rows:
                _texts(cache, written, group, shape, rows)
            for row in shape.absent_texts:
                with pytest.raises(CacheError, match=f"no values for row {row} of its texts: it is empty"):
                    cache.texts.globals([*rows, row])


def _batch(data: st.DataObject, items: int, absent: frozenset[int]) -> list[int]:
    there = sorted(set(range(items)) - absent)
    return data.draw(st.lists(st.sampled_from(there), max_size=20)) if there else []


def _images(cache: TokenCache, written: Written, group: Any, shape: Shape, rows: list[int]) -> None:
    images = cache.images
    np.testing.assert_array_equal(images.globals(rows), written.image_globals[rows])
    np.testing.assert_array_equal(images.globals(rows), group["images/globals"][:][rows])
    assert images.has_tokens == (shape.kept > 0)
    if not shape.kept:
        return
    tokens = images.tokens(rows)
    np.testing.assert_array_equal(tokens, np.concatenate([images.tokens([row]) for row in rows]))
    expected = group["images/tokens"][:][rows]
    if shape.dtype == "int8":
        scales = group["images/scales"][:][rows]
        channels = group["images/channel_scales"][:][np.array(rows) // written.plan.images.unit]
        _close(tokens, expected, scales, channels[:, None, :], written.image_tokens[rows])
        kept, kept_scales, kept_channels = images.rounded_tokens(rows)
        np.testing.assert_array_equal(kept, expected)
        np.testing.assert_array_equal(kept_scales, scales)
        np.testing.assert_array_equal(kept_channels, channels)
    else:
        np.testing.assert_array_equal(tokens, expected)
        np.testing.assert_array_equal(tokens, written.image_tokens[rows])
    places = written.positions[rows] if shape.kept < 6 else np.tile(np.arange(6), (len(rows), 1))
    np.testing.assert_array_equal(images.positions(rows), places)


def _texts(cache: TokenCache, written: Written, group: Any, shape: Shape, rows: list[int]) -> None:
    texts = cache.texts
    np.testing.assert_array_equal(texts.globals(rows), written.text_globals[rows])
    if not shape.kept:
        assert not texts.has_tokens
        return
    found = texts.tokens(rows)
    assert found.offsets.tolist() == np.cumsum([0, *(shape.lengths[row] for row in rows)]).tolist()
    extents = group["texts/extents"][:]
    for number, row in enumerate(rows):
        part = slice(found.offsets[number], found.offsets[number + 1])
        alone, place = texts.tokens([row]), slice(*extents[row])
        np.testing.assert_array_equal(found.tokens[part], alone.tokens)
        np.testing.assert_array_equal(found.spans[part], alone.spans)
        np.testing.assert_array_equal(alone.spans, written.spans[row])
        stored = group["texts/tokens"][place]
        if shape.dtype == "int8" and len(stored):
            channels = group["texts/channel_scales"][:][extents[row, 0] // written.plan.text.capacity]
            _close(alone.tokens, stored, group["texts/scales"][place], channels, written.text_tokens[row])
        else:
            np.testing.assert_array_equal(alone.tokens, written.text_tokens[row])
            np.testing.assert_array_equal(alone.tokens, stored)


def _close(
    tokens: npt.NDArray[Any],
    values: npt.NDArray[Any],
    scales: npt.NDArray[Any],
    channels: npt.NDArray[Any],
    written: npt.NDArray[Any],
) -> None:
    """Tokens are what zarr-python's values mean, and within half a step of what was written."""
    step = scales.astype(np.float64)[..., None] * channels.astype(np.float64)
    np.testing.assert_allclose(tokens.astype(np.float64), values * step, rtol=1e-3, atol=1e-7)
    assert (np.abs(tokens.astype(np.float64) - written) <= 0.5 * step + 2e-3 * np.abs(written) + 1e-7).all()
