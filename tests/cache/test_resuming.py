"""Going on with stores that lack a plan, and stores that another program laid out: nothing is replaced by mistake."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from madkit.cache import TokenCache, verify_cache
from madkit.cache.layout import image_layout, text_layout
from madkit.cache.plan import PARTS, StorePlan
from madkit.cache.remote import RemoteStore
from madkit.cache.remote_copy import RemoteCopy
from madkit.cache.writer import StoreWriter
from madkit.cli.main import main
from madkit.core.errors import CacheError


def in_other_sizes(plan: StorePlan) -> StorePlan:
    """The same items as another call would lay them out."""
    return StorePlan(
        plan.identity,
        plan.image_ids,
        plan.image_aliases,
        plan.texts,
        plan.lengths,
        image_layout(plan.images.n, plan.images.grid, plan.images.dim, 32.0),
        text_layout(plan.lengths, plan.text.dim, 32.0),
        plan.facts,
    )


def content(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def reads(store: Any) -> None:
    with TokenCache.open(store.path, check=True) as cache:
        assert np.array_equal(cache.images.tokens(range(25)), store.images)
        assert np.array_equal(cache.texts.globals(range(len(store.texts))), store.text_globals)


@pytest.mark.parametrize("lost", [("plan.json",), ("plan.json", "journal.jsonl")])
def test_a_complete_store_without_a_plan_keeps_its_sizes(store: Any, lost: tuple[str, ...]) -> None:
    before = content(store.path)
    for name in lost:
        (store.path / name).unlink()
    with StoreWriter(store.path, in_other_sizes(store.plan)) as writer:
        assert writer.finished
        assert writer.plan.images.unit == store.plan.images.unit
    after = content(store.path)
    assert {name for name, data in before.items() if data != after[name]} <= {"journal.jsonl"}
    reads(store)
    (store.path / "images/tokens/c/1/0/0").unlink()
    with StoreWriter(store.path, in_other_sizes(store.plan)) as writer:
        assert (writer.missing("images"), writer.missing("texts")) == ([1], [])
        store.fill(writer)
    assert verify_cache(store.path).ok
    reads(store)


@pytest.mark.parametrize("lost", [("plan.json",), ("plan.json", "journal.jsonl")])
def test_what_is_repaired_without_a_plan_keeps_its_sizes(store: Any, lost: tuple[str, ...]) -> None:
    """As `repair` does it, whose own plan is of other sizes than the store's."""
    manifest = json.loads((store.path / "manifest.json").read_text())
    for name in lost:
        (store.path / name).unlink()
    with StoreWriter(store.path, in_other_sizes(store.plan), known=manifest) as writer:
        (store.path / "images/tokens/c/1/0/0").unlink()
        writer.reopen("images", 1)
        assert (writer.pending("images"), writer.pending("texts")) == ([1], [])
        store.fill(writer, 1)
        assert writer.finish(seconds=1.0, keep=manifest)["files"] == manifest["files"]
    reads(store)


def test_units_without_plan_and_manifest_are_refused(tmp_path: Path, maker: Callable[..., Any]) -> None:
    written = maker(tmp_path / "cache/one", [3] * 5, 25)
    for name in ("plan.json", "manifest.json"):
        (written.path / name).unlink()
    before = content(written.path)
    with (
        pytest.raises(CacheError, match=r"neither plan\.json nor manifest\.json"),
        StoreWriter(written.path, in_other_sizes(written.plan)),
    ):
        pass
    assert content(written.path) == before


def test_at_a_url_the_manifest_stands_for_a_missing_plan(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MADKIT_CACHE_DIR", str(tmp_path / "mirrors"))
    there = RemoteStore.at(f"memory://without-a-plan/{store.path.name}")
    try:
        for name, data in content(store.path).items():
            if name not in ("plan.json", "journal.jsonl"):
                there.files.write(name, data)
        with StoreWriter(there.mirror, in_other_sizes(store.plan), remote=RemoteCopy(there)) as writer:
            assert writer.finished
        assert verify_cache(there).ok
        assert json.loads(there.files.read("plan.json")) == json.loads((store.path / "plan.json").read_text())
        there.files.remove(["plan.json", "manifest.json"])
        there.files.write("journal/images-0.json", b'{"part": "images", "unit": 0, "files": {}}')
        monkeypatch.setenv("MADKIT_CACHE_DIR", str(tmp_path / "elsewhere"))
        with (
            pytest.raises(CacheError, match=r"neither plan\.json nor"),
            StoreWriter(there.mirror, store.plan, remote=RemoteCopy(there)),
        ):
            pass
    finally:
        fsspec.filesystem("memory").store.clear()


def rewritten(path: Path, name: str, data: bytes) -> None:
    """Have another program's bytes in a file, and its manifest say so."""
    manifest = json.loads((path / "manifest.json").read_text())
    (path / name).write_bytes(data)
    manifest["files"][name] = {"bytes": len(data), "crc32": f"{zlib.crc32(data):08x}"}
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_other_bytes_of_the_same_metadata_stay(store: Any) -> None:
    for file in ("images/tokens/zarr.json", "zarr.json", "images/ids.json"):
        rewritten(store.path, file, json.dumps(json.loads((store.path / file).read_bytes()), indent=7).encode())
    for file in ("plan.json", "journal.jsonl"):
        (store.path / file).unlink()
    before = content(store.path)
    with StoreWriter(store.path, in_other_sizes(store.plan)) as writer:
        assert writer.finished
    after = content(store.path)
    assert before == {file: after[file] for file in before}
    assert verify_cache(store.path).ok


def test_a_layout_of_another_program_is_left_or_refused(store: Any) -> None:
    """Here global vectors in other inner chunks: our shards beside theirs would be one array of two kinds."""
    name = "images/globals/zarr.json"
    metadata = json.loads((store.path / name).read_bytes())
    metadata["codecs"][0]["configuration"]["chunk_shape"][0] = 1
    rewritten(store.path, name, json.dumps(metadata).encode())
    with StoreWriter(store.path, store.plan) as writer:
        assert writer.finished
        with pytest.raises(CacheError, match="not laid out by madkit"):
            writer.reopen("images", 0)
    manifest = json.loads((store.path / "manifest.json").read_text())
    (store.path / "images/tokens/c/1/0/0").unlink()
    before = content(store.path)
    for known in (None, manifest):
        with (
            pytest.raises(CacheError, match=rf"not laid out by madkit \({name}\)"),
            StoreWriter(store.path, store.plan, known=known),
        ):
            pass
    assert content(store.path) == before


def test_a_manifest_never_vouches_for_shards_of_other_sizes(
    store: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with StoreWriter(store.path, store.plan) as writer:
        del writer._files["images/globals/c/1/0"]
        with pytest.raises(CacheError, match=r"other shards than its sizes imply: images/globals/c/1/0"):
            writer.finish(seconds=1.0)
    with monkeypatch.context() as patch:  # metadata of other sizes come over the old shards
        patch.setattr("madkit.cache.writer.refuse_other_shards", lambda *_: None)
        patch.setattr(StoreWriter, "_fits", lambda *_: True)
        for name in ("plan.json", "manifest.json"):
            (store.path / name).unlink()
        patch.setattr("madkit.cache.writer.begun_with", lambda _: None)
        patch.setattr("madkit.cache.writer.store_statistics", lambda *_: np.zeros((4, 6), np.float32))
        with StoreWriter(store.path, in_other_sizes(store.plan)) as writer:
            assert not any(writer.missing(part) for part in PARTS)
            writer.finish(seconds=1.0)
    report = verify_cache(store.path)
    assert {problem.kind for problem in report.problems} == {"layout"}
    assert "images/tokens has 1 shards, and the manifest lists others" in report.problems[0].detail
    workspace = str(store.path.parents[1])
    assert main(["cache", "verify", "--workspace", workspace]) == 3
    assert f"madkit cache prune --workspace {workspace} --store {store.path.name} --yes" in capsys.readouterr().err


def test_metadata_of_other_sizes_than_the_manifests_are_found(store: Any) -> None:
    name = "images/tokens/zarr.json"
    metadata = json.loads((store.path / name).read_bytes())
    metadata["chunk_grid"]["configuration"]["chunk_shape"][0] += 1
    rewritten(store.path, name, json.dumps(metadata).encode())
    (problem,) = verify_cache(store.path).problems
    assert (problem.kind, problem.file) == ("layout", name)
    manifest = json.loads((store.path / "manifest.json").read_text())
    manifest["images"]["unit"] = 0
    (store.path / "manifest.json").write_text(json.dumps(manifest))
    assert "its sizes cannot be read" in verify_cache(store.path).problems[0].detail
