"""Units kept from a kill: they come back whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from madkit.cache import kept as kept_module
from madkit.cache import verify_cache
from madkit.cache.kept import KeptUnit, forget_unit, keep_unit, kept_units
from madkit.cache.writer import StoreWriter


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
    keep_unit(tmp_path, unit())
    (found,) = kept_units(tmp_path)
    assert (found.part, found.unit, found.absent) == ("images", 3, {7: "It is no image"})
    assert set(found.arrays) == {"tokens", "globals"}
    for name, values in unit().arrays.items():
        assert found.arrays[name].dtype == np.float16
        assert np.array_equal(found.arrays[name], values)
    forget_unit(tmp_path, "images", 3)
    assert not list(kept_units(tmp_path))
    assert not list(tmp_path.iterdir())


def test_after_another_boot_or_a_flipped_bit_nothing_comes_back(tmp_path: Path, boot: Path) -> None:
    keep_unit(tmp_path, unit())
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    place = whole.index(unit().arrays["tokens"].tobytes())
    for damaged in (whole[: len(whole) // 2], b"", whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]):
        path.write_bytes(damaged)
        assert not list(kept_units(tmp_path))
        assert not path.exists()
    path.write_bytes(whole)
    boot.write_text("a later one\n")  # the power was cut: the file's pages may be anything
    assert not list(kept_units(tmp_path))
    assert not path.exists()
    boot.unlink()  # a system that does not tell
    keep_unit(tmp_path, unit())
    assert not list(tmp_path.iterdir())


def test_a_full_disk_keeps_nothing_and_stops_nobody(
    tmp_path: Path, boot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    keep_unit(tmp_path, unit())
    assert not list(tmp_path.iterdir())


def test_a_writer_takes_over_what_a_killed_one_had_finished(
    tmp_path: Path, boot: Path, maker: Callable[..., Any]
) -> None:
    expected = maker(tmp_path / "expected", [3, 0, 5, 2], images=9)
    killed = maker(tmp_path / "killed", [3, 0, 5, 2], images=9, finish=False)
    with StoreWriter(killed.path, killed.plan) as writer:
        missing = [(part, number) for part in ("images", "texts") for number in writer.missing(part)]
        for part, number in missing[1:]:
            keep_unit(killed.path, KeptUnit(part, number, killed.unit(writer.plan, part, number), {}))
    with StoreWriter(killed.path, killed.plan) as writer:
        left = [(part, number) for part in ("images", "texts") for number in writer.missing(part)]
        assert left == missing[:1]
        killed.fill(writer)
    assert not list(killed.path.glob(".kept-*"))
    assert verify_cache(killed.path).ok
    for path in (path for path in expected.path.rglob("c/**/*") if path.is_file()):
        assert (killed.path / path.relative_to(expected.path)).read_bytes() == path.read_bytes()
