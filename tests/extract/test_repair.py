"""Repair: whatever damages a store, the damaged shards alone are redone, to the bytes of an uninterrupted run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from madkit.cache import TokenCache, verify_cache
from madkit.cache.manage import find_store
from madkit.cli.main import main
from madkit.core.errors import CacheError, NotFoundError, StoppedResumable
from madkit.core.workspace import Workspace
from madkit.extract import repair as repair_module
from madkit.extract.items import ItemsMissing
from madkit.extract.repair import repair
from madkit.extract.stage import extract

torch.set_num_threads(1)


@pytest.fixture
def store(workspace: Path, tiny_teacher: Path) -> Path:
    reports = extract(Workspace(workspace), f"local:{tiny_teacher}", ["snli-ve"], device="cpu", shard_mb=0.002)
    return reports[0].path


def flip(file: Path, place: int = 3) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def payload(store: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in store.rglob("*")
        if path.is_file() and path.name not in ("manifest.json", "journal.jsonl")
    }


DAMAGE: dict[str, Callable[[Path], object]] = {
    "images/tokens/c/1/0/0": flip,
    "images/globals/c/0/0": Path.unlink,
    "images/unit_statistics/c/2/0/0": flip,
    "texts/tokens/c/0/0": lambda file: file.write_bytes(file.read_bytes()[:-9]),
    "texts/spans/c/1/0": lambda file: flip(file, -5),
    "texts/extents/c/0/0": flip,
    "texts/texts.json": lambda file: file.write_text("[]"),
    "images/statistics/c/0/0": Path.unlink,
    "images/tokens/zarr.json": Path.unlink,
    "zarr.json": lambda file: file.write_text("{"),
}


def test_a_store_answers_to_its_name_its_key_and_its_folder(
    store: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Extraction prints the folder, and people copy what they see."""
    monkeypatch.chdir(store.parent)
    place = Workspace(workspace)
    for name in (
        store.name,
        store.name.rpartition("-")[2],
        str(store),
        f"{store}/",
        f"./{store.name}",
        f"../cache/{store.name}",
    ):
        assert find_store(place, name) == [store]
    with pytest.raises(NotFoundError, match="no token cache named"):
        find_store(place, str(store.with_name("other")))


@pytest.mark.parametrize("lost", [(), ("journal.jsonl",), ("plan.json", "journal.jsonl")])
def test_every_damage_at_once(store: Path, workspace: Path, lost: tuple[str, ...]) -> None:
    before, manifest = payload(store), json.loads((store / "manifest.json").read_text())
    for name, harm in DAMAGE.items():
        harm(store / name)
    for name in lost:
        (store / name).unlink()
    times = {name: (store / name).stat().st_mtime_ns for name in before if (store / name).exists()}
    report = repair(Workspace(workspace), store, device="cpu")
    assert set(report.files) == set(DAMAGE)
    assert report.changed == ()
    assert payload(store) == before
    after = json.loads((store / "manifest.json").read_text())
    assert len(after.pop("repaired")) == 1
    assert after == manifest
    assert verify_cache(store).ok
    units = {(name.split("/")[0], name.split("/")[3]) for name in DAMAGE if "/c/" in name}
    for name, time in times.items():
        parts = name.split("/")
        if "/c/" in name and parts[1] not in ("extents", "statistics") and (parts[0], parts[3]) not in units:
            assert (store / name).stat().st_mtime_ns == time, f"{name} was written again"
    (again,) = extract(Workspace(workspace), manifest["identity"]["teacher"], ["snli-ve"], device="cpu")
    assert again.computed == 0


def test_the_command(store: Path, workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ("--workspace", str(workspace))
    assert main(["cache", "repair", *place, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["stores"]
    assert (row["files"], row["items"]) == ([], 0)
    flip(store / "images/tokens/c/1/0/0")
    (store / "images/tokens/c/9").mkdir()
    (store / "images/tokens/c/9/0").write_bytes(b"x")
    assert main(["cache", "verify", *place]) == 3
    assert "madkit cache repair" in capsys.readouterr().err
    assert main(["cache", "repair", store.name, *place, "--device", "cpu", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["stores"]
    assert row["files"] == ["images/tokens/c/1/0/0"]
    assert row["left"] == ["images/tokens/c/9/0"]
    assert 0 < row["items"] <= 3
    shutil.rmtree(store / "images/tokens/c/9")
    assert main(["cache", "verify", *place]) == 0
    assert main(["cache", "repair", "nope", *place]) == 1
    assert "no token cache named 'nope'" in capsys.readouterr().err


def test_what_cannot_be_repaired(store: Path, workspace: Path, tiny_teacher: Path) -> None:
    place = Workspace(workspace)
    shard = store / "images/tokens/c/1/0/0"
    flip(shard)
    images = workspace / "data/snli-ve/images"
    moved = [image.rename(image.with_suffix(".gone")) for image in sorted(images.iterdir())[2:5]]
    with pytest.raises(ItemsMissing, match="cannot be read"):  # they were read once: not to be lost by a repair
        repair(place, store, device="cpu")
    with pytest.raises(CacheError, match="unfinished"):
        TokenCache.open(store)
    for image in moved:
        image.rename(image.with_suffix(".png"))
    (report,) = extract(place, f"local:{tiny_teacher}", ["snli-ve"], device="cpu")
    assert report.absent == 0
    flip(shard)
    config = json.loads((tiny_teacher / "config.json").read_text())
    try:
        (tiny_teacher / "config.json").write_text(json.dumps({**config, "mean": [0.4, 0.5, 0.5]}))
        with pytest.raises(CacheError, match=r"something else than what is at hand \(vision\)"):
            repair(place, store, device="cpu")
    finally:
        (tiny_teacher / "config.json").write_text(json.dumps(config))
    assert not verify_cache(store).ok
    manifest = json.loads((store / "manifest.json").read_text())
    (store / "manifest.json").write_text(json.dumps({**manifest, "key": "0" * 12}))
    with pytest.raises(CacheError, match="cannot be trusted"):
        repair(place, store, device="cpu")


def test_a_stopped_repair_goes_on(
    store: Path, workspace: Path, tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = payload(store)
    for name in ("images/tokens/c/1/0/0", "texts/tokens/c/0/0"):
        flip(store / name)

    def stopped(*_: object) -> None:
        raise StoppedResumable("stopped.")

    with monkeypatch.context() as patch:
        patch.setattr(repair_module, "encode_missing", stopped)
        with pytest.raises(StoppedResumable):
            repair(Workspace(workspace), store, device="cpu")
    (report,) = extract(Workspace(workspace), f"local:{tiny_teacher}", ["snli-ve"], device="cpu")
    assert 0 < report.computed < report.items
    assert payload(store) == before
    assert verify_cache(store).ok


@pytest.mark.parametrize(("tokens", "dtype"), [("selected:4", "int8"), ("global", "float16")])
def test_every_file_of_a_store_at_once(workspace: Path, tiny_teacher: Path, tokens: str, dtype: str) -> None:
    """Missing, cut short or with a bit flipped in turns: verification names just these, and repair brings all back."""
    (report,) = extract(
        Workspace(workspace), f"local:{tiny_teacher}", ["snli-ve"], device="cpu", shard_mb=0.0005, tokens=tokens,
        store_dtype=dtype,
    )  # fmt: skip
    store, before = report.path, payload(report.path)
    files = sorted(json.loads((store / "manifest.json").read_text())["files"])
    assert {name for name in before if name != "plan.json"} == set(files)
    for turn in range(3):
        kinds = {}
        for number, name in enumerate(files):
            kinds[name] = ("missing", "truncated", "damaged")[(number + turn) % 3]
            file = store / name
            if kinds[name] == "missing":
                file.unlink()
            elif kinds[name] == "truncated":
                file.write_bytes(file.read_bytes()[:-1])
            else:
                flip(file, len(before[name]) // 2)
        found = verify_cache(store).problems
        assert {problem.file for problem in found} == set(files)
        assert all(kinds[problem.file] == problem.kind for problem in found if "/c/" in problem.file)
        assert set(repair(Workspace(workspace), store, device="cpu").files) == set(files)
        assert payload(store) == before
        assert verify_cache(store).ok
