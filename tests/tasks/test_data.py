from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from madkit.core.errors import DataError, NotFoundError, UsageProblem
from madkit.core.workspace import Workspace
from madkit.regions import write_butd_hdf5
from madkit.tasks.data import TaskData, open_task

PAIR = {"Flickr30K_ID": "7", "gold_label": "neutral", "sentence2": "A dog."}


def make(folder: Path, source: str = "snli-ve", task: str = "snli-ve", **more: Any) -> dict[str, Any]:
    """A tiny SNLI-VE data set with one shifted suite."""
    folder.mkdir(parents=True)
    entries = {}
    for split in ("test-rendering", "dev", "test", "train"):
        lines = [{**PAIR, "pairID": f"{split}{i}"} for i in range(3)] + [{**PAIR, "pairID": "x", "gold_label": "-"}]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        entries[split] = {"format": "snli-ve", "annotations": f"{split}.jsonl", "images": "img", "extension": ".png"}
    manifest = {"schema": 1, "task": task, "source": source, "revision": "0" * 16, "splits": entries} | more
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return manifest


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.at(tmp_path / "ws")


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, str, str]]:
    """Calls of the embedded benchmark's builder, which is replaced."""
    calls: list[tuple[Path, str, str]] = []

    def build_mini(folder: Path, source: str, *, part: str = "full") -> None:
        calls.append((folder, source, part))
        make(folder, source, source.removeprefix("mini-"))

    module = ModuleType("madkit.tasks.mini.build")
    module.build_mini = build_mini
    monkeypatch.setitem(__import__("sys").modules, "madkit.tasks.mini.build", module)
    return calls


def test_imported_data_comes_first(workspace: Workspace, built: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    make(workspace.data / "snli-ve")
    data = open_task(workspace, "snli-ve")
    assert (data.source, data.is_mini, data.spec.name, data.revision) == ("snli-ve", False, "snli-ve", "0" * 16)
    assert data.splits() == ["train", "dev", "test"]
    assert data.suites() == ["test", "test-rendering"]
    examples = data.examples("test-rendering")
    assert [e.id for e in examples] == ["test-rendering0", "test-rendering1", "test-rendering2"]
    assert examples[0].image.path == data.root / "img" / "7.png"
    assert data.examples("test-rendering") is examples
    assert "1 pairs left out" in capsys.readouterr().err
    assert not built


def test_the_embedded_benchmark_is_built_once(workspace: Workspace, built: list[Any]) -> None:
    for _ in range(2):
        data = open_task(workspace, "snli-ve")
        assert (data.source, data.is_mini, data.root) == (
            "mini-snli-ve",
            True,
            workspace.data / "mini" / "mini-snli-ve",
        )
    assert built == [(workspace.data / "mini" / "mini-snli-ve", "mini-snli-ve", "full")]


def test_parts_have_their_own_folders_and_auto_takes_what_exists(workspace: Workspace, built: list[Any]) -> None:
    home = workspace.data / "mini"
    assert open_task(workspace, "snli-ve", part="demo").root == home / "mini-snli-ve-demo"
    assert open_task(workspace, "snli-ve", part="auto").root == home / "mini-snli-ve-demo"
    assert open_task(workspace, "snli-ve").root == home / "mini-snli-ve"
    assert open_task(workspace, "snli-ve", part="auto").root == home / "mini-snli-ve"
    assert [part for _, _, part in built] == ["demo", "full"]


def test_auto_builds_the_full_benchmark_when_there_is_nothing(workspace: Workspace, built: list[Any]) -> None:
    open_task(workspace, "snli-ve", part="auto")
    assert [part for _, _, part in built] == ["full"]


def test_nothing_is_built_when_that_is_not_wanted(workspace: Workspace, built: list[Any]) -> None:
    with pytest.raises(NotFoundError, match="holds no data for vqa") as caught:
        open_task(workspace, "vqa", build=False)
    assert "madkit extract" in (caught.value.hint or "")
    with pytest.raises(UsageProblem, match="Did you mean 'vqa'"):
        open_task(workspace, "vqaa")
    assert not built


def test_an_unknown_suite_is_answered_with_the_nearest_name(workspace: Workspace) -> None:
    make(workspace.data / "snli-ve")
    with pytest.raises(NotFoundError, match=r"no split or test suite 'test-render'\. Did you mean 'test-rendering'"):
        open_task(workspace, "snli-ve").examples("test-render")


def test_vcr_and_vqa_entries(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    line = {
        "objects": ["person"],
        "img_fn": "a.png",
        "metadata_fn": "a.json",
        "question": ["Is", [0], "in", "?"],
        "answer_choices": [["a"], ["b"], ["c"], ["d"]],
        "answer_label": 0,
        "annot_id": "train-0",
    }
    (folder / "v.jsonl").write_text(json.dumps(line))
    (folder / "a.json").write_text(json.dumps({"boxes": [[0, 0, 5, 5, 1]], "width": 9, "height": 9}))
    (folder / "q.json").write_text(json.dumps([{"question_id": 1, "image_id": 2, "question": "Why?"}]))
    answers = [{"answer": "x"}] * 10
    (folder / "a2.json").write_text(json.dumps([{"question_id": 1, "answers": answers}]))
    vqa = {"format": "vqa", "questions": "q.json", "images": "i", "pattern": "{subset}_{id:03d}.png", "subset": "t"}
    manifest = {
        "schema": 1,
        "task": "vcr",
        "source": "vcr",
        "revision": "1",
        "splits": {
            "train": {"format": "vcr", "annotations": "v.jsonl", "images": "."},
            "test": vqa,
            "test-b": {**vqa, "annotations": "a2.json"},
            "test-c": {"format": "csv"},
            "test-d": {"format": "vcr", "images": "."},
        },
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    data = TaskData(folder)
    assert data.examples("train")[0].boxes == ((0, 0, 5, 5),)
    assert data.examples("test")[0].answers is None
    assert data.examples("test-b")[0].answers == {"x": 1.0}
    assert data.examples("test-b")[0].image.path == folder / "i" / "t_002.png"
    assert data.regions() is None
    with pytest.raises(DataError, match="test-c: unknown format 'csv'"):
        data.examples("test-c")
    with pytest.raises(DataError, match="test-d: the key 'annotations' is missing"):
        data.examples("test-d")


def test_regions_are_opened_once(tmp_path: Path) -> None:
    make(tmp_path / "d", regions={"format": "butd-hdf5", "path": "r.h5"})
    boxes, features = np.array([[0, 0, 5, 10.0]]), np.ones((1, 3))
    write_butd_hdf5(tmp_path / "d" / "r.h5", [("7", boxes, features, (10, 10))])
    data = TaskData(tmp_path / "d")
    reader = data.regions()
    assert reader is not None
    assert reader is data.regions()
    assert reader.get("7").boxes.tolist() == [[0, 0, 0.5, 1]]
    reader.close()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"schema": 2}, "schema 2, this version of madkit reads 1"),
        ({"revision": 3}, "the key 'revision' is missing or no string"),
        ({"task": "vcr"}, "describes the task 'vcr', not 'snli-ve'"),
        ({"splits": {}}, "'splits' must map names"),
        ({"splits": {"train": []}}, "'splits' must map names"),
        ({"regions": {"format": "x"}}, "'regions' needs"),
    ],
)
def test_a_broken_manifest_is_named(workspace: Workspace, change: dict[str, Any], problem: str) -> None:
    make(workspace.data / "snli-ve", **change)
    with pytest.raises(DataError, match=problem):
        open_task(workspace, "snli-ve")


def test_a_manifest_that_is_no_object(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(DataError, match="no JSON object"):
        TaskData(tmp_path)
