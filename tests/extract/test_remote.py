"""Extraction to a URL: equal to one into a folder, resumed anywhere, repaired where it lies."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from madkit.cache import TokenCache, choose_cache, verify_cache
from madkit.cache.remote import RemoteStore
from madkit.cache.remote_copy import remote_units
from madkit.cache.remote_files import RemoteFolder
from madkit.cache.writer import StoreWriter
from madkit.cli.main import main
from madkit.core.errors import CacheError, NotFoundError
from madkit.core.workspace import Workspace
from madkit.extract.repair import repair
from madkit.extract.reports import StoreReport
from madkit.extract.stage import extract
from madkit.tasks.data import open_task


@pytest.fixture(autouse=True)
def mirrors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MADKIT_CACHE_DIR", str(tmp_path / "mirrors"))
    monkeypatch.delenv("MADKIT_CACHE_LIMIT_GB", raising=False)
    monkeypatch.setattr("madkit.cache.remote_files.DELAYS", (0.0,))
    return tmp_path / "mirrors"


@pytest.fixture
def base() -> Iterator[str]:
    yield f"memory://{uuid.uuid4().hex}"
    fsspec.filesystem("memory").store.clear()


def run(workspace: Workspace, teacher: Path, **more: object) -> StoreReport:
    (report,) = extract(workspace, f"local:{teacher}", ["snli-ve"], device="cpu", workers=1, shard_mb=0.002, **more)
    return report


def payload(place: Path | RemoteStore) -> dict[str, bytes]:
    read = place.files.read if isinstance(place, RemoteStore) else lambda name: (place / name).read_bytes()
    return {name: read(name) for name in json.loads(read("manifest.json"))["files"]}


@pytest.mark.parametrize("store_dtype", ["float16", "int8"])
def test_a_url_gets_what_a_folder_gets(
    workspace: Path, tiny_teacher: Path, base: str, mirrors: Path, store_dtype: str
) -> None:
    here = run(Workspace(workspace), tiny_teacher, store_dtype=store_dtype)
    place = Workspace(workspace, base)
    there = run(place, tiny_teacher, store_dtype=store_dtype)
    assert there.as_row()["path"] == there.url == f"{base}/{here.path.name}"
    store = RemoteStore.at(str(there.url))
    assert payload(store) == payload(here.path)
    again = run(place, tiny_teacher, store_dtype=store_dtype)
    shutil.rmtree(mirrors)
    elsewhere = run(place, tiny_teacher, store_dtype=store_dtype)
    assert (there.computed, again.computed, elsewhere.computed) == (there.items, 0, 0)
    shutil.rmtree(mirrors)
    data = open_task(place, "snli-ve")
    with choose_cache(place, data, None) as far, TokenCache.open(here.path) as near:
        rows = np.arange(len(near.images))[::-1]
        assert np.array_equal(far.images.tokens(rows), near.images.tokens(rows))
        rows = np.arange(len(near.texts))[::2]
        assert np.array_equal(far.texts.tokens(rows).tokens, near.texts.tokens(rows).tokens)


def test_a_stopped_one_goes_on_elsewhere(
    workspace: Path, tiny_teacher: Path, base: str, mirrors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, real, begun = Workspace(workspace, base), StoreWriter.write_unit, []

    def stopped(self: StoreWriter, *unit: object) -> None:
        begun.append(unit[:2])
        if len(begun) == 4:
            raise OSError(28, "No space left on device", "somewhere")
        real(self, *unit)

    monkeypatch.setattr(StoreWriter, "write_unit", stopped)
    with pytest.raises(OSError, match="No space left"):
        run(place, tiny_teacher)
    monkeypatch.setattr(StoreWriter, "write_unit", real)
    shutil.rmtree(mirrors)
    (name,) = fsspec.filesystem("memory").ls(base, detail=False)
    store = RemoteStore.at(f"memory:/{name}")
    done = remote_units(store)
    assert done == set(begun[:3])  # what was finished is there, though it ended with a failure
    data = open_task(place, "snli-ve")
    with pytest.raises(NotFoundError, match="no token cache for snli-ve"):
        choose_cache(place, data, None)
    with pytest.raises(CacheError, match=r"is unfinished \(3 of"):
        TokenCache.open(store)
    report = run(place, tiny_teacher)
    assert 0 < report.computed < report.items
    assert verify_cache(store).ok
    assert payload(store) == payload(run(Workspace(workspace), tiny_teacher).path)


def test_repair_computes_and_uploads_just_what_is_damaged(
    workspace: Path, tiny_teacher: Path, base: str, mirrors: Path
) -> None:
    place = Workspace(workspace, base)
    report = run(place, tiny_teacher)
    store = RemoteStore.at(str(report.url))
    sound = payload(store)
    damaged = ["images/tokens/c/1/0/0", "texts/globals/c/0/0", "texts/texts.json"]
    store.files.write(damaged[0], sound[damaged[0]][:-1] + b"?")
    store.files.remove([damaged[1]])
    store.files.write(damaged[2], b"[]\n")
    before = {name: store.files.read(f"journal/{name}.json") for name in ("images-0", "texts-1")}
    shutil.rmtree(mirrors)
    done = repair(place, store, device="cpu", workers=1)
    assert sorted(done.files) == sorted(damaged)
    assert done.changed == ()
    assert verify_cache(store).ok
    assert payload(store) == sound
    assert before == {name: store.files.read(f"journal/{name}.json") for name in before}
    assert repair(place, store).files == ()


def test_the_command_line(
    workspace: Path, tiny_teacher: Path, base: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MADKIT_CACHE", base)
    arguments = ["extract", "--teacher", f"local:{tiny_teacher}", "--task", "snli-ve", "--workspace", str(workspace)]
    assert main([*arguments, "--dry-run", "--json"]) == 0
    (plan,) = json.loads(capsys.readouterr().out)["stores"]
    assert plan["path"].startswith(f"{base}/")
    assert plan["skipped"] == 0
    assert main([*arguments, "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)["stores"]
    assert report["path"] == plan["path"]
    assert not (workspace / "cache").exists()
    assert main([*arguments, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stores"][0]["pending"] == 0
    assert (
        main(
            [
                "cache",
                "verify",
                "--workspace",
                str(workspace),
                "--sample",
                "2",
                "--json",
                "--weights",
                str(tiny_teacher),
            ]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)["stores"][0]["sample"]["images"]["worst"] > 0.99
    assert main(["cache", "repair", "--workspace", str(workspace)]) == 0
    assert report["path"] in capsys.readouterr().out
    assert main(["cache", "list", "--cache", str(workspace / "nowhere")]) == 1
    assert f"There is no cache folder at {workspace / 'nowhere'}." in capsys.readouterr().err


def test_the_network_fails_during_an_extraction(
    workspace: Path,
    tiny_teacher: Path,
    base: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, sent = RemoteFolder.upload, []

    def down(self: RemoteFolder, name: str, source: Path) -> None:
        sent.append(name)
        if len(sent) > 30:
            self._try(name, lambda fs, path: fs.nothing_of_this_name(path))
        real(self, name, source)

    monkeypatch.setattr(RemoteFolder, "upload", down)
    arguments = ["extract", "--teacher", f"local:{tiny_teacher}", "--task", "snli-ve", "--workspace", str(workspace)]
    arguments += ["--cache", base, "--shard-mb", "0.001"]
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert f"Error: {base}/" in said
    assert "cannot be reached after 2 attempts" in said
    assert "run the same command again, which goes on from here" in said
    assert "Traceback" not in said
    monkeypatch.setattr(RemoteFolder, "upload", real)
    assert main(arguments) == 0
    (name,) = fsspec.filesystem("memory").ls(base, detail=False)
    store = RemoteStore.at(f"memory:/{name}")
    assert verify_cache(store).ok
