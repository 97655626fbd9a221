from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from madkit.core.errors import DataError, NotFoundError, UsageProblem
from madkit.core.workspace import Workspace
from madkit.tasks.data import TaskData, open_task
from madkit.tasks.importing import ImportOptions
from madkit.tasks.importing import snli_ve as importer
from madkit.tasks.importing.run import import_data
from madkit.tasks.importing.snli_ve import read_image_list

SHARED = Path(__file__).parents[4] / "shared" / "data" / "snli_ve"
LABELS = ("entailment", "neutral", "contradiction")


def pair(image: str, number: int, **changes: Any) -> dict[str, Any]:
    return {
        "captionID": f"{image}.jpg#{number}",
        "gold_label": LABELS[number % 3],
        "pairID": f"{image}.jpg#{number}r1",
        "sentence1": "A dog.",
        "sentence2": f"Hypothesis {number} of {image}.",
        **changes,
    }


def write_lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_photos(folder: Path, *images: str, extension: str = ".jpg") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for image in images:
        (folder / f"{image}{extension}").write_bytes(b"photo")


@pytest.fixture
def owners(tmp_path: Path) -> Path:
    """The owners' three files: two train images, one of dev, one of test."""
    root = tmp_path / "flickr"
    for split, images in (("train", "12"), ("dev", "3"), ("test", "4")):
        rows = [{"Flickr30K_ID": image, **pair(image, number)} for image in images for number in range(3)]
        write_lines(root / "data" / f"snli_ve_{split}.jsonl", *rows)
    write_photos(root / "flickr30k-images", "1", "2", "3", "4")
    return root


def held(data: TaskData) -> dict[str, list[str]]:
    return {split: [example.id for example in data.examples(split)] for split in data.splits()}


def test_the_owners_files(owners: Path, tmp_path: Path) -> None:
    workspace = Workspace.at(tmp_path / "ws")
    made = import_data(workspace, "snli-ve", owners)
    data = open_task(workspace, "snli-ve")
    assert (data.source, data.spec.name, data.splits()) == ("snli-ve", "snli-ve", ["train", "dev", "test"])
    assert [len(ids) for ids in held(data).values()] == [6, 3, 3]
    example = data.examples("test")[2]
    assert (example.id, example.label) == ("4.jpg#2r1", 0)
    assert example.image.path == owners / "flickr30k-images" / "4.jpg"
    # far from the published sizes, and that is said
    assert "The train split has 6 pairs, published are 529,527 (entailment 2 for 176,932," in " ".join(made.notes)
    assert list(made.notes) == data.manifest["notes"]
    assert import_data(workspace, "snli-ve", owners).unchanged


def test_published_sizes_need_no_note(owners: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = dict.fromkeys(LABELS, 1)
    monkeypatch.setattr(importer, "PUBLISHED", {"train": dict.fromkeys(LABELS, 2), "dev": one, "test": one})
    assert import_data(Workspace.at(tmp_path / "ws"), "snli-ve", owners).notes == ()


def test_what_is_left_out_is_said(owners: Path, tmp_path: Path) -> None:
    path = owners / "data" / "snli_ve_train.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    write_lines(path, *rows, pair("1", 7, gold_label="-"), pair("1", 8, pairID="vg_1"), pair("1", 9, gold_label="-"))
    notes = import_data(Workspace.at(tmp_path / "ws"), "snli-ve", owners).notes
    assert (
        "snli_ve_train.jsonl: Left out are 2 pairs without an agreed label and 1 about images of Visual Genome."
        in notes
    )


def test_lists_of_albef(owners: Path, tmp_path: Path) -> None:
    for split in ("train", "dev", "test"):
        path = owners / "data" / f"snli_ve_{split}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        entries = [
            {"image": row["Flickr30K_ID"], "sentence": row["sentence2"], "label": row["gold_label"]} for row in rows
        ]
        path.unlink()
        (owners / f"ve_{split}.json").write_text(json.dumps(entries))
    workspace = Workspace.at(tmp_path / "ws")
    import_data(workspace, "snli-ve", owners)
    data = open_task(workspace, "snli-ve")
    assert held(data)["test"] == ["4#0", "4#1", "4#2"]
    assert [example.label for example in data.examples("test")] == [1, 2, 0]


# -- made from SNLI


@pytest.fixture
def snli(tmp_path: Path) -> Path:
    """SNLI and the two lists. SNLI's splits have nothing to do with SNLI-VE's."""
    root = tmp_path / "snli"
    dev = [str(1000 + i) for i in range(1000)]
    (root / "data").mkdir(parents=True)
    (root / "data" / "flickr30k_train_val.lst").write_text("\n".join(["2", "1", *dev]) + "\n")
    (root / "data" / "flickr30k_test.lst").write_text("4\n5")  # the real one has no last line break either
    rows = {
        "train": [pair("1", 0), pair("4", 0), pair("1999", 0), pair("2", 0), pair("1", 1, gold_label="-")],
        "dev": [pair("1", 2), pair("999", 0), pair("1000", 1), pair("vg_9", 0, pairID="vg_9r1")],
        "test": [pair("2", 1), pair("4", 1), pair("4", 2)],
    }
    for split, lines in rows.items():
        write_lines(root / "snli_1.0" / f"snli_1.0_{split}.jsonl", *lines)
    write_photos(root / "flickr30k-images", "1", "2", "4", "5", "1000", "1999")
    return root


DEALT = {  # by image as the lists have them, by SNLI's train, dev, test within an image
    "train": ["2.jpg#0r1", "2.jpg#1r1", "1.jpg#0r1", "1.jpg#2r1"],
    "dev": ["1000.jpg#1r1", "1999.jpg#0r1"],
    "test": ["4.jpg#0r1", "4.jpg#1r1", "4.jpg#2r1"],
}


def test_snli_is_dealt_out_by_image(snli: Path, tmp_path: Path) -> None:
    workspace = Workspace.at(tmp_path / "ws")
    notes = import_data(workspace, "snli-ve", snli).notes
    data = open_task(workspace, "snli-ve")
    assert held(data) == DEALT
    assert notes[0] == (
        "Made from SNLI 1.0. Left out are 1 pairs without an agreed label and 1 about images of Visual Genome."
    )
    assert notes[1] == "1 pairs of SNLI are about images that are in neither list; left out."
    assert len(notes) == 5  # and one for each split, whose sizes are not the published ones


def test_the_revision_is_the_same_either_way(snli: Path, tmp_path: Path) -> None:
    """The files that the owners' generator writes, by hand."""
    lines: dict[str, dict[str, Any]] = {}
    for path in (snli / "snli_1.0").iterdir():
        for text in path.read_text().splitlines():
            row = json.loads(text)
            lines[row["pairID"]] = {"Flickr30K_ID": row["captionID"].split(".")[0], **row}
    for split, ids in DEALT.items():
        write_lines(tmp_path / "made" / f"snli_ve_{split}.jsonl", *(lines[one] for one in ids))
    options = ImportOptions(images=snli / "flickr30k-images")
    first = import_data(Workspace.at(tmp_path / "a"), "snli-ve", snli).data
    second = import_data(Workspace.at(tmp_path / "b"), "snli-ve", tmp_path / "made", options).data
    assert first is not None
    assert second is not None
    assert first.revision == second.revision


def test_everything_in_zips(snli: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    packed.mkdir()
    for name, folder in (("snli_1.0.zip", "snli_1.0"), ("flickr30k-images.zip", "flickr30k-images")):
        with zipfile.ZipFile(packed / name, "w") as file:
            for path in sorted((snli / folder).iterdir()):
                file.write(path, f"{folder}/{path.name}")
                file.writestr(f"__MACOSX/{folder}/._{path.name}", b"\0")
    for path in (snli / "data").iterdir():
        shutil.copy(path, packed / path.name)
    workspace = Workspace.at(tmp_path / "ws")
    import_data(workspace, "snli-ve", packed)
    data = open_task(workspace, "snli-ve")
    assert held(data) == DEALT
    assert data.examples("test")[0].image.path == packed / "flickr30k-images.zip" / "flickr30k-images" / "4.jpg"


# -- what is wrong


def failure(root: Path, tmp_path: Path, kind: type[Exception], options: ImportOptions | None = None) -> str:
    workspace = Workspace.at(tmp_path / "ws")
    with pytest.raises(kind) as caught:
        import_data(workspace, "snli-ve", root, options)
    assert caught.value.hint
    left = [path for path in workspace.data.rglob("*") if path.name != ".snli-ve.lock"]
    assert left == [], "nothing may be half-imported"
    return str(caught.value)


def test_nothing_there_or_half_of_it(owners: Path, tmp_path: Path) -> None:
    (owners / "data" / "snli_ve_dev.jsonl").unlink()
    assert "snli_ve_test.jsonl, but no file for dev" in failure(owners, tmp_path, NotFoundError)
    shutil.rmtree(owners / "data")
    assert "neither snli_ve_train.jsonl" in failure(owners, tmp_path, NotFoundError)


def test_snli_without_the_lists(snli: Path, tmp_path: Path) -> None:
    (snli / "data" / "flickr30k_test.lst").unlink()
    (snli / "snli_1.0" / "snli_1.0_dev.jsonl").unlink()
    assert "snli_1.0_dev.jsonl, flickr30k_test.lst are missing" in failure(snli, tmp_path, NotFoundError)


def test_several_files_that_could_be_meant(owners: Path, tmp_path: Path) -> None:
    (owners / "old").mkdir()
    shutil.copy(owners / "data" / "snli_ve_dev.jsonl", owners / "old")
    assert "There are 2 files that could be the owners' file of dev" in failure(owners, tmp_path, UsageProblem)


def test_no_photos(owners: Path, tmp_path: Path) -> None:
    shutil.rmtree(owners / "flickr30k-images")
    assert "(looked for 1.jpg)" in failure(owners, tmp_path, NotFoundError)
    (owners / "flickr30k-images.tar.gz").touch()
    workspace = Workspace.at(tmp_path / "ws")
    with pytest.raises(NotFoundError) as caught:
        import_data(workspace, "snli-ve", owners)
    assert caught.value.hint == "unpack flickr30k-images.tar.gz first"


def test_missing_photos_are_counted(owners: Path, tmp_path: Path) -> None:
    (owners / "flickr30k-images" / "2.jpg").unlink()
    message = failure(owners, tmp_path, DataError)
    assert "1 of 2 images are missing" in message
    assert str(owners / "flickr30k-images" / "2.jpg") in message
    workspace = Workspace.at(tmp_path / "ws")
    import_data(workspace, "snli-ve", owners, ImportOptions(allow_missing=True))
    assert [len(ids) for ids in held(open_task(workspace, "snli-ve")).values()] == [3, 3, 3]


def test_a_pair_in_two_splits(owners: Path, tmp_path: Path) -> None:
    shutil.copy(owners / "data" / "snli_ve_train.jsonl", owners / "data" / "snli_ve_dev.jsonl")
    message = failure(owners, tmp_path, DataError)
    assert message == "snli_ve_dev.jsonl: the pair '1.jpg#0r1' is in the train split too."


def test_a_pair_in_two_files_of_snli(snli: Path, tmp_path: Path) -> None:
    write_lines(snli / "snli_1.0" / "snli_1.0_test.jsonl", pair("1", 0))
    message = failure(snli, tmp_path, DataError)
    assert message.endswith("snli_1.0_test.jsonl: 'pairID' '1.jpg#0r1' stands in snli_1.0_train.jsonl too.")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"gold_label": 2}, "snli_ve_test.jsonl, line 1: 'gold_label' is the number 2"),
        ({"gold_label": None}, "snli_ve_test.jsonl, line 1: 'gold_label' is null"),
        ({"sentence2": ""}, "snli_ve_test.jsonl, line 1: 'sentence2' is empty"),
    ],
)
def test_broken_lines(owners: Path, tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    write_lines(owners / "data" / "snli_ve_test.jsonl", pair("4", 0, **change))
    assert problem in failure(owners, tmp_path, DataError)


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("flickr30k_test.lst", "4\nimage five\n", "line 2: an image id is needed, found 'image five'"),
        ("flickr30k_test.lst", "4\n\n4.jpg\n", "line 3: the image 4 was used before, on line 1"),
        ("flickr30k_test.lst", "\n", "the list is empty"),
        ("flickr30k_test.lst", "5\n1\n", "line 2: the image 1 stands in flickr30k_train_val.lst too, on line 2"),
        ("flickr30k_train_val.lst", "1\n2\n", "the list has 2 images, but its last 1,000 alone are dev"),
    ],
)
def test_broken_lists(snli: Path, tmp_path: Path, name: str, text: str, problem: str) -> None:
    (snli / "data" / name).write_text(text)
    assert f"{name}{', ' if problem.startswith('line') else ': '}{problem}" in failure(snli, tmp_path, DataError)


def test_a_list_with_extensions(tmp_path: Path) -> None:
    path = tmp_path / "a.lst"
    path.write_bytes(b"\xef\xbb\xbf7.jpg\r\n8\r\n")
    assert read_image_list(path) == {"7": 1, "8": 2}


@pytest.mark.skipif(not SHARED.is_dir(), reason="the sample of real SNLI-VE lines is not here")
def test_real_lines_and_photos(tmp_path: Path) -> None:
    """The 16 real lines as test split; train and dev are made up, because the sample has no others."""
    root = tmp_path / "real"
    shutil.copytree(SHARED, root / "photos", ignore=shutil.ignore_patterns("*.jsonl"))
    shutil.copy(SHARED / "sample_pairs.jsonl", root / "snli_ve_test.jsonl")
    write_lines(root / "snli_ve_train.jsonl", pair("4564320256", 0))
    write_lines(root / "snli_ve_dev.jsonl", pair("1016887272", 0))
    workspace = Workspace.at(tmp_path / "ws")
    import_data(workspace, "snli-ve", root)
    data = open_task(workspace, "snli-ve")
    assert data.manifest["splits"]["test"]["balance"] == {"0": 4, "1": 6, "2": 6}
    assert all(example.image.path.is_file() for example in data.examples("test"))
