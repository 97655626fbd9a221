"""Units kept from a kill: they come back whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from madkit.cache import TokenCache, verify_cache
from madkit.cache import kept as kept_module
from madkit.cache.kept import KeptUnit, forget_unit, keep_unit, kept_units
from madkit.cache.pruning import remove_store
from madkit.cache.remote import RemoteStore
from madkit.cache.remote_copy import RemoteCopy
from madkit.cache.writer import StoreWriter

SIZES = (("fine", 0.0001), ("coarse", 0.0002))


def unit(number: int = 3) -> KeptUnit:
    tokens = np.arange(24, dtype=np.float16).reshape(2, 3, 4)
    return KeptUnit("images", number, {"tokens": tokens, "globals": tokens[:, 0]}, {7: "It is no image"})


@pytest.fixture
def boot(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path_factory.mktemp("boot") / "boot_id"
    path.write_text("this one\n")
    monkeypatch.setattr(kept_module, "_BOOT", path)
    return path


def test_what_is_kept_comes_back_until_it_is_forgotten(tmp_path: Path, boot: Path) -> None:
    keep_unit(tmp_path, "this plan", unit())
    (found,) = kept_units(tmp_path, "this plan")
    assert (found.part, found.unit, found.absent) == ("images", 3, {7: "It is no image"})
    assert set(found.arrays) == {"tokens", "globals"}
    for name, values in unit().arrays.items():
        assert found.arrays[name].dtype == np.float16
        assert np.array_equal(found.arrays[name], values)
    forget_unit(tmp_path, "images", 3)
    assert not list(kept_units(tmp_path, "this plan"))
    assert not list(tmp_path.iterdir())


def test_after_another_boot_or_a_flipped_bit_nothing_comes_back(tmp_path: Path, boot: Path) -> None:
    keep_unit(tmp_path, "this plan", unit())
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    place = whole.index(unit().arrays["tokens"].tobytes())
    for damaged in (whole[: len(whole) // 2], b"", whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]):
        path.write_bytes(damaged)
        assert not list(kept_units(tmp_path, "this plan"))
        assert not path.exists()
    path.write_bytes(whole)
    boot.write_text("a later one\n")  # the power was cut: the file's pages may be anything
    assert not list(kept_units(tmp_path, "this plan"))
    assert not path.exists()
    boot.unlink()  # a system that does not tell
    keep_unit(tmp_path, "this plan", unit())
    assert not list(tmp_path.iterdir())


def test_a_full_disk_keeps_nothing_and_stops_nobody(
    tmp_path: Path, boot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    keep_unit(tmp_path, "this plan", unit())
    assert not list(tmp_path.iterdir())


def test_a_writer_takes_over_what_a_killed_one_had_finished(
    tmp_path: Path, boot: Path, maker: Callable[..., Any]
) -> None:
    expected = maker(tmp_path / "expected", [3, 0, 5, 2], images=9)
    killed = maker(tmp_path / "killed", [3, 0, 5, 2], images=9, finish=False)
    with StoreWriter(killed.path, killed.plan) as writer:
        missing = [(part, number) for part in ("images", "texts") for number in writer.missing(part)]
        for part, number in missing[1:]:
            keep_unit(killed.path, writer.digest, KeptUnit(part, number, killed.unit(writer.plan, part, number), {}))
    with StoreWriter(killed.path, killed.plan) as writer:
        left = [(part, number) for part in ("images", "texts") for number in writer.missing(part)]
        assert left == missing[:1]
        killed.fill(writer)
    assert not list(killed.path.glob(".kept-*"))
    assert verify_cache(killed.path).ok
    for path in (path for path in expected.path.rglob("c/**/*") if path.is_file()):
        assert (killed.path / path.relative_to(expected.path)).read_bytes() == path.read_bytes()


def test_a_unit_of_other_items_or_sizes_does_not_come_back(
    tmp_path: Path, boot: Path, maker: Callable[..., Any]
) -> None:
    keep_unit(tmp_path, "another plan", unit())
    assert not list(kept_units(tmp_path, "this plan"))
    assert not list(tmp_path.iterdir())
    fine, coarse = (maker(tmp_path / name, [3] * 4, images=9, shard_mb=size, finish=False) for name, size in SIZES)
    with StoreWriter(fine.path, fine.plan) as writer:
        keep_unit(coarse.path, writer.digest, KeptUnit("images", 0, fine.unit(fine.plan, "images", 0), {}))
    with StoreWriter(coarse.path, coarse.plan) as writer:
        assert writer.missing("images") == list(range(coarse.plan.images.units))


def test_a_unit_of_other_rows_is_refused(tmp_path: Path, maker: Callable[..., Any]) -> None:
    fine, coarse = (maker(tmp_path / name, [3] * 4, images=9, shard_mb=size, finish=False) for name, size in SIZES)
    with StoreWriter(coarse.path, coarse.plan) as writer:
        for part in ("images", "texts"):
            whole = coarse.unit(coarse.plan, part, 0)
            for wrong in (fine.unit(fine.plan, part, 0), {**whole, "tokens": whole["tokens"][:-1]}):
                with pytest.raises(ValueError, match=rf"{part}, unit 0: (tokens|globals|spans) has \d+ rows"):
                    writer.write_unit(part, 0, wrong)
            with pytest.raises(ValueError, match="lacks"):
                writer.write_unit(part, 0, {"globals": whole["globals"]})
        assert len(writer.pending("images")) == coarse.plan.images.units


def test_another_machines_plan_leaves_nothing_of_what_was_kept(
    tmp_path: Path, boot: Path, maker: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is killed with a kept unit; another takes the URL and begins anew in other sizes; the first goes on."""
    fine, coarse = (maker(tmp_path / name, [3] * 4, images=9, shard_mb=size, finish=False) for name, size in SIZES)
    there = RemoteStore.at(f"memory://{tmp_path.name}/test-000000000000")
    try:
        monkeypatch.setenv("MADKIT_CACHE_DIR", str(tmp_path / "first"))
        with StoreWriter(there.mirror, fine.plan, remote=RemoteCopy(there)) as writer:
            fine.fill(writer, 1)
            keep_unit(there.mirror, writer.digest, KeptUnit("images", 1, fine.unit(fine.plan, "images", 1), {}))
        monkeypatch.setenv("MADKIT_CACHE_DIR", str(tmp_path / "second"))
        remove_store(there)
        with StoreWriter(there.mirror, coarse.plan, remote=RemoteCopy(there)) as writer:
            coarse.fill(writer, 1)
        monkeypatch.setenv("MADKIT_CACHE_DIR", str(tmp_path / "first"))
        with StoreWriter(there.mirror, fine.plan, remote=RemoteCopy(there)) as writer:
            assert writer.plan.images.unit == coarse.plan.images.unit
            coarse.fill(writer)
        with TokenCache.open(there, check=True) as cache:
            assert np.array_equal(cache.images.tokens(range(9)), coarse.images)
    finally:
        fsspec.filesystem("memory").store.clear()
