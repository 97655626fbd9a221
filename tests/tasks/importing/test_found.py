from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from madkit.core.errors import NotFoundError, UsageProblem
from madkit.tasks.importing import FoundFiles


def put(path: Path, content: str = "x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def test_files_are_found_at_any_depth_and_in_zips(tmp_path: Path) -> None:
    put(tmp_path / "a" / "b" / "train.jsonl")
    put(tmp_path / "a" / "photo.jpg")
    with zipfile.ZipFile(tmp_path / "annots.zip", "w") as file:
        file.writestr("val.jsonl", "{}")
    files = FoundFiles(tmp_path)
    assert files.need(r"train\.jsonl", "train") == tmp_path / "a" / "b" / "train.jsonl"
    assert files.need(r"VAL\.jsonl", "val") == tmp_path / "annots.zip" / "val.jsonl"
    assert files.one(r"test\.jsonl", "test") is None
    assert not any(path.suffix == ".jpg" for path in files.all)
    with pytest.raises(NotFoundError, match=r"no VCR test set below .* \(a file named like test\\.jsonl\)"):
        files.need(r"test\.jsonl", "VCR test set")


def test_what_was_unpacked_counts_before_its_zip(tmp_path: Path) -> None:
    put(tmp_path / "val.jsonl")
    with zipfile.ZipFile(tmp_path / "annots.zip", "w") as file:
        file.writestr("val.jsonl", "{}")
    assert FoundFiles(tmp_path).one(r"val\.jsonl", "val") == tmp_path / "val.jsonl"


def test_two_copies_are_not_guessed_between(tmp_path: Path) -> None:
    put(tmp_path / "old" / "val.jsonl")
    put(tmp_path / "new" / "val.jsonl")
    with pytest.raises(UsageProblem, match=r"2 files that could be the validation split: .*new.*old"):
        FoundFiles(tmp_path).one(r"val\.jsonl", "the validation split")


def test_the_image_folder_is_found_by_one_image(tmp_path: Path) -> None:
    put(tmp_path / "annotations" / "train.json")
    put(tmp_path / "images" / "vcr1images" / "film" / "1.jpg")
    assert FoundFiles(tmp_path).folder_of("film/1.jpg") == tmp_path / "images" / "vcr1images"
    assert FoundFiles(tmp_path).folder_of("film/2.jpg") is None
    assert FoundFiles(tmp_path, without_images=True).folder_of("film/2.jpg") == tmp_path
    elsewhere = tmp_path / "elsewhere"
    put(elsewhere / "deep" / "film" / "1.jpg")
    found = FoundFiles(tmp_path / "annotations", elsewhere)
    assert found.folder_of("film/1.jpg") == elsewhere / "deep"
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as file:
        file.writestr("vcr1images/film/3.jpg", "")
    assert FoundFiles(tmp_path).folder_of("film/3.jpg") == tmp_path / "images.zip" / "vcr1images"
    zipped = FoundFiles(tmp_path / "annotations", tmp_path / "images.zip")
    assert zipped.folder_of("film/3.jpg") == tmp_path / "images.zip" / "vcr1images"


def test_one_file_is_enough(tmp_path: Path) -> None:
    put(tmp_path / "mine.jsonl")
    put(tmp_path / "pictures" / "1.png")
    files = FoundFiles(tmp_path / "mine.jsonl", tmp_path / "pictures")
    assert files.all == [tmp_path / "mine.jsonl"]
    assert files.folder_of("1.png") == tmp_path / "pictures"


def test_a_long_way_to_the_images_is_no_depth(tmp_path: Path) -> None:
    """How far below is counted from the folder that is searched, which may lie anywhere."""
    shared = tmp_path.joinpath(*"sharedisk", "images")
    (shared / "train2014").mkdir(parents=True)
    (shared / "train2014" / "1.jpg").write_bytes(b"")
    (tmp_path / "annotations").mkdir()
    found = FoundFiles(tmp_path / "annotations", images=shared)
    assert found.folder_of("train2014/1.jpg") == shared
    assert found.folder_of("1.jpg") == shared / "train2014"
