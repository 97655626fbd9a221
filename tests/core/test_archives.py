from __future__ import annotations

import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from madkit.core import archives
from madkit.core.archives import Listing
from madkit.core.errors import DataError, NotFoundError


@pytest.fixture
def zipped(tmp_path: Path) -> Path:
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/b/one.txt", b"one" * 1000)
        file.writestr("two.txt", b"two")
        file.writestr("__MACOSX/a/._one.txt", b"")
    (tmp_path / "plain.txt").write_bytes(b"plain")
    return path


def test_a_path_may_run_through_a_zip(zipped: Path, tmp_path: Path) -> None:
    inside = zipped / "a" / "b" / "one.txt"
    assert archives.exists(inside)
    assert archives.exists(tmp_path / "plain.txt")
    assert not archives.exists(zipped / "a" / "b" / "three.txt")
    assert not archives.exists(tmp_path / "none.txt")
    assert archives.read_bytes(inside) == b"one" * 1000
    assert archives.read_bytes(tmp_path / "plain.txt") == b"plain"
    assert archives.size_of(inside) == 3000
    assert archives.size_of(tmp_path / "plain.txt") == 5
    with archives.open_binary(inside) as stream:
        assert stream.readline() == b"one" * 1000
    assert archives.is_folder(zipped / "a")
    assert archives.is_folder(zipped)
    assert not archives.is_folder(zipped / "c")


def test_a_file_on_disk_comes_before_a_member(zipped: Path, tmp_path: Path) -> None:
    folder = tmp_path / "odd.zip"  # a folder that is called like a zip
    folder.mkdir()
    (folder / "x.txt").write_text("on disk")
    assert archives.read_bytes(folder / "x.txt") == b"on disk"
    assert archives.list_files(folder) == [folder / "x.txt"]


def test_files_and_members_are_listed_alike(zipped: Path, tmp_path: Path) -> None:
    (tmp_path / ".hidden").write_text("")
    found = archives.list_files(tmp_path)
    assert set(found) == {tmp_path / "plain.txt", zipped / "a/b/one.txt", zipped / "two.txt"}
    assert archives.list_files(zipped) == [zipped / "a/b/one.txt", zipped / "two.txt"]
    assert archives.list_files(tmp_path / "plain.txt") == [tmp_path / "plain.txt"]
    with pytest.raises(NotFoundError, match="nothing at"):
        archives.list_files(tmp_path / "gone")


def test_what_is_missing_is_named(zipped: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"images\.zip has no member 'a/x'"):
        archives.read_bytes(zipped / "a" / "x")
    for call in (archives.read_bytes, archives.open_binary, archives.size_of):
        with pytest.raises(NotFoundError, match=r"gone\.txt does not exist"):
            call(tmp_path / "gone.txt")


def test_a_truncated_zip_is_named(zipped: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.zip"
    cut.write_bytes(zipped.read_bytes()[:-30])
    for call in (archives.exists, archives.read_bytes, archives.open_binary):
        with pytest.raises(DataError, match=r"cut\.zip is no readable zip"):
            call(cut / "two.txt")
    with pytest.raises(DataError, match=r"cut\.zip"):
        archives.list_files(tmp_path)


def test_a_damaged_member_is_named(zipped: Path, tmp_path: Path) -> None:
    data = bytearray(zipped.read_bytes())
    data[60:64] = b"\xff\xff\xff\xff"  # inside the first member's compressed bytes
    damaged = tmp_path / "damaged.zip"
    damaged.write_bytes(data)
    inside = damaged / "a/b/one.txt"
    with pytest.raises(DataError, match=r"damaged\.zip: the member 'a/b/one.txt' cannot be read"):
        archives.read_bytes(inside)
    with (
        archives.open_binary(inside) as stream,
        pytest.raises(DataError, match=r"damaged\.zip: the member 'a/b/one.txt' cannot be read"),
    ):
        stream.read()


def test_a_zip_that_changes_is_read_anew(zipped: Path) -> None:
    assert archives.read_bytes(zipped / "two.txt") == b"two"
    with zipfile.ZipFile(zipped, "w") as file:
        file.writestr("two.txt", b"another")
    os.utime(zipped, ns=(1, 1))
    assert archives.read_bytes(zipped / "two.txt") == b"another"


def test_threads_share_a_zip(tmp_path: Path) -> None:
    path = tmp_path / "many.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for number in range(50):
            file.writestr(f"{number}.txt", f"{number}" * 500)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: archives.read_bytes(path / f"{n}.txt"), list(range(50)) * 4))
    assert found == [(f"{number}" * 500).encode() for number in range(50)] * 4


def test_a_listing_answers_for_folders_and_zips(zipped: Path, tmp_path: Path) -> None:
    listing = Listing()
    there = [tmp_path / "plain.txt", zipped / "two.txt", zipped / "a/b/one.txt"]
    absent = [tmp_path / "gone.txt", zipped / "gone.txt", zipped / "a/one.txt", tmp_path / "no" / "x", zipped / "a/b"]
    assert all(listing.exists(path) for path in there)
    assert not any(listing.exists(path) for path in absent)
