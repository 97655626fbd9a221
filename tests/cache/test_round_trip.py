from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from madkit.cache import TokenCache
from madkit.cache.rows import ShardedRows, read_spec


def test_zarr_python_reads_equal_values(store: Any) -> None:
    group = zarr.open_group(store.path, mode="r")
    np.testing.assert_array_equal(group["images/tokens"][:], store.images)
    np.testing.assert_array_equal(group["images/globals"][:], store.image_globals)
    np.testing.assert_array_equal(group["texts/globals"][:], store.text_globals)
    extents = group["texts/extents"][:]
    for row, (start, stop) in enumerate(extents):
        np.testing.assert_array_equal(group["texts/tokens"][start:stop], store.tokens[row])
        np.testing.assert_array_equal(group["texts/spans"][start:stop], store.spans[row])
    assert group["images/tokens"].shards == (group["images/tokens"].shards[0], 4, 6)
    assert group["images/tokens"].chunks == (1, 4, 6)  # one sample
    for name in ("images/tokens", "images/statistics", "texts/unit_statistics"):
        codecs = json.loads((store.path / name / "zarr.json").read_text())["codecs"]
        assert "crc32c" in json.dumps(codecs)


def test_a_shard_is_what_zarr_python_writes_for_the_same_values(store: Any, tmp_path: Path) -> None:
    """The other way round: our reader on an array that zarr-python wrote from our metadata."""
    spec = read_spec(store.path, "images/tokens")
    target = tmp_path / "by-zarr"
    (target / spec.name).mkdir(parents=True)
    (target / spec.name / "zarr.json").write_bytes((store.path / spec.name / "zarr.json").read_bytes())
    array = zarr.open_array(target / spec.name, mode="r+")
    array[:] = store.images
    reader = ShardedRows(target, read_spec(target, spec.name), check=True)
    np.testing.assert_array_equal(reader.take([3, 0, 6]), store.images[[3, 0, 6]])


@pytest.mark.parametrize("window", [1 << 18, 1 << 30])
def test_threads_and_large_batches(
    tmp_path: Path, maker: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    """Batches above THREAD_BYTES are copied by several threads, and callers may be threads themselves."""
    monkeypatch.setattr("madkit.cache.copying.THREAD_BYTES", 1 << 20)
    monkeypatch.setattr("madkit.cache.copying.WINDOW_BYTES", window)
    monkeypatch.setattr("madkit.cache.copying.THREADS", 3)
    written = maker(tmp_path / "big", [9] * 20, 500, dim=400, shard_mb=0.1)
    with TokenCache.open(written.path) as cache, ThreadPoolExecutor(4) as pool:
        rng = np.random.default_rng(0)
        batches = [rng.integers(0, 500, 450) for _ in range(8)]
        for rows, found in zip(batches, pool.map(cache.images.tokens, batches), strict=True):
            assert found.nbytes > 1 << 20
            np.testing.assert_array_equal(found, written.images[rows])


def test_more_shards_than_open_files(
    tmp_path: Path, maker: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("madkit.cache.rows.MAX_OPEN_FILES", 3)
    monkeypatch.setattr("madkit.cache.rows.MAX_MAPS", 5)
    written = maker(tmp_path / "many", [], 40, shard_mb=0.0001)
    descriptors = Path("/proc/self/fd")  # Linux has it
    before = len(list(descriptors.iterdir())) if descriptors.is_dir() else 0
    for check, held in ((True, (3, 0)), (False, (0, 5))):
        with TokenCache.open(written.path, check=check) as cache:
            stored = cache.images._tokens
            for seed in range(3):
                order = np.random.default_rng(seed).permutation(40)
                np.testing.assert_array_equal(cache.images.tokens(order), written.images[order])
            assert (len(stored._files), len(stored._maps)) == held
            if before and not check:
                assert len(list(descriptors.iterdir())) <= before  # maps hold no descriptor


def test_lookup_and_statistics(store: Any) -> None:
    with TokenCache.open(store.path) as cache:
        assert cache.images.rows(["image 3", "other name"]).tolist() == [3, 0]
        assert cache.texts.rows(["text 5", "text 5"]).tolist() == [5, 5]
        assert cache.images.grid == (2, 2)
        assert (len(cache.images), len(cache.texts), cache.images.dim, cache.texts.dim) == (25, 60, 6, 6)
        tokens = store.images.reshape(-1, 6).astype(np.float64)
        np.testing.assert_allclose(cache.images.mean, tokens.mean(0), rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(cache.images.var, tokens.var(0), rtol=1e-6)
        every = np.concatenate(store.tokens).astype(np.float64)
        np.testing.assert_allclose(cache.texts.mean, every.mean(0), rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(cache.texts.var, every.var(0), rtol=1e-6)
        np.testing.assert_allclose(cache.texts.global_mean, store.text_globals.astype(float).mean(0), rtol=1e-5)
        np.testing.assert_allclose(cache.texts.global_var, store.text_globals.astype(float).var(0), rtol=1e-5)


def test_unused_room_of_text_shards_takes_no_space(store: Any) -> None:
    """Every text shard has room for the fullest one's tokens, but its file holds only what is used."""
    spec = read_spec(store.path, "texts/tokens")
    sizes = [(store.path / spec.file(shard)).stat().st_size for shard in range(spec.shards)]
    assert spec.shards > 2
    assert min(sizes) < max(sizes) / 2
