"""Folders that `datasets` itself has saved, against what `datasets` itself reads from them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from madkit.core.errors import DataError, MadkitError, NotFoundError
from madkit.core.workspace import Workspace
from madkit.tasks.importing import ImportOptions
from madkit.tasks.importing.run import Imported, import_data

datasets.disable_progress_bars()


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.at(tmp_path / "workspace")


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def load(workspace: Workspace, path: Path, kind: str = "classification", **options: Any) -> Imported:
    return import_data(workspace, "custom", path, ImportOptions(kind=kind, **options))


def rows(n: int, start: int = 0, **more: Any) -> list[dict[str, Any]]:
    return [
        {"image": {"bytes": png(i), "path": f"{i}.png"}, "sentence": f"It is {i}.", "label": i % 2, **more}
        for i in range(start, start + n)
    ]


def features(**more: Any) -> Any:
    value = datasets.Value
    return datasets.Features(
        {
            "image": datasets.Image(),
            "sentence": value("string"),
            "label": datasets.ClassLabel(names=["odd", "even"]),
            **{name: value(kind) for name, kind in more.items()},
        }
    )


def saved(path: Path, **splits: list[dict[str, Any]]) -> Path:
    made = {name: datasets.Dataset.from_list(part, features=features()) for name, part in splits.items()}
    datasets.DatasetDict(made).save_to_disk(path)
    return path


def test_splits_classes_and_images(workspace: Workspace, tmp_path: Path) -> None:
    path = saved(tmp_path / "Odd_Even", train=rows(6), validation=rows(2, 6), test=rows(3, 8))
    data = load(workspace, path).data
    assert (data.name, data.spec.labels) == ("odd-even", ("odd", "even"))
    theirs = datasets.load_from_disk(path)
    for ours, name in (("train", "train"), ("dev", "validation"), ("test", "test")):
        examples = data.examples(ours)
        assert len(examples) == len(theirs[name])
        for example, wanted in zip(examples, theirs[name], strict=True):
            assert example.context[0].text == wanted["sentence"]
            assert example.label == wanted["label"]
            assert example.image.path.parent == data.root / "images"
            with Image.open(example.image.path) as image:
                assert image.tobytes() == wanted["image"].tobytes()
    assert [example.id for example in data.examples("dev")] == ["row-0", "row-1"]
    assert load(workspace, path).unchanged
    assert sorted(file.name for file in (data.root / "images").iterdir()) == sorted(f"{n}.png" for n in range(11))


def test_a_dataset_of_several_files_and_its_own_keys(workspace: Workspace, tmp_path: Path) -> None:
    value, many = datasets.Value, 7
    table = datasets.Dataset.from_list(
        [
            {
                "id": n, "split": "train" if n < 5 else "test", "image": {"bytes": png(n), "path": None},
                "question": f"What is [it](1), {n}?", "answers": ["yes", "no", "no", "no"],
                "boxes": [[0.0, 0.0, 2.0, 2.0]], "width": 4, "height": 3, "answer_type": None, "source": "web",
            }
            for n in range(many)
        ],
        features=datasets.Features(
            {
                "id": value("int32"), "split": value("string"), "image": datasets.Image(), "question": value("string"),
                "answers": datasets.Sequence(value("string")),
                "boxes": datasets.Sequence(datasets.Sequence(value("float32"))),
                "width": value("int64"), "height": value("int64"), "answer_type": value("string"),
                "source": value("string"),
            }
        ),
    )  # fmt: skip
    path = tmp_path / "seven"
    table.save_to_disk(path, num_shards=3)
    made = load(workspace, path, "vqa", dev_cut=0.2)
    data = made.data
    assert made.notes == ("columns that are not read: source",)
    assert {name: len(data.examples(name)) for name in data.splits()} == {"train": 4, "dev": 1, "test": 2}
    example = data.examples("test")[1]
    assert (example.id, example.context[0].text, example.boxes) == ("6", "What is it, 6?", ((0.0, 0.0, 2.0, 2.0),))
    assert example.annotations == ("yes", "no", "no", "no")
    assert example.context[0].tags[0].boxes == (0,)
    with Image.open(example.image.path) as image:
        assert image.getpixel((0, 0)) == (6, 0, 0)


def test_equal_images_are_one_and_equal_names_are_not(workspace: Workspace, tmp_path: Path) -> None:
    train = rows(3) + rows(3)
    for n, one in enumerate(train):
        one["image"] = {"bytes": png(n % 3), "path": "photo.png"}
    train += [{**one, "image": {"bytes": one["image"]["bytes"], "path": None}} for one in train[:1]]
    data = load(workspace, saved(tmp_path / "same", train=train, test=rows(1))).data
    names = sorted(file.name for file in (data.root / "images").iterdir())
    assert len(names) == 5  # three photos, one without a name, and 0.png of the test split
    assert "photo.png" in names
    assert sum(name.startswith("photo-") for name in names) == 2
    ids = [e.image.id for name in ("train", "dev") for e in data.examples(name)]
    assert len(ids) == 7
    assert len(set(ids)) == 4


def test_images_by_name_stay_where_they_are(workspace: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(4):
        (folder / f"{n}.png").write_bytes(png(n))
    plain = [{"image": f"{n}.png", "text": "What?", "choices": ["a", "b"], "label": "ab"[n % 2]} for n in range(4)]
    datasets.Dataset.from_list(plain).save_to_disk(tmp_path / "named")
    data = load(workspace, tmp_path / "named", "multiple-choice", images=folder).data
    assert data.examples("train")[0].image.path.parent == folder
    assert data.examples("train")[0].label in (0, 1)
    assert not (data.root / "images").exists()
    # bytes and a file of that name: the file is taken, and nothing is copied
    data = load(workspace, saved(tmp_path / "both", train=rows(4)), images=folder).data
    assert data.examples("train")[0].image.path.parent == folder
    assert not (data.root / "images").exists()


def test_hidden_labels_make_a_submission(workspace: Workspace, tmp_path: Path) -> None:
    made = load(workspace, saved(tmp_path / "hidden", train=rows(4), test=[{**r, "label": -1} for r in rows(2)]))
    assert made.notes[0] == "no row of test has a 'label', so it is the split submission"
    assert [example.label for example in made.data.examples("submission")] == [None, None]


def test_answers_as_structs_of_lists(workspace: Workspace, tmp_path: Path) -> None:
    value = datasets.Value
    table = datasets.Dataset.from_list(
        [
            {"image": {"bytes": png(n), "path": None}, "question": "?", "answers": {"answer": ["a"] * 4}}
            for n in range(3)
        ],
        features=datasets.Features(
            {
                "image": datasets.Image(),
                "question": value("string"),
                "answers": {"answer": datasets.Sequence(value("string"))},
            }
        ),
    )
    table.save_to_disk(tmp_path / "structs")
    assert load(workspace, tmp_path / "structs", "vqa").data.examples("train")[0].annotations == ("a",) * 4


def change_state(path: Path, **changes: Any) -> None:
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, **changes}))


def test_damage_and_what_is_missing(workspace: Workspace, tmp_path: Path) -> None:
    path = saved(tmp_path / "one", train=rows(4))
    (data,) = (path / "train").glob("*.arrow")
    content = data.read_bytes()
    data.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="is damaged"):
        load(workspace, path)
    data.unlink()
    with pytest.raises(NotFoundError, match="does not exist, which"):
        load(workspace, path)
    data.write_bytes(content)
    change_state(path / "train", _indices_data_files=[{"filename": "indices.arrow"}])
    with pytest.raises(DataError, match="order of its rows") as caught:
        load(workspace, path)
    assert "flatten_indices" in caught.value.hint
    assert not any(file.is_file() for file in workspace.data.rglob("*"))


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"picture": "a.png", "text": "?", "label": "a"}, "has no column image; its columns are picture, text, label"),
        ({"image": "a.png", "caption": "?", "label": "a"}, "has no column text, question, sentence or context"),
        ({"image": 3, "text": "?", "label": "a"}, "the column image holds int64, neither images nor file names"),
        ({"image": {"bytes": b"GARBAGE", "path": None}, "text": "?", "label": "a"}, "row 0: 'image' holds bytes that"),
        ({"image": "a.png", "text": "?", "label": 1}, "row 0: 'label' is the number 1, and nothing says which"),
        ({"image": "a.png", "text": "?", "label": None}, "row 0: the key 'label' is missing"),
    ],
)
def test_wrong_columns(workspace: Workspace, tmp_path: Path, row: dict[str, Any], problem: str) -> None:
    datasets.Dataset.from_list([row]).save_to_disk(tmp_path / "wrong")
    with pytest.raises(MadkitError, match=problem) as caught:
        load(workspace, tmp_path / "wrong")
    assert caught.value.hint


def test_splits_that_madkit_has_not(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no split 'unsupervised'"):
        load(workspace, saved(tmp_path / "odd", train=rows(2), unsupervised=rows(1)))
    with pytest.raises(DataError, match="'val' is a second split dev"):
        load(workspace, saved(tmp_path / "two", validation=rows(2), val=rows(1)))
