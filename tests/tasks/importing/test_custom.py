"""Users' own data from JSONL files; datasets' saved folders have a file of their own."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from madkit.core.errors import DataError, MadkitError, NotFoundError, UsageProblem
from madkit.core.workspace import Workspace
from madkit.tasks.data import TaskData
from madkit.tasks.importing import ImportOptions
from madkit.tasks.importing.run import import_data

N = 12


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.at(tmp_path / "workspace")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for n in range(N):
        (folder / f"{n}.jpg").touch()
    return folder


def row(n: int, **changes: Any) -> dict[str, Any]:
    made = {"id": n, "image": f"{n % N}.jpg", "sentence": f"Sentence {n}.", "label": ("yes", "no")[n % 2]}
    return {key: value for key, value in {**made, **changes}.items() if value is not ...}


def write(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def load(workspace: Workspace, path: Path, **options: Any) -> TaskData:
    data = import_data(workspace, "custom", path, ImportOptions(**{"kind": "classification", **options})).data
    assert data is not None
    return data


def test_one_file_says_line_by_line_what_belongs_where(workspace: Workspace, tmp_path: Path, images: Path) -> None:
    splits = ["train"] * 6 + ["val"] * 2 + ["test"] * 2 + ["test-hard", "submission"]
    rows = [row(n, split=split) for n, split in enumerate(splits)]
    rows[-1].pop("label")
    data = load(workspace, write(tmp_path / "My Task_1.jsonl", rows), images=images)
    assert (data.name, data.spec.name, data.source, data.spec.labels) == ("my-task-1",) * 3 + (("no", "yes"),)
    assert data.spec.chance == 50
    counts = {name: len(data.examples(name)) for name in ("train", "dev", "test", "test-hard", "submission")}
    assert counts == {"train": 6, "dev": 2, "test": 2, "test-hard": 1, "submission": 1}
    assert data.suites() == ["test", "test-hard"]
    assert data.submissions() == ["submission"]
    assert [example.label for example in data.examples("dev")] == [1, 0]
    assert data.examples("test")[0].image.path == images / "8.jpg"
    assert data.labelled("test")
    assert not data.labelled("submission")


def test_a_folder_has_a_file_for_each_split(workspace: Workspace, tmp_path: Path, images: Path) -> None:
    folder = tmp_path / "Birds"
    write(folder / "train.jsonl", [{"madkit": 1, "labels": ["yes", "no", "unsure"]}, *(row(n) for n in range(4))])
    write(folder / "validation.jsonl", [row(4)])
    write(folder / "test-far_away.jsonl", [row(5, id=0)])
    write(folder / "more.jsonl", [row(6)])
    data = load(workspace, folder, images=images)
    assert data.name == "birds"
    assert data.spec.labels == ("yes", "no", "unsure")
    assert [*data.splits(), *data.suites()] == ["train", "dev", "test-far-away"]
    assert data.manifest["notes"] == ["not read, because no split is called so: more.jsonl"]
    assert data.examples("test-far-away")[0].id == "0"


def test_train_alone_is_cut_by_image(workspace: Workspace, tmp_path: Path, images: Path) -> None:
    path = write(tmp_path / "mine.jsonl", [row(n) for n in range(3 * N)])
    data = load(workspace, path, images=images, dev_cut=0.25)
    train, dev = ({example.image.id for example in data.examples(name)} for name in ("train", "dev"))
    assert (len(train), len(dev), len(train & dev)) == (9, 3, 0)
    assert len(data.examples("dev")) == 9
    small = load(workspace, path, images=images, name="small", dev_cut=0.01)
    assert {example.image.id for example in small.examples("dev")} < dev  # one image at least, of the larger cut
    assert len(small.examples("dev")) == 3


def test_the_whole_of_train_with_test_as_dev(workspace: Workspace, tmp_path: Path, images: Path) -> None:
    rows = [row(n, split="train" if n % 2 else "test") for n in range(8)]
    rows = [{**one, "label": ("yes", "no")[n // 2 % 2]} for n, one in enumerate(rows)]
    data = load(workspace, write(tmp_path / "mine.jsonl", rows), images=images, dev_cut=0)
    assert [example.id for example in data.examples("dev")] == [example.id for example in data.examples("test")]
    assert "not held out" in data.manifest["notes"][-1]


def test_a_repeated_import_changes_nothing(workspace: Workspace, tmp_path: Path, images: Path) -> None:
    path = write(tmp_path / "mine.jsonl", [row(n) for n in range(8)])
    options = ImportOptions(kind="classification", images=images)
    first = import_data(workspace, "custom", path, options)
    assert not first.unchanged
    assert import_data(workspace, "custom", path, options).unchanged
    write(path, [row(n, sentence="Else.") for n in range(8)])
    other = import_data(workspace, "custom", path, options)
    assert not other.unchanged
    assert other.data.revision != first.data.revision


def test_images_beside_the_file_and_in_a_zip(workspace: Workspace, tmp_path: Path, images: Path) -> None:
    home = tmp_path / "home"
    path = write(home / "mine.jsonl", [row(n) for n in range(8)])
    images.rename(home / "images")
    assert load(workspace, path).examples("train")[0].image.path.parent == home / "images"
    packed = tmp_path / "pictures.zip"
    with zipfile.ZipFile(packed, "w") as file:
        for image in (home / "images").iterdir():
            file.write(image, image.name)
    data = load(workspace, path, name="zipped", images=packed)
    assert data.examples("train")[0].image.path.parent == packed
    assert data.revision != ""


def test_everything_in_one_zip(workspace: Workspace, tmp_path: Path, images: Path) -> None:
    packed = tmp_path / "own-set.zip"
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("set/train.jsonl", "".join(json.dumps(row(n)) + "\n" for n in range(6)))
        for n in range(6):
            file.writestr(f"set/images/{n}.jpg", b"")
    data = load(workspace, packed)
    assert data.name == "own-set"
    assert data.examples("train")[0].image.path.parent == packed / "set" / "images"


def test_lines_without_ids_are_called_after_their_place(workspace: Workspace, tmp_path: Path, images: Path) -> None:
    rows = [{"madkit": 1, "kind": "classification"}, *(row(n, id=...) for n in range(6))]
    made = import_data(workspace, "custom", write(tmp_path / "mine.jsonl", rows), ImportOptions(images=images))
    assert made.notes[0].startswith("6 lines have no id and are called line-N")
    ids = [example.id for name in ("train", "dev") for example in made.data.examples(name)]
    assert sorted(ids) == [f"line-{n}" for n in range(2, 8)]


def test_few_annotators_are_told_of(workspace: Workspace, tmp_path: Path, images: Path) -> None:
    rows = [row(n, label=..., answers=["a", "b"]) for n in range(4)]
    made = import_data(
        workspace, "custom", write(tmp_path / "mine.jsonl", rows), ImportOptions(kind="vqa", images=images)
    )
    assert "4 questions have fewer than four answers" in made.notes[0]
    assert made.data.examples("train")[0].answers == {"a": 0.5, "b": 0.5}


BAD: list[tuple[list[dict[str, Any]], dict[str, Any], str]] = [
    ([row(0), row(1), row(0)], {}, "line 3: 'id' '0' was used before, on line 1"),
    ([row(0), row(1, split="dev")], {}, "line 1: the key 'split' is missing, and .*line 2 has it"),
    ([row(0), row(1), row(2, image="99.jpg")], {}, "1 of . images are missing: .*99.jpg"),
    ([row(0, split="train"), row(1, split="train"), row(2, split="dev", label="yess")], {},
     r"line 3: 'label' 'yess' of the split dev does not occur in train. Did you mean 'yes'\?$"),
    ([row(0), row(2)], {}, "needs two classes, and all lines have the label 'yes'"),
    ([row(0), row(1, image="0.jpg")], {}, "train has one image, so no development split can be cut"),
    ([row(0), row(1)], {"dev_cut": 0}, "Without a split dev in the files, nothing is left"),
    ([row(0), row(1)], {"kind": None}, "The kind of the task is not known"),
    ([row(0), row(1)], {"kind": "clasification"}, r"Did you mean 'classification'\?"),
    ([{"madkit": 1, "kind": "vqa"}, row(0)], {}, "header says that the task is vqa, not classification"),
    ([row(0), row(1)], {"name": "My Task"}, "The name 'My Task' is not made of small letters"),
    ([row(0), row(1)], {"name": "vqa"}, "The name 'vqa' is taken"),
    ([row(0), row(1)], {"name": "mini-birds"}, "The name 'mini-birds' is taken"),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "options", "problem"), BAD)
def test_nothing_is_imported_by_halves(
    workspace: Workspace, tmp_path: Path, images: Path, rows: list[Any], options: dict[str, Any], problem: str
) -> None:
    path = write(tmp_path / "mine.jsonl", rows)
    with pytest.raises(MadkitError, match=problem) as caught:
        load(workspace, path, **{"images": images, **options})
    assert caught.value.hint
    left = [file for file in workspace.data.rglob("*") if file.is_file()] if workspace.data.exists() else []
    assert left == []


def test_missing_images_can_be_left_out(workspace: Workspace, tmp_path: Path, images: Path) -> None:
    path = write(tmp_path / "mine.jsonl", [row(n) for n in range(N)])
    (images / "3.jpg").unlink()
    data = load(workspace, path, images=images, allow_missing=True, dev_cut=0.2)
    assert sum(len(data.examples(name)) for name in ("train", "dev")) == N - 1


@pytest.mark.parametrize(
    ("names", "error", "problem"),
    [
        ([], NotFoundError, "neither a JSONL file nor a saved Hugging Face dataset"),
        (["a.jsonl", "b.jsonl"], UsageProblem, "2 JSONL files, none named like a split: a.jsonl, b.jsonl"),
        (["dev.jsonl", "val.jsonl"], UsageProblem, "are both the split dev"),
    ],
)
def test_folders_without_a_plan(
    workspace: Workspace, tmp_path: Path, names: list[str], error: type[MadkitError], problem: str
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in names:
        write(folder / name, [row(0)])
    with pytest.raises(error, match=problem):
        load(workspace, folder)


def test_headers_that_differ(workspace: Workspace, tmp_path: Path) -> None:
    write(tmp_path / "set" / "train.jsonl", [{"madkit": 1, "labels": ["yes", "no"]}, row(0)])
    write(tmp_path / "set" / "test.jsonl", [{"madkit": 1, "labels": ["no", "yes"]}, row(1)])
    with pytest.raises(DataError, match="'labels' of the header differs from that in"):
        load(workspace, tmp_path / "set")


def test_a_lone_train_file_is_called_after_its_folder(workspace: Workspace, tmp_path: Path, images: Path) -> None:
    path = write(tmp_path / "birds" / "train.jsonl", [row(n) for n in range(6)])
    assert load(workspace, path, images=images).name == "birds"
