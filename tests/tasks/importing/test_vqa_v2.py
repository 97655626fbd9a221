"""Import of VQA v2 from the owners' layouts: zips or not, some of the files, LXMERT's lists, broken files."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from madkit.bench.vqa_files import write_vqa_files
from madkit.core.errors import DataError, NotFoundError, UsageProblem
from madkit.core.workspace import Workspace
from madkit.tasks.answer_vocabulary import answer_vocabulary
from madkit.tasks.data import TaskData
from madkit.tasks.formats.vqa import read_vqa
from madkit.tasks.importing import FoundFiles, ImportOptions
from madkit.tasks.importing.run import import_data
from madkit.tasks.importing.vqa_v2 import plan

SHARED = Path(__file__).parents[4] / "shared" / "data" / "vqa_v2"
N = 300


def make_images(root: Path, subset: str, questions: Path) -> None:
    for row in json.loads(questions.read_text())["questions"]:
        (root / subset / f"COCO_{subset}_{row['image_id']:012d}.jpg").touch()


def write_test2015(root: Path, name: str, ids: range, *, images: bool = True) -> None:
    rows = [{"image_id": 7, "question": "Who?", "question_id": 7000 + number} for number in ids]
    path = root / f"v2_OpenEnded_mscoco_{name}_questions.json"
    path.write_text(json.dumps({"data_subtype": name, "questions": rows}))
    if images:
        (root / "test2015").mkdir(exist_ok=True)
        (root / "test2015" / "COCO_test2015_000000000007.jpg").touch()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    root = tmp_path / "vqa"
    paths = write_vqa_files(root, N, seed=1)
    for subset in ("train2014", "val2014"):
        (root / subset).mkdir()
        make_images(root, subset, paths[f"{subset}_questions"])
    return root


def imported(tmp_path: Path, root: Path, **options: Any) -> TaskData:
    data = import_data(Workspace(tmp_path / "ws"), "vqa-v2", root, ImportOptions(**options)).data
    assert data is not None
    return data


def test_the_whole_data_set(tmp_path: Path, files: Path) -> None:
    write_test2015(files, "test2015", range(4))
    write_test2015(files, "test-dev2015", range(2))
    data = imported(tmp_path, files, dev_cut=0.2)
    assert data.spec.name == "vqa"
    entries = data.manifest["splits"]
    assert list(entries) == ["train", "dev", "test", "submission", "submission-dev"]
    assert [data.labelled(name) for name in entries] == [True, True, True, False, False]
    train, dev, test = (list(data.examples(name)) for name in ("train", "dev", "test"))
    assert dev
    assert not {e.image.id for e in train} & {e.image.id for e in dev}
    direct = {
        subset: read_vqa(
            files / f"v2_OpenEnded_mscoco_{subset}_questions.json",
            files / f"v2_mscoco_{subset}_annotations.json",
            files / subset,
        )
        for subset in ("train2014", "val2014")
    }
    assert test == direct["val2014"]
    assert sorted(train + dev, key=lambda e: int(e.id)) == sorted(direct["train2014"], key=lambda e: int(e.id))
    submission = data.examples("submission-dev")[0]
    assert (submission.answers, submission.image.path.parent) == (None, files / "test2015")
    assert any(
        "train2014_questions.json has 202 questions; VQA v2's train2014 has 443,757" in n
        for n in data.manifest["notes"]
    )
    assert answer_vocabulary(iter(train), min_questions=5, order="frequency")[0] in ("yes", "no")


def test_the_owners_zips_give_the_same_data(tmp_path: Path, files: Path) -> None:
    plain = imported(tmp_path, files)
    zips = tmp_path / "zips"
    zips.mkdir()
    for subset, part in (("train2014", "Train"), ("val2014", "Val")):
        for kind, name in (
            ("Questions", f"v2_OpenEnded_mscoco_{subset}_questions.json"),
            ("Annotations", f"v2_mscoco_{subset}_annotations.json"),
        ):
            with zipfile.ZipFile(zips / f"v2_{kind}_{part}_mscoco.zip", "w", zipfile.ZIP_DEFLATED) as archive:
                archive.write(files / name, name)
        with zipfile.ZipFile(zips / f"{subset}.zip", "w") as archive:
            for image in sorted((files / subset).iterdir()):
                archive.write(image, f"{subset}/{image.name}")
    data = imported(tmp_path / "other", zips)
    assert data.revision == plain.revision
    image = data.examples("test")[0].image.path
    assert image.parent == zips / "val2014.zip" / "val2014"
    # an unpacked copy beside the zip is no second file
    shutil.copy(files / "v2_OpenEnded_mscoco_val2014_questions.json", zips)
    assert imported(tmp_path / "third", zips).revision == plain.revision


def test_images_elsewhere_and_in_one_folder(tmp_path: Path, files: Path) -> None:
    together = tmp_path / "coco"
    together.mkdir()
    for subset in ("train2014", "val2014"):
        for image in (files / subset).iterdir():
            image.rename(together / image.name)
    data = imported(tmp_path, files, images=together)
    assert {e.image.path.parent for name in data.splits() for e in data.examples(name)} == {together}


def test_one_labelled_split_will_do(tmp_path: Path, files: Path) -> None:
    for path in [*files.glob("*val2014*.json")]:
        path.unlink()
    data = imported(tmp_path, files)
    assert data.splits() == ["train", "dev"]
    assert "val2014 is not there, so there is no split 'test'." in data.manifest["notes"]


def test_a_test_set_without_images_is_left_out(tmp_path: Path, files: Path) -> None:
    write_test2015(files, "test2015", range(4), images=False)
    data = imported(tmp_path, files)
    assert "submission" not in data.manifest["splits"]
    assert "The images of test2015 are not there, so there is no split 'submission'." in data.manifest["notes"]


def test_without_images_at_hand(tmp_path: Path, files: Path) -> None:
    write_test2015(files, "test2015", range(4), images=False)
    for subset in ("train2014", "val2014"):
        shutil.rmtree(files / subset)
    data = imported(tmp_path, files, without_images=True)
    assert list(data.manifest["splits"]) == ["train", "dev", "test", "submission"]


def test_files_named_as_before_version_2(tmp_path: Path, files: Path) -> None:
    for path in files.glob("v2_*.json"):
        path.rename(files / path.name.removeprefix("v2_"))
    assert imported(tmp_path, files).splits() == ["train", "dev", "test"]


@pytest.mark.parametrize(
    ("gone", "error", "problem"),
    [
        (
            "v2_mscoco_train*",
            NotFoundError,
            r"v2_OpenEnded_mscoco_train2014_questions.json needs v2_mscoco_train2014_ann",
        ),
        (
            "v2_OpenEnded_mscoco_val*",
            NotFoundError,
            r"v2_mscoco_val2014_annotations.json needs v2_OpenEnded_mscoco_val",
        ),
        ("*.json", NotFoundError, "no labelled questions of VQA v2 below"),
        ("val2014/*", NotFoundError, r"holds the image COCO_val2014_0+\d+\.jpg"),
    ],
)
def test_missing_files_are_named(tmp_path: Path, files: Path, gone: str, error: type[Exception], problem: str) -> None:
    for path in list(files.glob(gone)):
        path.unlink()
    with pytest.raises(error, match=problem) as caught:
        imported(tmp_path, files)
    assert caught.value.hint
    assert not (tmp_path / "ws" / "data" / "vqa").exists()


def test_missing_images_are_counted_and_may_be_left_out(tmp_path: Path, files: Path) -> None:
    gone = sorted((files / "val2014").iterdir())[:7]
    for path in gone:
        path.unlink()
    with pytest.raises(DataError, match=r"7 of \d+ images are missing: .*COCO_val2014.*, \.\.\.") as caught:
        imported(tmp_path, files)
    assert "--allow-missing" in str(caught.value.hint)
    data = imported(tmp_path, files, allow_missing=True)
    assert {path.name for path in gone}.isdisjoint(e.image.path.name for e in data.examples("test"))


def test_a_truncated_file_leaves_nothing_behind(tmp_path: Path, files: Path) -> None:
    path = files / "v2_mscoco_val2014_annotations.json"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"val2014_annotations\.json, line 1, annotations\[97\]: .*truncated"):
        imported(tmp_path, files)
    assert not [p for p in (tmp_path / "ws" / "data").iterdir() if p.name != ".vqa.lock"]


def test_two_files_of_one_name(tmp_path: Path, files: Path) -> None:
    (files / "copy").mkdir()
    shutil.copy(files / "v2_mscoco_val2014_annotations.json", files / "copy")
    with pytest.raises(UsageProblem, match="2 files that could be the annotations of val2014"):
        imported(tmp_path, files)


# -- LXMERT's lists -------------------------------------------------------------------------------------------------


def lxmert(root: Path) -> Path:
    root.mkdir()
    parts = {"train": "train2014", "nominival": "val2014", "minival": "val2014", "test": "test2015"}
    for number, (name, part) in enumerate(parts.items(), 1):
        rows = []
        for image in range(number * 100, number * 100 + 10):
            img_id = f"COCO_{part}_{image:012d}"
            (root / part).mkdir(exist_ok=True)
            (root / part / f"{img_id}.jpg").touch()
            row = {"img_id": img_id, "question_id": image * 1000, "sent": "Is it?"}
            rows.append(row if name == "test" else row | {"label": {"yes": 1.0, "no": 0.3}, "answer_type": "yes/no"})
        (root / f"{name}.json").write_text(json.dumps(rows))
    return root


def test_lxmerts_lists(tmp_path: Path) -> None:
    root = lxmert(tmp_path / "lxmert")
    data = imported(tmp_path, root, dev_cut=0.3)
    entries = data.manifest["splits"]
    assert {name: entry["examples"] for name, entry in entries.items() if name in ("test", "submission")} == {
        "test": 20,
        "submission": 10,
    }
    assert entries["train"]["examples"] + entries["dev"]["examples"] == 10
    assert entries["test"]["official"] == "nominival + minival"
    example = data.examples("test")[0]
    assert (example.id, example.image.id, example.answers) == ("200000", "200", {"yes": 1.0, "no": 0.3})
    assert any("not the official evaluation" in note for note in data.manifest["notes"])


def test_a_question_in_both_halves_of_val2014_is_refused(tmp_path: Path) -> None:
    root = lxmert(tmp_path / "lxmert")
    shutil.copy(root / "nominival.json", root / "minival.json")
    with pytest.raises(DataError, match=r"minival\.json: 'question_id' 200000 stands in nominival\.json too"):
        imported(tmp_path, root, dev_cut=0.3)


def test_lists_of_the_same_names_but_other_content_are_none(tmp_path: Path) -> None:
    root = lxmert(tmp_path / "lxmert")
    (root / "train.json").write_text('{"questions": 3}')
    (root / "minival.json").unlink()
    made = plan(FoundFiles(root), ImportOptions())
    assert [split.name for split in made.splits] == ["test", "submission"]
    assert "minival.json is not there, so 'test' is a part of val2014." in made.notes
    (root / "nominival.json").write_text("[]")
    with pytest.raises(NotFoundError, match="no labelled questions"):
        plan(FoundFiles(root), ImportOptions())


@pytest.mark.skipif(not SHARED.is_dir(), reason="the sample of real VQA questions is not here")
def test_real_questions(tmp_path: Path) -> None:
    root = tmp_path / "real"
    root.mkdir()
    shutil.copy(SHARED / "questions.json", root / "v2_OpenEnded_mscoco_train2014_questions.json")
    shutil.copy(SHARED / "annotations.json", root / "v2_mscoco_train2014_annotations.json")
    data = imported(tmp_path, root, images=SHARED, dev_cut=0)
    assert [e.id for e in data.examples("train")] == ["458752000", "458752001", "458752002"]
    assert data.examples("train")[0].image.path == SHARED / "COCO_train2014_000000458752.jpg"
