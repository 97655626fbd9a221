"""What a reader does about files that are damaged, go, shrink or change, before and after it has opened them."""

from __future__ import annotations

import errno
import multiprocessing
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from madkit.cache import TokenCache
from madkit.cache.mapped import MappedFile
from madkit.cache.rows import ShardedRows, read_spec
from madkit.cache.shards import crc32c, index_size
from madkit.core.errors import CacheError

SHARD = "images/tokens/c/1/0/0"


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("name", [SHARD, "texts/tokens/c/0/0", "texts/spans/c/1/0", "images/globals/c/0/0"])
def test_missing_and_truncated_files_are_found_when_opening(store: Any, name: str, check: bool) -> None:
    file = store.path / name
    data = file.read_bytes()
    for kept in (0, 1, len(data) - 1):
        file.write_bytes(data[:kept])
        with pytest.raises(CacheError, match=rf"{name} has {kept:,} bytes instead of {len(data):,}"):
            TokenCache.open(store.path, check=check)
    file.unlink()
    with pytest.raises(CacheError, match=rf"{name} is missing"):
        TokenCache.open(store.path, check=check)


def test_every_flipped_bit_of_a_row_is_found_by_checked_reads_and_leaves_other_rows_alone(store: Any) -> None:
    file = store.path / SHARD
    sound = file.read_bytes()
    spec = read_spec(store.path, "images/tokens")
    first = spec.shard_rows  # of the damaged shard
    for bit in np.random.default_rng(0).integers(0, 8 * (spec.row_bytes + 4), 40).tolist():  # its checksum's, too
        data = bytearray(sound)
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        with TokenCache.open(store.path, check=True) as cache:
            with pytest.raises(CacheError, match=rf"{SHARD} is damaged: a checksum at byte 0 is wrong"):
                cache.images.tokens([0, first, first + 1])
            np.testing.assert_array_equal(cache.images.tokens([0, first + 1]), store.images[[0, first + 1]])


def test_a_file_that_shrinks_while_it_is_open_is_an_error_of_checked_reads(store: Any) -> None:
    with TokenCache.open(store.path, check=True) as cache:
        cache.images.tokens(np.arange(25))
        file = store.path / SHARD
        with file.open("r+b") as handle:
            handle.truncate(20)
        with pytest.raises(CacheError, match=rf"{SHARD} is (truncated|damaged)"):
            cache.images.tokens(np.arange(25))


@pytest.mark.parametrize("check", [False, True])
def test_files_replaced_or_removed_while_open_stay_readable(store: Any, check: bool) -> None:
    """As repair and prune do it, by another name and by unlinking: what was opened goes on."""
    with TokenCache.open(store.path, check=check) as cache:
        cache.images.tokens(np.arange(25))
        file = store.path / SHARD
        other = file.with_name("new")
        other.write_bytes(file.read_bytes())
        other.replace(file)
        np.testing.assert_array_equal(cache.images.tokens(np.arange(25)), store.images)
        file.unlink()
        np.testing.assert_array_equal(cache.images.tokens(np.arange(25)), store.images)


def _with_index(data: bytes, spec: Any, change: Callable[[Any], None]) -> bytes:
    """Return a shard with another index, its checksum right."""
    want = index_size(spec)
    index = np.frombuffer(data[-want:-4], "<u8").reshape(-1, 2).copy()
    change(index)
    return data[:-want] + index.tobytes() + struct.pack("<I", crc32c(index.tobytes()))


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize(("column", "value"), [(0, 10**6), (0, 2**63), (0, 2**64 - 2), (1, 5), (1, 2**64 - 9)])
def test_an_index_that_points_out_of_its_file_is_an_error(store: Any, column: int, value: int, check: bool) -> None:
    file = store.path / SHARD
    spec = read_spec(store.path, "images/tokens")

    def change(index: Any) -> None:
        index[0, column] = value

    file.write_bytes(_with_index(file.read_bytes(), spec, change))
    with (
        TokenCache.open(store.path, check=check) as cache,
        pytest.raises(CacheError, match=rf"{SHARD} is damaged: its index does not fit the file"),
    ):
        cache.images.tokens([spec.shard_rows])


@pytest.mark.parametrize("check", [False, True])
def test_rows_that_the_index_does_not_hold_are_an_error_never_zeros(store: Any, check: bool) -> None:
    file = store.path / SHARD
    spec = read_spec(store.path, "images/tokens")

    def change(index: Any) -> None:
        index[1] = 2**64 - 1

    file.write_bytes(_with_index(file.read_bytes(), spec, change))
    with TokenCache.open(store.path, check=check) as cache:
        first = spec.shard_rows
        np.testing.assert_array_equal(cache.images.tokens([first, 0]), store.images[[first, 0]])
        with pytest.raises(CacheError, match=rf"{SHARD} does not hold rows that the store should have"):
            cache.images.tokens([first, first + 1])


def test_another_file_in_the_place_of_one_that_was_let_go_is_an_error(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows would be looked up by the old file's index."""
    monkeypatch.setattr("madkit.cache.rows.MAX_MAPS", 1)
    spec = read_spec(store.path, "images/tokens")

    def change(index: Any) -> None:
        index[[0, 1]] = index[[1, 0]]

    with TokenCache.open(store.path) as cache:
        cache.images.tokens([spec.shard_rows])
        cache.images.tokens([0])  # lets go of the other shard
        file = store.path / SHARD
        file.write_bytes(_with_index(file.read_bytes(), spec, change))
        with pytest.raises(CacheError, match=rf"{SHARD} was replaced by another file while the store was open"):
            cache.images.tokens([spec.shard_rows])


def test_files_that_cannot_be_read_or_mapped(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: MappedFile, descriptor: int) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with TokenCache.open(store.path) as cache:
        with monkeypatch.context() as patch:
            patch.setattr(MappedFile, "__init__", refuse)
            with pytest.raises(CacheError, match=r"images/tokens/c/0/0/0 cannot be mapped: Cannot allocate memory"):
                cache.images.tokens([0])
        file = store.path / SHARD
        file.unlink()
        file.symlink_to(file)
        with pytest.raises(CacheError, match=rf"{SHARD} cannot be read: Too many levels of symbolic links"):
            cache.images.tokens(np.arange(25))
        np.testing.assert_array_equal(cache.images.tokens([0]), store.images[[0]])


def test_a_failing_disk_is_an_error_of_checked_reads(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int, size: int, offset: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    with TokenCache.open(store.path, check=True) as cache:
        cache.images.tokens([0])
        monkeypatch.setattr("os.pread", fail)
        with pytest.raises(CacheError, match=r"images/tokens/c/0/0/0 cannot be read: Input/output error"):
            cache.images.tokens([0])


@pytest.mark.parametrize("check", [False, True])
def test_files_are_fetched_before_they_are_opened(store: Any, tmp_path: Path, check: bool) -> None:
    """Those of a batch in one call, where there are several."""
    spec = read_spec(store.path, "images/tokens")
    calls: list[tuple[str, ...]] = []

    def fetch(*names: str) -> bool:
        calls.append(names)
        for name in names:
            target = tmp_path / "mirror" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((store.path / name).read_bytes())
        return True

    reader = ShardedRows(tmp_path / "mirror", spec, check=check, fetch=fetch)
    np.testing.assert_array_equal(reader.take(np.arange(25)), store.images)
    assert calls[0] == tuple(spec.file(shard) for shard in range(spec.shards))
    calls.clear()
    np.testing.assert_array_equal(reader.take([7, 0]), store.images[[7, 0]])
    assert not calls


@pytest.mark.parametrize("check", [False, True])
def test_children_of_a_fork_read_what_their_parent_has_open(
    store: Any, monkeypatch: pytest.MonkeyPatch, check: bool
) -> None:
    """As the workers of a DataLoader do; the parent's reading threads do not exist in them."""
    monkeypatch.setattr("madkit.cache.copying.THREAD_BYTES", 1)
    monkeypatch.setattr("madkit.cache.copying.THREADS", 2)
    with TokenCache.open(store.path, check=check) as cache:
        order = np.random.default_rng(0).permutation(25)
        np.testing.assert_array_equal(cache.images.tokens(order[:9]), store.images[order[:9]])

        def child() -> None:
            np.testing.assert_array_equal(cache.images.tokens(order), store.images[order])
            np.testing.assert_array_equal(cache.texts.tokens([3]).tokens, store.tokens[3])

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # forks of processes with threads
            process = multiprocessing.get_context("fork").Process(target=child)
            process.start()
        process.join(30)
        assert process.exitcode == 0
        np.testing.assert_array_equal(cache.images.tokens(order), store.images[order])
