from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import madkit.regions.tsv_index as module
from madkit.core.errors import DataError, NotFoundError
from madkit.regions.tsv_index import RowFile, index_path, open_index


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "r.tsv"
    path.write_bytes(b"a\t1\tx\nbb\t22\txx\r\n\n \nc\xc3\xbc\t3\t")
    return path


def rows(path: Path, **options: Any) -> list[bytes]:
    index = open_index(path, **options)
    file = RowFile(path)
    return [file.read(int(start), int(length)) for start, length in zip(index.starts, index.lengths, strict=True)]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1 << 22])
def test_every_row_has_its_place_whatever_the_size_of_the_pieces(
    table: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(module, "_CHUNK_BYTES", chunk)
    assert rows(table) == [b"a\t1\tx", b"bb\t22\txx", b"c\xc3\xbc\t3\t"]
    index = open_index(table)
    assert index.ids == ("a", "bb", "cü")
    assert index.lines.tolist() == [1, 2, 5]
    assert index.columns == 3


def test_the_first_open_builds_and_the_second_finds(table: Path) -> None:
    seen: list[int] = []
    first = open_index(table, advance=seen.append)
    assert (first.built, first.path) == (True, table.with_name("r.tsv.madkit-index.npz"))
    assert sum(seen) == table.stat().st_size
    second = open_index(table, advance=seen.append)
    assert (second.built, second.path, second.columns) == (False, first.path, 3)
    assert second.ids == first.ids
    for name in ("starts", "lengths", "lines"):
        np.testing.assert_array_equal(getattr(second, name), getattr(first, name))
    assert sum(seen) == table.stat().st_size
    assert sorted(path.name for path in table.parent.iterdir()) == ["r.tsv", "r.tsv.madkit-index.npz"]


def test_the_index_of_another_state_is_not_used(table: Path) -> None:
    open_index(table)
    times = table.stat()
    content = table.read_bytes()
    table.write_bytes(b"Z" + content[1:])  # same size; then the same time as well
    assert open_index(table).built
    os.utime(table, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert open_index(table).built
    table.write_bytes(content)
    os.utime(table, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert open_index(table).ids[0] == "a"
    table.write_bytes(content + b"\nd\t4\ty")
    os.utime(table, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert open_index(table).ids[-1] == "d"
    os.utime(table, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    assert open_index(table).built


@pytest.mark.parametrize("keep", [0, 1, 30, 200, 700, -1, -100])
def test_a_damaged_index_is_built_again(table: Path, keep: int) -> None:
    path = open_index(table).path
    assert path is not None
    path.write_bytes(path.read_bytes()[:keep])
    assert open_index(table).built
    assert not open_index(table).built


@given(st.data())
@settings(max_examples=30)
def test_a_changed_byte_in_the_index_breaks_nothing(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    table = tmp_path_factory.mktemp("index") / "r.tsv"
    table.write_bytes(b"a\t1\nb\t2\n")
    path = open_index(table).path
    assert path is not None
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    assert open_index(table).ids == ("a", "b")


def test_an_index_with_a_pickle_in_it_is_not_loaded(table: Path) -> None:
    index = open_index(table)
    assert index.path is not None
    with np.load(index.path) as content:
        arrays = dict(content)
    arrays["ids"] = np.array([os.system], dtype=object)
    np.savez(index.path, **arrays)
    assert open_index(table).built


def test_an_index_whose_arrays_do_not_fit_is_built_again(table: Path) -> None:
    index = open_index(table)
    assert index.path is not None
    with np.load(index.path) as content:
        arrays = dict(content)
    for name, value in (("starts", arrays["starts"][:2]), ("ids", np.frombuffer(b"a\na\nb\n", np.uint8))):
        np.savez(index.path, **{**arrays, name: value})
        assert open_index(table).built


def test_where_the_folder_takes_no_file_the_index_goes_elsewhere(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = table.parent / "indexes"
    real = module.write_bytes_atomic

    def write(path: Path, data: Any) -> None:  # the tests may run as root, whom no permission stops
        if path.parent == table.parent:
            raise PermissionError(13, "Permission denied")
        real(path, data)

    monkeypatch.setattr(module, "write_bytes_atomic", write)
    first = open_index(table, folder=folder)
    assert first.path == index_path(table, folder)
    assert first.path.parent == folder
    assert not open_index(table, folder=folder).built
    assert capsys.readouterr().err == ""
    kept_nowhere = open_index(table)
    assert (kept_nowhere.built, kept_nowhere.path) == (True, None)
    assert "could not be kept" in capsys.readouterr().err
    other = table.parent / "other" / "r.tsv"
    other.parent.mkdir()
    other.write_bytes(b"z\t1\n")
    assert index_path(other, folder) != index_path(table, folder)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", r"r\.tsv is empty"),
        (b"\n\r\n  \n", r"r\.tsv is empty"),
        (b"a\t1\nb\n", "line 2: 1 columns where the rows before have 2"),
        (b"a\t1\nb\t2\t3\n", "line 2: 3 columns where the rows before have 2"),
        (b"a\t1\n\nb\t2\t3", "line 3: 3 columns"),
        (b"a\t1\nb\t2\n\na\t3\n", "line 4: the image 'a' stood on line 1 before"),
        (b"a\t1\n\t2\n", "line 2: the first column is no image id"),
        (b"a\t1\n\xff\t2\n", "line 2: the first column is no image id"),
        (b"x" * 20_000 + b"\t1\n", "line 1: the first column is no image id"),
        (b"a\t1\n" + b" " * 20_000 + b"\n", "line 2: the first column is no image id"),
    ],
)
def test_wrong_files_are_named_with_their_line(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "r.tsv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=problem):
        open_index(path)
    assert [file.name for file in tmp_path.iterdir()] == ["r.tsv"]


def test_a_byte_order_mark_belongs_to_no_id(tmp_path: Path) -> None:
    path = tmp_path / "r.tsv"
    path.write_bytes(b"\xef\xbb\xbfa\t1\n")
    assert rows(path) == [b"a\t1"]
    assert open_index(path).ids == ("a",)


def test_what_is_no_plain_file(tmp_path: Path, table: Path) -> None:
    with zipfile.ZipFile(tmp_path / "r.zip", "w") as file:
        file.write(table, "sub/r.tsv")
    inside = tmp_path / "r.zip" / "sub" / "r.tsv"
    with pytest.raises(DataError, match=r"r\.tsv lies inside the zip .*r\.zip") as error:
        open_index(inside)
    assert error.value.hint == f"unzip {tmp_path / 'r.zip'}"
    with pytest.raises(DataError, match=r"r\.zip is compressed") as error:
        open_index(tmp_path / "r.zip")
    assert error.value.hint == f"unzip {tmp_path / 'r.zip'}"
    (tmp_path / "r.tsv.gz").write_bytes(b"\x1f\x8b\x08\x00")
    with pytest.raises(DataError, match="is compressed") as error:
        open_index(tmp_path / "r.tsv.gz")
    assert error.value.hint == f"gunzip {tmp_path / 'r.tsv.gz'}"
    with pytest.raises(NotFoundError, match=r"none\.tsv does not exist"):
        open_index(tmp_path / "none.tsv")
    with pytest.raises(DataError, match="is a folder"):
        open_index(tmp_path)


def test_a_file_that_grows_meanwhile_is_refused(table: Path) -> None:
    def grow(_: int) -> None:
        with table.open("ab") as file:
            file.write(b"x")

    with pytest.raises(DataError, match="changed while it was read"):
        open_index(table, advance=grow)
    assert [file.name for file in table.parent.iterdir()] == ["r.tsv"]


def test_large_files_show_progress(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_SHOWN_FROM_BYTES", 1)
    monkeypatch.setattr("madkit.core.console.QUIET_S", 0.0)
    table.write_bytes(b"".join(b"%d\t%s\n" % (n, b"x" * 1_000_000) for n in range(5)))
    open_index(table)
    assert "Indexing r.tsv: 5 MB" in capsys.readouterr().err


word = st.binary(max_size=6).map(lambda text: text.translate(None, b"\t\r\n"))


@given(
    ids=st.lists(st.text("abcü é1", min_size=1, max_size=5).filter(str.strip), min_size=1, max_size=6, unique=True),
    cells=st.lists(st.lists(word, min_size=2, max_size=2), min_size=6, max_size=6),
    ends=st.lists(st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\r\n \n"]), min_size=6, max_size=6),
    last=st.booleans(),
    chunk=st.integers(1, 20),
)
@settings(max_examples=40)
def test_any_table_is_cut_into_its_rows(
    tmp_path_factory: pytest.TempPathFactory,
    ids: list[str],
    cells: list[list[bytes]],
    ends: list[bytes],
    last: bool,
    chunk: int,
) -> None:
    written = [b"\t".join([name.encode(), *row]) for name, row in zip(ids, cells, strict=False)]
    path = tmp_path_factory.mktemp("t") / "r.tsv"
    text = b"".join(row + end for row, end in zip(written, ends, strict=False))
    path.write_bytes(text if last else text[: -len(ends[len(written) - 1])])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK_BYTES", chunk)
        assert rows(path) == written
    assert open_index(path).ids == tuple(ids)
