from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from madkit.core.errors import DataError, NotFoundError, UsageProblem
from madkit.core.workspace import Workspace
from madkit.regions import write_butd_hdf5
from madkit.tasks.data import TaskData, datasets_to_extract, find_dataset, open_task
from madkit.tasks.example import Example, ImageRef, Segment
from madkit.tasks.importing.plan import ImportPlan, SplitPlan
from madkit.tasks.importing.write import write_dataset
from madkit.tasks.spec import custom_spec
from madkit.tasks.suites import finished_suite, write_suite


def example(identity: str, image: str = "7", label: int | None = 2) -> Example:
    ref = ImageRef(image, Path("img") / f"{image}.png")
    return Example(identity, "snli-ve", identity, ref, (Segment("A dog."),), label=label)


def make(folder: Path, source: str = "snli-ve", task: str = "snli-ve", **more: Any) -> None:
    """A tiny SNLI-VE data set with one shifted suite and one official test set."""
    folder.mkdir(parents=True)

    def split(name: str) -> SplitPlan:
        rows = [
            replace(
                example(f"{name}{i}", label=None if name == "submission" else 2),
                image=ImageRef("7", folder / "img/7.png"),
            )
            for i in range(3)
        ]
        return SplitPlan(name, name, lambda _: iter(rows), (), labelled=name != "submission")

    names = ("test-rendering", "dev", "test", "train", "submission")
    plan = ImportPlan(task, source, source, [split(name) for name in names], folder)
    write_dataset(folder, plan, check_images=False, revision="0" * 16)
    manifest = json.loads((folder / "manifest.json").read_text()) | more
    (folder / "manifest.json").write_text(json.dumps(manifest))


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


def test_imported_data_comes_first(workspace: Workspace, built: list[Any]) -> None:
    make(workspace.data / "snli-ve")
    data = open_task(workspace, "snli-ve")
    assert (data.source, data.is_mini, data.spec.name, data.revision) == ("snli-ve", False, "snli-ve", "0" * 16)
    assert data.splits() == ["train", "dev", "test"]
    assert data.suites() == ["test", "test-rendering"]
    examples = data.examples("test-rendering")
    assert [e.id for e in examples] == ["test-rendering0", "test-rendering1", "test-rendering2"]
    assert examples[0].image.path == data.root / "img" / "7.png"
    assert data.examples("test-rendering") is examples
    assert data.submissions() == ["submission"]
    assert (data.labelled("test"), data.labelled("submission")) == (True, False)
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
    with pytest.raises(UsageProblem, match=r"no split or test suite 'test-render'\. Did you mean 'test-rendering'"):
        open_task(workspace, "snli-ve").examples("test-render")


def test_a_moved_workspace_finds_its_images(workspace: Workspace, tmp_path: Path) -> None:
    make(workspace.data / "snli-ve")
    workspace.root.rename(tmp_path / "elsewhere")
    data = open_task(Workspace.at(tmp_path / "elsewhere"), "snli-ve")
    assert data.examples("train")[0].image.path == tmp_path / "elsewhere" / "data" / "snli-ve" / "img" / "7.png"


def test_an_own_task_is_known_by_its_folder(workspace: Workspace) -> None:
    spec = custom_spec("birds", "classification", labels=("duck", "owl"))
    make(workspace.data / "birds", "birds", "birds", spec=spec.to_dict())
    data = open_task(workspace, "birds")
    assert data.spec == spec
    assert data.spec.chance == 50
    with pytest.raises(UsageProblem, match="Did you mean 'birds'"):
        open_task(workspace, "bird")


def test_an_added_suite_changes_no_revision(workspace: Workspace) -> None:
    make(workspace.data / "snli-ve")
    data = open_task(workspace, "snli-ve")
    rows = [example("a"), example("b")]
    made_by = {"rule": "x", "seed": 0}
    assert finished_suite(data, "test-hard", made_by) is None
    home = write_suite(data, "test-hard", rows, made_by=made_by, about="the hard ones")
    again = open_task(workspace, "snli-ve")
    assert again.revision == data.revision
    assert again.suites() == ["test", "test-rendering", "test-hard"]
    assert again.own_splits() == ["train", "dev", "test", "test-rendering"]
    assert [one.id for one in again.examples("test-hard")] == ["a", "b"]
    assert again.suite_revision("test-hard") != again.revision == again.suite_revision("test")
    assert finished_suite(again, "test-hard", made_by) == home
    assert finished_suite(again, "test-hard", made_by | {"seed": 1}) is None
    first = again.suite_revision("test-hard")
    write_suite(again, "test-hard", rows[:1], made_by=made_by, about="the hard ones")
    assert open_task(workspace, "snli-ve").suite_revision("test-hard") != first


def test_a_suite_of_an_older_revision_is_not_offered(workspace: Workspace) -> None:
    make(workspace.data / "snli-ve")
    data = open_task(workspace, "snli-ve")
    write_suite(data, "test-hard", [example("a")], made_by={}, about="")
    manifest = json.loads((data.root / "manifest.json").read_text()) | {"revision": "1" * 16}
    (data.root / "manifest.json").write_text(json.dumps(manifest))
    assert "test-hard" not in open_task(workspace, "snli-ve").suites()


@pytest.mark.parametrize("name", ["hard", "test", "test-rendering"])
def test_names_that_no_added_suite_can_have(workspace: Workspace, name: str) -> None:
    make(workspace.data / "snli-ve")
    with pytest.raises(UsageProblem, match="cannot be named"):
        write_suite(open_task(workspace, "snli-ve"), name, [example("a")], made_by={}, about="")


def test_an_empty_suite_leaves_nothing(workspace: Workspace) -> None:
    make(workspace.data / "snli-ve")
    data = open_task(workspace, "snli-ve")
    with pytest.raises(DataError, match="would have no examples"):
        write_suite(data, "test-hard", [], made_by={}, about="")
    assert list((data.root / "suites").iterdir()) == []


def test_commands_without_a_task_mean_what_was_imported(workspace: Workspace) -> None:
    assert datasets_to_extract(workspace) == ["vcr", "snli-ve", "vqa"]
    make(workspace.data / "snli-ve")
    assert datasets_to_extract(workspace) == ["snli-ve"]
    assert datasets_to_extract(workspace, ["vqa-v2", "vqa"]) == ["vqa"]
    with pytest.raises(UsageProblem):
        datasets_to_extract(workspace, ["vqq"])
    found = find_dataset(workspace, "snli-ve", "0" * 16)
    assert found is not None
    assert found.name == "snli-ve"
    assert find_dataset(workspace, "snli-ve", "1" * 16) is None


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
        ({"schema": 1}, "schema 1, this version of madkit reads 2"),
        ({"revision": 3}, "the key 'revision' is missing or no string"),
        ({"task": "vcr"}, "describes the task 'vcr', not 'snli-ve'"),
        ({"splits": {}}, "'splits' must map names"),
        ({"splits": {"train": []}}, "'splits' must map names"),
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


def test_data_without_a_train_split_says_so(tmp_path: Path) -> None:
    make(tmp_path / "snli-ve")
    manifest = json.loads((tmp_path / "snli-ve" / "manifest.json").read_text())
    manifest["splits"] = {"test": manifest["splits"]["test"]}
    (tmp_path / "snli-ve" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageProblem, match=r"snli-ve has no train split\.") as caught:
        TaskData(tmp_path / "snli-ve").examples("train")
    assert (caught.value.hint or "").endswith("answered are: test")
