"""Images that cannot be read and empty texts: the rest is done, they are listed, and nothing passes for a value."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from madkit.cache import TokenCache, verify_cache
from madkit.cli.main import main
from madkit.core.errors import CacheError, DataError
from madkit.core.workspace import Workspace
from madkit.extract import items, recheck, stage
from madkit.extract.stage import extract

torch.set_num_threads(1)
Reindex = Callable[[Path], None]
EMPTIED = "to be emptied"


@pytest.fixture
def emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Imports refuse empty texts, so one is emptied on the way to the teacher."""
    real = items.collect_items

    def collect(*arguments: Any) -> items.Items:
        found = real(*arguments)
        return replace(found, texts=tuple("" if text == EMPTIED else text for text in found.texts))

    monkeypatch.setattr(stage, "collect_items", collect)
    monkeypatch.setattr(recheck, "collect_items", collect)


def damage(workspace: Path, reindex: Reindex) -> Path:
    """Cut one picture short, lose another, and add a hypothesis that is emptied; return the folder of the pictures."""
    data = workspace / "data/snli-ve"
    file = data / "test.jsonl"
    lines = file.read_text().splitlines()
    added = {**json.loads(lines[0]), "sentence2": EMPTIED, "pairID": "e"}
    file.write_text("\n".join([*lines, json.dumps(added)]) + "\n")
    reindex(data)
    bad = data / "images/103.png"
    bad.write_bytes(bad.read_bytes()[:60])
    (data / "images/107.png").unlink()
    return data / "images"


def run(workspace: Path, teacher: Path, **more: object) -> Path:
    reports = extract(Workspace(workspace), f"local:{teacher}", ["snli-ve"], device="cpu", shard_mb=0.002, **more)
    return reports[0].path


def files_of(store: Path) -> dict[str, bytes]:
    manifest = json.loads((store / "manifest.json").read_text())
    return {name: (store / name).read_bytes() for name in manifest["files"]}


@pytest.mark.usefixtures("emptied")
def test_everything_else_is_done_and_the_failure_names_them(
    workspace: Path, tiny_teacher: Path, reindex: Reindex, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(workspace, reindex)
    common = ["extract", "--teacher", f"local:{tiny_teacher}", "--task", "snli-ve", "--workspace", str(workspace)]
    capsys.readouterr()
    assert main([*common, "--shard-mb", "0.002"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "Error: 2 of 10 images cannot be read: " in err
    assert "107.png does not exist" in err
    assert re.search(r"and 1 of \d+ texts has no tokens \(a text is empty\)", err)
    assert "--allow-missing" in err
    (store,) = (workspace / "cache").iterdir()
    listed = json.loads((store / "absent.json").read_text())
    assert {Path(item["id"]).stem[:3] for item in listed["images"]} == {"103", "107"}
    assert [item["text"] for item in listed["texts"]] == [""]
    assert not (store / "manifest.json").exists()
    plan = json.loads((store / "plan.json").read_text())
    units = sum(-(-plan[part]["n"] // plan[part]["unit"]) for part in ("images", "texts"))
    assert len((store / "journal.jsonl").read_text().splitlines()) == units  # nothing is left to be done

    assert main([*common, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    facts = {"task": "snli-ve", "dataset": "snli-ve", "images": 2, "texts": 1, "listed": str(store / "absent.json")}
    assert told == {"stores": [], "unfinished": [facts]}

    assert main([*common, "--allow-missing", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["stores"]
    assert (row["absent"], row["computed"]) == (3, 0)
    assert not (store / "absent.json").exists()
    assert json.loads((store / "manifest.json").read_text())["absent"] == listed
    assert main(["cache", "list", "--workspace", str(workspace), "--json"]) == 0
    assert [row["absent"] for row in json.loads(capsys.readouterr().out)["stores"]] == [3]
    assert main(["cache", "info", "--workspace", str(workspace)]) == 0
    assert "107.png does not exist" in capsys.readouterr().out
    assert main(["cache", "verify", "--sample", "30", "--workspace", str(workspace), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stores"][0]["sample"]["images"]["n"] == 8 * 16
    assert main(common) == 1  # complete, but not as it should be


@pytest.mark.usefixtures("emptied")
def test_absent_items_are_never_values(workspace: Path, tiny_teacher: Path, reindex: Reindex) -> None:
    damage(workspace, reindex)
    path = run(workspace, tiny_teacher, allow_missing=True)
    assert verify_cache(path).ok
    with TokenCache.open(path) as cache:
        gone = sorted(cache.images.absent)
        assert len(gone) == 2
        for read in (cache.images.tokens, cache.images.globals):
            with pytest.raises(CacheError, match=rf"no values for row {gone[0]} of its images: .*103\.png"):
                read(np.arange(10))
        ids = cache.images.ids
        with pytest.raises(CacheError, match="no values for row"):
            cache.images.rows(ids)
        there = cache.images.rows(ids, absent="skip")
        assert there.tolist() == [row for row in range(10) if row not in gone]
        assert np.flatnonzero(~cache.images.present(ids)).tolist() == gone
        with pytest.raises(CacheError, match=r"no values for row .* of its texts: a text is empty"):
            cache.texts.globals(cache.texts.rows([""]))
        assert cache.texts.rows(["", cache.texts.texts[0]], absent="skip").tolist() == [0]
        with pytest.raises(CacheError, match="1 of the images asked for are not in the cache"):
            cache.images.rows(["nope"], absent="skip")
        # statistics are those of what is there
        tokens = cache.images.tokens(there).reshape(-1, cache.images.dim).astype(np.float64)
        np.testing.assert_allclose(cache.images.mean, tokens.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(cache.images.var, tokens.var(0), rtol=1e-5, atol=1e-6)
        vectors = cache.texts.globals(cache.texts.rows(cache.texts.texts, absent="skip")).astype(np.float64)
        np.testing.assert_allclose(cache.texts.global_mean, vectors.mean(0), rtol=1e-5, atol=1e-6)
        # a Zarr library sees what is there, and the fill value where nothing is
        array = zarr.open_group(path, mode="r")["images/tokens"]
        np.testing.assert_array_equal(array[:][there], cache.images.tokens(there))
        assert not array[:][gone].any()


def test_a_mended_image_is_redone_and_nothing_else(
    workspace: Path, tiny_teacher: Path, reindex: Reindex, tmp_path: Path
) -> None:
    import shutil

    whole = tmp_path / "whole"
    shutil.copytree(workspace, whole)
    expected = files_of(run(whole, tiny_teacher))
    images = workspace / "data/snli-ve/images"
    good = (images / "103.png").read_bytes()
    (images / "103.png").unlink()
    path = run(workspace, tiny_teacher, allow_missing=True)
    assert files_of(path) != expected
    (images / "103.png").write_bytes(good)
    (report,) = extract(Workspace(workspace), f"local:{tiny_teacher}", ["snli-ve"], device="cpu")
    assert (report.absent, 0 < report.computed <= 3) == (0, True)
    assert json.loads((path / "manifest.json").read_text())["absent"] == {"images": [], "texts": []}
    assert files_of(path) == expected


def test_a_folder_without_any_image_fails_at_once(workspace: Path, tiny_teacher: Path) -> None:
    for image in (workspace / "data/snli-ve/images").iterdir():
        image.unlink()
    with pytest.raises(DataError, match="10 of 10 images cannot be read") as error:
        run(workspace, tiny_teacher, allow_missing=True)
    assert not isinstance(error.value, items.ItemsMissing)
    assert not (workspace / "cache").exists()
