"""VCR and GD-VCR from their owners' files, zipped or not."""

from __future__ import annotations

import copy
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from madkit.core.errors import DataError, MadkitError, NotFoundError, UsageProblem
from madkit.core.workspace import Workspace
from madkit.tasks.data import TaskData
from madkit.tasks.importing import FoundFiles, ImportOptions
from madkit.tasks.importing.run import Imported, import_data
from madkit.tasks.importing.vcr import plan

GD_VCR = Path(__file__).parents[4] / "shared" / "data" / "vcr" / "gd_vcr_addition.jsonl"
OPTIONS = ImportOptions(dev_cut=0.3)


def line(official: str, number: int, **changes: Any) -> dict[str, Any]:
    row = {
        "movie": "1_A",
        "objects": ["person", "diningtable"],
        "img_fn": f"lsmdc_1_A/{official}{number // 2}.jpg",
        "metadata_fn": f"lsmdc_1_A/{official}{number // 2}.json",
        "question": ["Is", [0], "at", [1], "?"],
        "answer_choices": [["Yes", str(number)], ["No"], [[0]], [[1], "is"]],
        "answer_label": number % 4,
        "rationale_choices": [["a"], ["b", [1]], ["c"], ["d"]],
        "rationale_label": 3 - number % 4,
        "annot_id": f"{official}-{number}",
    }
    if official == "test":
        del row["answer_label"], row["rationale_label"]
    return row | changes


META = {"boxes": [[1, 2, 30, 40, 0.9], [0, 0, 50, 50, 1]], "segms": [[[[1, 2]]]], "width": 60, "height": 50}


def vcr(folder: Path, counts: dict[str, int] | None = None) -> dict[str, list[dict[str, Any]]]:
    counts = counts or {"train": 40, "val": 6, "test": 3}
    return {official: [line(official, number) for number in range(count)] for official, count in counts.items()}


def write(folder: Path, splits: dict[str, list[dict[str, Any]]], *, zipped: bool, meta: Any = META) -> Path:
    """The owners' two archives, or what is in them, in folders as people keep them."""
    contents: dict[str, dict[str, str]] = {"vcr1annots": {}, "vcr1images": {}}
    for official, rows in splits.items():
        contents["vcr1annots"][f"{official}.jsonl"] = "".join(json.dumps(row) + "\n" for row in rows)
        for row in rows:
            contents["vcr1images"][row["metadata_fn"]] = json.dumps(meta)
            contents["vcr1images"][row["img_fn"]] = ""
    folder.mkdir(parents=True, exist_ok=True)
    for name, files in contents.items():
        if zipped:
            with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
                for file, text in files.items():
                    archive.writestr(file if name == "vcr1annots" else f"vcr1images/{file}", text)
        else:
            for file, text in files.items():
                path = folder / name / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
    return folder


def imported(tmp_path: Path, folder: Path, name: str = "vcr", options: ImportOptions = OPTIONS) -> Imported:
    return import_data(Workspace(tmp_path / "workspace"), name, folder, options)


@pytest.mark.parametrize("zipped", [True, False])
def test_splits(tmp_path: Path, zipped: bool) -> None:
    data = imported(tmp_path, write(tmp_path / "files", vcr(tmp_path), zipped=zipped)).data
    assert data is not None
    assert (data.splits(), data.suites(), data.submissions()) == (["train", "dev", "test"], ["test"], ["submission"])
    test = data.examples("test")
    assert [e.id for e in test[:2]] == ["val-0/answer", "val-0/rationale"]
    assert test[0].candidates[0].text == "Yes 0"
    assert test[0].boxes == ((1.0, 2.0, 30.0, 40.0), (0.0, 0.0, 50.0, 50.0))
    cut, rest = ({e.image.id for e in data.examples(split)} for split in ("dev", "train"))
    assert cut
    assert rest
    assert not cut & rest
    assert len(data.examples("dev")) + len(data.examples("train")) == 80
    submission = data.examples("submission")
    assert [e.id for e in submission[:5]] == ["test-0/answer", *(f"test-0/rationale-a{i}" for i in range(4))]
    assert {e.label for e in submission} == {None}
    assert not data.labelled("submission")
    assert str(test[0].image.path).endswith(
        "vcr1images.zip/vcr1images/lsmdc_1_A/val0.jpg" if zipped else "vcr1images/lsmdc_1_A/val0.jpg"
    )


def test_zipped_or_not_is_the_same_data(tmp_path: Path) -> None:
    revisions = set()
    for zipped in (True, False):
        folder = write(tmp_path / str(zipped), vcr(tmp_path), zipped=zipped)
        data = imported(tmp_path / str(zipped), folder).data
        assert data is not None
        revisions.add(data.revision)
    assert len(revisions) == 1


def test_annotations_and_images_in_different_places(tmp_path: Path) -> None:
    folder = write(tmp_path / "all", vcr(tmp_path, {"val": 6}), zipped=False)
    options = ImportOptions(images=folder / "vcr1images")
    data = imported(tmp_path, folder / "vcr1annots", options=options).data
    assert data is not None
    assert data.splits() == ["test"]
    assert "train.jsonl is not there, so there is no split 'train'." in data.manifest["notes"]
    with pytest.raises(NotFoundError, match=r"holds the file lsmdc_1_A/val0\.json") as caught:
        imported(tmp_path, folder / "vcr1annots")
    assert "--images" in str(caught.value.hint)


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match="no annotations of VCR below") as caught:
        imported(tmp_path, tmp_path / "empty")
    assert "vcr1annots.zip" in str(caught.value.hint)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def latin(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"Is"', b'"Is\xe9"'))


def swap(path: Path) -> None:
    path.write_text(json.dumps({**META, "boxes": [[0, 0, 5, 5], [0, 0, 45, 58]], "width": 60, "height": 50}))


def outside(path: Path) -> None:
    path.write_text(json.dumps({**META, "boxes": [[0, 0, 5, 5], [0, 0, 700, 50]]}))


def nan(path: Path) -> None:
    path.write_text(json.dumps({**META, "boxes": [[0, 0, 5, 5], [float("nan"), 0, 7, 50]]}))


@pytest.mark.parametrize(
    ("damage", "file", "problem"),
    [
        (cut, "vcr1annots/val.jsonl", r"val\.jsonl, line 6: .*truncated"),
        (latin, "vcr1annots/train.jsonl", r"train\.jsonl, line 1: byte 1\d+ of the line is not UTF-8"),
        (cut, "vcr1images/lsmdc_1_A/val1.json", r"val1\.json, line 1: .*truncated"),
        (swap, "vcr1images/lsmdc_1_A/val1.json", r"val1\.json: 'boxes\[1\]' .*width and height may be swapped"),
        (outside, "vcr1images/lsmdc_1_A/val1.json", r"val1\.json: 'boxes\[1\]' .* outside the image of 60 x 50"),
        (nan, "vcr1images/lsmdc_1_A/val1.json", r"val1\.json: 'boxes\[1\]' .*not a finite number"),
        (Path.unlink, "vcr1images/lsmdc_1_A/val1.json", r"val\.jsonl, line 3: the metadata file .*val1\.json does not"),
    ],
)
def test_damaged_files_leave_nothing_behind(tmp_path: Path, damage: Any, file: str, problem: str) -> None:
    folder = write(tmp_path / "files", vcr(tmp_path), zipped=False)
    damage(folder / file)
    with pytest.raises(DataError, match=problem) as caught:
        imported(tmp_path, folder)
    assert caught.value.hint
    assert not list((tmp_path / "workspace" / "data").glob("[!.]*"))


@pytest.mark.parametrize(
    ("number", "changes", "problem"),
    [
        (5, {"answer_choices": [["x"]]}, r"val\.jsonl, line 6: 'answer_choices' must have 4 entries, found 1"),
        (5, {"rationale_choices": [["x"]] * 5}, r"line 6: 'rationale_choices' must have 4 entries, found 5"),
        (4, {"answer_label": 4}, r"line 5: 'answer_label' must be 0 to 3, found 4"),
        (4, {"question": [[2]]}, r"line 5: 'question': tag 2 is beyond the list of 2 objects"),
        (4, {"annot_id": "val-1"}, r"line 5: 'annot_id' 'val-1' was used before, on line 2"),
    ],
)
def test_broken_lines_leave_nothing_behind(tmp_path: Path, number: int, changes: dict[str, Any], problem: str) -> None:
    splits = vcr(tmp_path)
    splits["val"][number].update(changes)
    folder = write(tmp_path / "files", splits, zipped=True)
    with pytest.raises(DataError, match=problem) as caught:
        imported(tmp_path, folder)
    assert "vcr1annots.zip" in str(caught.value)
    assert not list((tmp_path / "workspace" / "data").glob("[!.]*"))


def test_a_truncated_zip_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "files", vcr(tmp_path), zipped=True)
    path = folder / "vcr1images.zip"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"vcr1images\.zip"):
        imported(tmp_path, folder)


def test_missing_images_are_counted_and_can_be_left_out(tmp_path: Path) -> None:
    folder = write(tmp_path / "files", vcr(tmp_path), zipped=False)
    for name in ("train0.jpg", "train0.json", "train3.jpg"):
        (folder / "vcr1images" / "lsmdc_1_A" / name).unlink()
    with pytest.raises(DataError, match=r"2 of \d+ images are missing: .*train0\.jpg, .*train3\.jpg") as caught:
        imported(tmp_path, folder)
    assert "--allow-missing" in str(caught.value.hint)
    data = imported(tmp_path, folder, options=ImportOptions(dev_cut=0.3, allow_missing=True)).data
    assert data is not None
    assert len(data.examples("train")) + len(data.examples("dev")) == 80 - 8


def test_an_image_without_metadata_has_no_boxes_where_that_is_allowed(tmp_path: Path) -> None:
    folder = write(tmp_path / "files", vcr(tmp_path), zipped=False)
    (folder / "vcr1images" / "lsmdc_1_A" / "val0.json").unlink()
    data = imported(tmp_path, folder, options=ImportOptions(dev_cut=0.3, allow_missing=True)).data
    assert data is not None
    first, other = data.examples("test")[0], data.examples("test")[4]
    assert (first.boxes, first.context[0].text, first.context[0].tags) == ((), "Is person at diningtable?", ())
    assert len(other.boxes) == 2
    (note,) = [note for note in data.manifest["notes"] if "without metadata" in note]
    assert note.startswith("val.jsonl: 2 questions are about images without metadata, so they have no boxes")


def test_without_images_there_are_no_boxes_and_it_is_said(tmp_path: Path) -> None:
    folder = write(tmp_path / "files", vcr(tmp_path), zipped=False)
    shutil.rmtree(folder / "vcr1images")
    data = imported(tmp_path, folder, options=ImportOptions(dev_cut=0.3, without_images=True)).data
    assert data is not None
    assert not any(example.boxes for example in data.examples("test"))
    said = [note.partition(" questions")[0] for note in data.manifest["notes"] if "without metadata" in note]
    splits = {"train": 40, "val": data.about("test")["questions"], "test": data.about("submission")["questions"]}
    assert said == [f"{official}.jsonl: {count}" for official, count in splits.items()]


def test_without_images_the_metadata_that_are_there_give_the_boxes(tmp_path: Path) -> None:
    folder = write(tmp_path / "files", vcr(tmp_path), zipped=False)
    for path in folder.glob("vcr1images/*/*.jpg"):
        path.unlink()
    (folder / "vcr1images" / "lsmdc_1_A" / "train0.json").unlink()  # that of the very first line
    data = imported(tmp_path, folder, options=ImportOptions(dev_cut=0.3, without_images=True)).data
    assert data is not None
    assert all(example.boxes for example in data.examples("test"))
    assert any(note.startswith("train.jsonl: 2 questions are about images without") for note in data.manifest["notes"])


# GD-VCR


def gd_line(number: int, region: str, **changes: Any) -> dict[str, Any]:
    row = line("val", number, region=region, video_name="Film", img_fn=f"MC-VCR_sample/{number}.jpg")
    row["metadata_fn"] = row["img_fn"].replace("jpg", "json")
    row["rationale_choices"], row["rationale_label"] = row["answer_choices"], row["answer_label"]
    del row["movie"]
    return row | changes


REGIONS = ["east-asia", "west", "africa", "west"]


def gd_vcr(folder: Path, name: str = "val.jsonl", **changes: Any) -> Path:
    rows = [gd_line(number, region, **changes) for number, region in enumerate(REGIONS)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    with zipfile.ZipFile(folder / "MC-VCR_sample.zip", "w") as archive:
        for row in rows:
            archive.writestr(row["metadata_fn"], json.dumps(META))
            archive.writestr(row["img_fn"], "")
    return folder


def test_gd_vcr_by_region(tmp_path: Path) -> None:
    folder = gd_vcr(tmp_path / "gd")
    addition = [gd_line(0, "west", answer_choices=[["more"]] * 4, rationale_choices=[["more"]] * 4)]
    (folder / "val_addition_single.jsonl").write_text("".join(json.dumps(row) + "\n" for row in addition))
    data = imported(tmp_path, folder, "gd-vcr").data
    assert data is not None
    assert (data.name, data.spec.name, data.splits()) == ("gd-vcr", "vcr", ["test"])
    regions = ["test-gd-vcr-africa", "test-gd-vcr-east-asia", "test-gd-vcr-west"]
    assert sorted(data.suites()) == ["test", *sorted([*regions, "test-gd-vcr-addition"])]
    assert [e.form for e in data.examples("test")] == REGIONS
    assert [e.id for e in data.examples("test-gd-vcr-west")] == ["val-1/answer", "val-3/answer"]
    assert len(data.examples("test-gd-vcr-addition")) == 1


def test_gd_vcr_adds_suites_to_vcr(tmp_path: Path) -> None:
    before = imported(tmp_path, write(tmp_path / "files", vcr(tmp_path), zipped=True)).data
    assert before is not None
    imported(tmp_path, gd_vcr(tmp_path / "gd"), "gd-vcr")
    data = TaskData(before.root)
    assert data.revision == before.revision
    assert [suite for suite in data.suites() if "gd" in suite] == [
        "test-gd-vcr", "test-gd-vcr-africa", "test-gd-vcr-east-asia", "test-gd-vcr-west",
    ]  # fmt: skip
    assert [e.form for e in data.examples("test-gd-vcr")] == REGIONS
    assert (
        data.examples("test-gd-vcr")[0].image.path == tmp_path / "gd" / "MC-VCR_sample.zip" / "MC-VCR_sample" / "0.jpg"
    )


def test_gd_vcr_in_the_folder_of_vcr(tmp_path: Path) -> None:
    """GD-VCR's README has VCR's val.jsonl renamed to orig_val.jsonl and its own put in its place."""
    folder = write(tmp_path / "files", vcr(tmp_path), zipped=False)
    annotations = folder / "vcr1annots"
    (annotations / "val.jsonl").rename(annotations / "orig_val.jsonl")
    gd_vcr(annotations)
    found = plan(FoundFiles(folder), OPTIONS)
    assert [split.files[0].name for split in found.splits] == ["train.jsonl", "orig_val.jsonl", "test.jsonl"]
    assert imported(tmp_path, folder, "gd-vcr").data is not None
    (annotations / "orig_val.jsonl").unlink()
    with pytest.raises(UsageProblem, match="is GD-VCR's file") as caught:
        plan(FoundFiles(folder), OPTIONS)
    assert "madkit data import gd-vcr" in str(caught.value.hint)


def test_gd_vcr_with_one_choice_a_line(tmp_path: Path) -> None:
    folder = gd_vcr(tmp_path / "gd", "MC-VCR_test.jsonl", answer_choices=[["x"]], rationale_choices=[["x"]])
    with pytest.raises(NotFoundError, match=r"no val\.jsonl of GD-VCR"):
        imported(tmp_path, folder, "gd-vcr")
    with pytest.raises(DataError, match=r"MC-VCR_test\.jsonl, line 1: 'answer_choices' must have 4 entries, found 1"):
        imported(tmp_path, folder / "MC-VCR_test.jsonl", "gd-vcr")


@pytest.mark.skipif(not GD_VCR.is_file(), reason="the sample of GD-VCR lines is not here")
def test_real_gd_vcr_lines(tmp_path: Path) -> None:
    """The real lines, with boxes made up for their objects: the images are not ours to have."""
    rows = [json.loads(text) for text in GD_VCR.read_text().splitlines()]
    (tmp_path / "gd").mkdir()
    (tmp_path / "gd" / "val_addition_single.jsonl").write_bytes(GD_VCR.read_bytes())
    for row in rows:
        path = tmp_path / "gd" / row["metadata_fn"]
        path.parent.mkdir(exist_ok=True)
        meta = copy.deepcopy(META) | {"boxes": [[1, 2, 30, 40, 1]] * len(row["objects"]), "names": row["objects"]}
        path.write_text(json.dumps(meta))
        path.with_suffix(".jpg").touch()
    data = imported(tmp_path, tmp_path / "gd", "gd-vcr").data
    assert data is not None
    assert len(data.examples("test")) == 86
    for example, row in zip(data.examples("test"), rows, strict=True):
        assert example.label == row["answer_label"]
        tags = [[tag.boxes[0] for tag in choice.tags] for choice in example.candidates]
        assert tags == [[t for token in c if isinstance(token, list) for t in token] for c in row["answer_choices"]]


def test_errors_are_madkit_errors(tmp_path: Path) -> None:
    with pytest.raises(MadkitError):
        imported(tmp_path, tmp_path / "nowhere")


def test_exchanged_files_and_other_numbers_are_noticed(tmp_path: Path) -> None:
    rows = vcr(tmp_path)
    rows["val"] = [{**row, "annot_id": f"train-{900 + number}"} for number, row in enumerate(rows["val"])]
    notes = imported(tmp_path, write(tmp_path / "files", rows, zipped=True)).notes
    assert [note.partition(",")[0] for note in notes if " begins with " in note] == [
        "val.jsonl begins with a question of train (train-900)"
    ]
    assert "val.jsonl has 6 questions; VCR's val has 26,534." in notes
    assert "test.jsonl has 3 questions; VCR's test has 25,263." in notes
