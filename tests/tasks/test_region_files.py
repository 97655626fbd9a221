"""Whose region features a split or suite reads, and what they are known by."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from madkit.cli.main import main
from madkit.core.errors import DataError, NotFoundError, UsageProblem
from madkit.core.workspace import Workspace
from madkit.regions import convert_regions, open_regions, tsv_index, write_butd_hdf5
from madkit.shifts import make_shift
from madkit.tasks import region_files
from madkit.tasks.check import check_dataset
from madkit.tasks.data import TaskData
from madkit.tasks.importing import ImportOptions
from madkit.tasks.importing.run import import_data
from madkit.tasks.region_files import attach_regions, make_pixels


def row(name: str, image: str, **other: Any) -> dict[str, Any]:
    choices = [["It", "is", [0], f"{number}", "."] for number in range(4)]
    return {
        "annot_id": name,
        "objects": ["person"],
        "img_fn": f"{image}.jpg",
        "metadata_fn": f"{image}.json",
        "question": ["Who", "is", [0], "?"],
        "answer_choices": choices,
        "answer_label": 1,
        "rationale_choices": choices[::-1],
        "rationale_label": 2,
        **other,
    }


def write(folder: Path, splits: dict[str, list[dict[str, Any]]]) -> Path:
    for name, rows in splits.items():
        for one in rows:
            image = folder / "images" / one["img_fn"]
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 10), (len(name), 90, 200)).save(image)
            about = {"boxes": [[1, 2, 9, 8, 1]], "segms": [[]], "names": ["person"], "width": 20, "height": 10}
            image.with_suffix(".json").write_text(json.dumps(about))
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    return folder


VCR = ("lsmdc_1/a@0", "movieclips_1/a@0", "lsmdc_2/b@0", "movieclips_2/b@0")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """VCR of four images, two films of each source, and GD-VCR of two images, in two regions."""
    place = Workspace(tmp_path / "workspace")
    train = [row(f"train-{number}", image) for number, image in enumerate(VCR[:2])]
    val = [row(f"val-{number}", image) for number, image in enumerate(VCR[2:])]
    import_data(place, "vcr", write(tmp_path / "vcr", {"train": train, "val": val}), ImportOptions(dev_cut=0))
    gd = [row(f"val-{n}", f"gd/{n}", region=region, video_name="x") for n, region in enumerate(("west", "africa"))]
    import_data(place, "gd-vcr", write(tmp_path / "gd", {"val": gd}))
    return place


def features(path: Path, images: tuple[str, ...], value: float = 0.5) -> Path:
    boxes, rows = np.array([[1.0, 1.0, 9.0, 9.0]]), np.full((1, 3), value)
    write_butd_hdf5(path, ((image, boxes, rows, (20, 10)) for image in images))
    return path


def data_of(workspace: Workspace, name: str = "vcr") -> TaskData:
    return TaskData(workspace.data / name)


GD = ("gd/0", "gd/1")
SUITES = ("test-gd-vcr", "test-gd-vcr-africa", "test-gd-vcr-west")


def value(data: TaskData, split: str) -> float:
    reader = data.regions(split)
    assert reader is not None
    return float(reader.get(data.examples(split)[0].image.id).features[0, 0])


def test_added_suites_read_the_features_of_the_data_set_that_their_images_came_with(
    workspace: Workspace, tmp_path: Path
) -> None:
    attach_regions(data_of(workspace), [features(tmp_path / "vcr.h5", VCR)])
    data = data_of(workspace)
    with pytest.raises(NotFoundError, match="gd/0") as caught:
        value(data, "test-gd-vcr")
    assert "madkit data regions add gd-vcr PATH" in str(caught.value.hint)
    wrong = {finding.what: finding for finding in check_dataset(data)}["images with region features"]
    assert (wrong.looked_at, wrong.wrong) == (8, 4)
    assert wrong.first[0] == "gd/0.jpg (test-gd-vcr) has none"

    attach_regions(data_of(workspace, "gd-vcr"), [features(tmp_path / "gd.h5", GD, 2)])
    data = data_of(workspace)
    assert [value(data, split) for split in ("train", "test", *SUITES)] == [0.5, 0.5, 2, 2, 2]
    assert sum(finding.wrong for finding in check_dataset(data)) == 0
    # what is said of one suite counts for it alone
    attach_regions(data, [features(tmp_path / "own.h5", ("gd/1",), 3)], suite="test-gd-vcr-africa")
    data = data_of(workspace)
    assert [value(data, split) for split in ("test", *SUITES)] == [0.5, 2, 3, 2]
    assert len({data.region_digest(name) for name in ("test", "test-gd-vcr", "test-gd-vcr-africa")}) == 3
    assert data.region_digest("train") == data.region_digest("test") == data.region_digest()


def test_one_data_set_may_have_the_features_of_its_suites_too(workspace: Workspace, tmp_path: Path) -> None:
    attach_regions(data_of(workspace), [features(tmp_path / "all.h5", VCR + GD)])
    assert value(data_of(workspace), "test-gd-vcr-west") == 0.5
    (workspace.data / "vcr" / ".regions-pixels.h5.1.tmp").write_bytes(b"what a killed one left")
    make_pixels(data_of(workspace), side=2, grid=1, workers=1)
    data = data_of(workspace)
    assert {value(data, split) for split in ("test", *SUITES)} != {0.5}
    assert sum(finding.wrong for finding in check_dataset(data, deep=True)) == 0
    assert not list(data.root.glob(".*"))


def test_features_for_suites_without_images_of_their_own_are_refused(workspace: Workspace, tmp_path: Path) -> None:
    made = features(tmp_path / "gd.h5", GD)
    make_shift(workspace, data_of(workspace), "shortcut-singular")
    for suite, message in (("test-gd-vrc", "has no suite"), ("test-shortcut-singular", "images of its suite")):
        with pytest.raises(UsageProblem, match=message):
            attach_regions(data_of(workspace), [made], suite=suite)


def test_other_features_have_another_digest_wherever_they_lie(workspace: Workspace, tmp_path: Path) -> None:
    def digest(path: Path, **options: Any) -> str | None:
        attach_regions(data_of(workspace), [path], **options)
        return data_of(workspace).region_digest()

    assert data_of(workspace).region_digest() is None
    first = digest(features(tmp_path / "a.h5", VCR))
    shutil.copytree(tmp_path, copy := tmp_path.with_name("copy"))
    assert first == digest(copy / "a.h5") == digest(features(tmp_path / "b.h5", VCR[::-1]))
    others = {digest(features(tmp_path / "c.h5", VCR, 0.25)), digest(features(tmp_path / "d.h5", VCR + GD))}
    assert others == {digest(tmp_path / "c.h5"), first}  # images that the data lacks do not count
    assert len({first, *others, digest(features(tmp_path / "e.h5", VCR[:3]), allow_missing=True)}) == 3


def test_files_that_are_written_anew_are_others_only_by_what_they_hold(workspace: Workspace, tmp_path: Path) -> None:
    path = features(tmp_path / "a.h5", VCR)
    attach_regions(data_of(workspace), [path])
    path.unlink()
    features(path, VCR)
    assert value(data_of(workspace), "test") == 0.5
    path.unlink()
    features(path, VCR, 0.25)
    with pytest.raises(DataError, match=r"a\.h5 has been written since it was added") as caught:
        value(data_of(workspace), "test")
    assert "madkit data regions add vcr PATH" in str(caught.value.hint)
    attach_regions(data_of(workspace), [path])
    assert value(data_of(workspace), "test") == 0.25


def test_a_file_that_is_written_over_inside_a_folder_is_noticed(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "npz"
    names = {image: folder / f"{image}.npz" for image in VCR}

    def put(image: str, value: float) -> None:
        box = np.float16([[0.1, 0.1, 0.9, 0.9, 0.8, 0.8]])
        np.savez(names[image], norm_bb=box, features=np.full((1, 3), value, np.float16), conf=np.float16([[1]]))

    folder.mkdir()
    for image in VCR:
        names[image].parent.mkdir(exist_ok=True)
        put(image, 0.5)
    attach_regions(data_of(workspace), [folder])
    assert value(data_of(workspace), "test") == 0.5
    assert not capsys.readouterr().err
    put(VCR[0], 0.25)
    with pytest.raises(DataError, match="npz has been written since it was added"):
        value(data_of(workspace), "test")
    monkeypatch.setattr(region_files, "_SAMPLED", 1)  # of many images only a few are looked at
    attach_regions(data_of(workspace), [folder])
    seen = json.loads((data_of(workspace).root / "regions.json").read_text())["seen"]["images"]
    put(next(image for image in VCR if not seen[0].startswith(image)), 0.75)
    value(data_of(workspace), "test")
    assert "have been written since it was added" in capsys.readouterr().err


def test_features_of_no_image_say_what_to_give(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"4 of 4 images of vcr have no region .*gd\.h5 \(butd-hdf5\): ") as caught:
        attach_regions(data_of(workspace), [features(tmp_path / "gd.h5", GD)], allow_missing=True)
    assert "this data set's images" in str(caught.value.hint)
    with pytest.raises(DataError, match="1 of 4 images") as caught:
        attach_regions(data_of(workspace), [features(tmp_path / "most.h5", VCR[1:])])
    assert "--allow-missing" in str(caught.value.hint)


def test_data_sets_of_one_source_share_the_features(workspace: Workspace) -> None:
    """Pixel features lie in the data set's own folder, under a path that is relative to it."""
    make_pixels(data_of(workspace), side=2, grid=1, workers=1)
    digest = data_of(workspace).region_digest()
    make_shift(workspace, data_of(workspace), "source")
    moved = Workspace(workspace.root.with_name("moved"))
    workspace.root.rename(moved.root)
    for name in ("vcr-lsmdc", "vcr-movieclips"):
        made = data_of(moved, name)
        assert made.region_digest() == digest
        assert sum(finding.wrong for finding in check_dataset(made, deep=True)) == 0


def test_files_in_a_folder_that_cannot_be_written_to_are_scanned_once(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MADKIT_CACHE_DIR", str(tmp_path / "user"))
    table = tmp_path / "all_obj36.tsv"
    convert_regions(open_regions("butd-hdf5", features(tmp_path / "all.h5", (*VCR, *GD))), table, "lxmert-tsv")
    tsv_index.index_path(table).mkdir()  # the tests may run as root, whom no permission stops
    scans: list[Path] = []
    scan = tsv_index._scan

    def counted(path: Path, *others: Any) -> Any:
        scans.append(path)
        return scan(path, *others)

    monkeypatch.setattr(tsv_index, "_scan", counted)
    data = data_of(workspace)
    attach_regions(data, [table])
    attach_regions(data, [table], suite=SUITES[0])
    assert tsv_index.index_path(table, workspace.data / ".region-index").is_file()
    assert scans == [table]
    assert value(data_of(workspace), "train") == value(data_of(workspace), SUITES[0]) == 0.5
    assert (value(data_of(workspace), "train"), scans) == (0.5, [table])
    make_shift(workspace, data, "source")
    import_data(workspace, "vcr", tmp_path / "vcr", ImportOptions(dev_cut=0))
    for name in ("vcr", "vcr-lsmdc"):
        assert (value(data_of(workspace, name), "train"), scans) == (0.5, [table])
    check = ["data", "regions", "check", str(table)]  # knows no workspace
    assert [main(check), main(check)] == [0, 0]
    assert scans == [table, table]
