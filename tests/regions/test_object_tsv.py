"""Both region TSVs: what is written is read, and each way in which a row can be wrong names its file and line."""

from __future__ import annotations

import base64
import multiprocessing
import string
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from madkit.core.errors import DataError, NotFoundError, UsageProblem
from madkit.regions import open_regions
from madkit.regions.object_tsv import ObjectTsvReader
from madkit.regions.tsv_index import index_path

Row = dict[str, Any]

LAYOUTS = {
    "lxmert-tsv": ("id", "h", "w", "objects_id", "conf", "attrs_id", "attrs_conf", "n", "boxes", "features"),
    "butd-tsv": ("id", "w", "h", "n", "boxes", "features"),
}
BOTH = pytest.mark.parametrize("layout", list(LAYOUTS))


def a_row(image: str = "a", *, boxes: int = 2, dim: int = 3, seed: int = 0, **changes: Any) -> Row:
    draw = np.random.default_rng(seed)
    corner = draw.uniform(0, 30, (boxes, 2))
    row: Row = {
        "id": image,
        "w": 100,
        "h": 60,
        "n": boxes,
        "boxes": np.concatenate([corner, corner + draw.uniform(5, 29, corner.shape)], axis=1).astype("<f4"),
        "features": draw.normal(size=(boxes, dim)).astype("<f4"),
        "conf": draw.uniform(0, 1, boxes).astype("<f4"),
        "objects_id": np.arange(boxes, dtype="<i8"),
        "attrs_id": np.arange(boxes, dtype="<i8"),
        "attrs_conf": np.ones(boxes, "<f4"),
    }
    return {**row, **changes}


def line(layout: str, row: Row) -> bytes:
    cells = (row[name] for name in LAYOUTS[layout])
    return b"\t".join(
        base64.b64encode(cell.tobytes())
        if isinstance(cell, np.ndarray)
        else (cell if isinstance(cell, bytes) else str(cell).encode())
        for cell in cells
    )


def write(path: Path, layout: str, rows: Sequence[Row], end: bytes = b"\n") -> Path:
    path.write_bytes(b"".join(line(layout, row) + end for row in rows))
    return path


def opened(layout: str, path: Path, **options: Any) -> ObjectTsvReader:
    reader = open_regions(layout, path, **options)
    assert isinstance(reader, ObjectTsvReader)
    return reader


@BOTH
def test_beside_a_file_that_takes_no_index_it_is_scanned_once(
    tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MADKIT_CACHE_DIR", str(tmp_path / "user"))
    path = write(tmp_path / "r.tsv", layout, [a_row()])
    index_path(path).mkdir()  # as where the folder cannot be written to; the tests may run as root, who always can
    assert opened(layout, path).index.built
    again = opened(layout, path).index
    assert not again.built
    assert again.path is not None
    assert again.path.parent == tmp_path / "user" / "region-index"
    elsewhere = [opened(layout, path, index_folder=tmp_path / "mine").index for _ in range(2)]
    assert [index.built for index in elsewhere] == [True, False]
    assert elsewhere[1].path == index_path(path, tmp_path / "mine")
    assert capsys.readouterr().err == ""


def test_who_has_no_home_reads_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def expanded(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("MADKIT_CACHE_DIR", raising=False)
    monkeypatch.setattr(Path, "expanduser", expanded)
    path = write(tmp_path / "r.tsv", "butd-tsv", [a_row()])
    assert opened("butd-tsv", path).index.path == index_path(path)
    index_path(path).unlink()
    index_path(path).mkdir()
    assert opened("butd-tsv", path).index.path is None
    assert "could not be kept" in capsys.readouterr().err


@BOTH
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\n\n", b"\n \r\n"])
def test_what_is_written_is_read(tmp_path: Path, layout: str, end: bytes) -> None:
    rows = [a_row(f"im/{n}.jpg", boxes=n + 1, seed=n) for n in range(4)]
    reader = opened(layout, write(tmp_path / "r.tsv", layout, rows, end))
    assert list(reader.ids()) == ["im/0.jpg", "im/1.jpg", "im/2.jpg", "im/3.jpg"]
    assert reader.dim == 3
    for row, regions in zip(rows, reader.get_many([row["id"] for row in rows]), strict=True):
        np.testing.assert_allclose(regions.boxes, row["boxes"] / [100, 60, 100, 60], rtol=1e-6)
        np.testing.assert_array_equal(regions.features, row["features"])
        assert regions.size == (100, 60)
        assert regions.boxes.dtype == regions.features.dtype == np.float32
        assert regions.features.flags.writeable
        if layout == "lxmert-tsv":
            assert regions.confidence is not None
            np.testing.assert_array_equal(regions.confidence, row["conf"])
        else:
            assert regions.confidence is None
    reader.close()
    assert len(reader.get("im/2.jpg").boxes) == 3  # opens again


@BOTH
def test_a_file_without_its_last_line_end(tmp_path: Path, layout: str) -> None:
    path = tmp_path / "r.tsv"
    path.write_bytes(line(layout, a_row("a")) + b"\n" + line(layout, a_row("b", seed=1)))
    reader = opened(layout, path)
    np.testing.assert_array_equal(reader.get("b").features, a_row("b", seed=1)["features"])


@BOTH
def test_many_come_in_the_order_asked_for(tmp_path: Path, layout: str) -> None:
    rows = [a_row(str(n), seed=n) for n in range(5)]
    reader = opened(layout, write(tmp_path / "r.tsv", layout, rows))
    for wanted in (["3", "0", "3", "4"], []):
        for image, regions in zip(wanted, reader.get_many(wanted), strict=True):
            np.testing.assert_array_equal(regions.features, rows[int(image)]["features"])
    for call in (lambda: reader.get("12"), lambda: reader.get_many(["0", "12"])):
        with pytest.raises(NotFoundError, match=r"r\.tsv has no image '12'"):
            call()


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"w": "w0"}, "'width' is 'w0' and no whole number"),
    ({"h": "60.5"}, "'height' is '60.5' and no whole number"),
    ({"h": "\xff".encode("latin1")}, "'height' is .* and no whole number"),
    ({"w": "0"}, "the image's width cannot be 0 pixels"),
    ({"w": "9" * 30}, "the image's width cannot be"),
    ({"w": "9" * 5000}, "'width' is '99"),
    ({"n": "-1"}, "'boxes' holds 32 bytes|no number of boxes|'num_boxes' is '-1'"),
    ({"n": 3}, "'boxes' holds 32 bytes; 3 boxes with 4 float32 each need 48"),
    ({"n": 1}, "'boxes' holds 32 bytes; 1 boxes with 4 float32 each need 16"),
    ({"n": 0}, "'boxes' holds 32 bytes; 0 boxes"),
    ({"boxes": b"AAAA*AAA"}, "'boxes' is no valid base64"),
    ({"boxes": b"AAAAA"}, "'boxes' is no valid base64"),
    ({"boxes": b""}, "'boxes' holds 0 bytes"),
    ({"features": np.ones((2, 4), "<f4")}, "'features' holds 32 bytes; 2 boxes with 3 float32 each need 24"),
    ({"features": np.ones(5, "<f4")}, "'features' holds 20 bytes"),
    ({"features": np.array([[1, 2, 3], [1, np.nan, 3]], "<f4")}, "the features of 1 of 2 regions hold NaN"),
    ({"boxes": np.array([[0, 0, 9, 9], [0, 0, np.inf, 9]], "<f4")}, "a box holds NaN or infinity"),
    ({"boxes": np.array([[0, 0, 9, 9], [0, 0, 200, 90]], "<f4")}, "a box lies outside the image"),
    ({"boxes": np.array([[0, 0, 9, 9], [-9, 0, 10, 9]], "<f4")}, "a box lies outside the image"),
    ({"boxes": np.array([[0, 0, 9, 9], [9, 9, 9, 20]], "<f4")}, "a box is empty or its columns are not x1, y1, x2, y2"),
    ({"boxes": np.array([[0, 0, 55, 95], [0, 0, 9, 9]], "<f4")}, "all fit 60 x 100: width and height .* are swapped"),
    ({"boxes": np.array([[50, 30, 20, 20], [0, 0, 9, 9]], "<f4")}, "look like x, y, width, height"),
]


@BOTH
@pytest.mark.parametrize(("change", "problem"), WRONG)
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_wrong_row_is_named_with_its_line(
    tmp_path: Path, layout: str, change: dict[str, Any], problem: str, at: int
) -> None:
    rows = [a_row("x"), a_row("y", seed=1), a_row("z", seed=2)]
    rows[at].update(change)
    path = write(tmp_path / "r.tsv", layout, rows)
    if at == 0 and "features" in change and change["features"].shape == (2, 4):
        problem = "line 3 .*'features' holds 24 bytes; 2 boxes with 4"  # the first row says how long features are
    else:
        problem = rf"line {at + 1} \(image {'xyz'[at]}\): .*{problem}"
    with pytest.raises(DataError, match=rf"r\.tsv, {problem}") as error:  # first and last row: on opening
        opened(layout, path).get("y")
    assert error.value.message.endswith(".")


@BOTH
def test_files_that_are_no_such_tsv(tmp_path: Path, layout: str) -> None:
    path = tmp_path / "r.tsv"
    other = next(name for name in LAYOUTS if name != layout)
    write(path, other, [a_row()])
    with pytest.raises(DataError, match=rf"r\.tsv, line 1: \d+ columns where the layout {layout} has") as error:
        opened(layout, path)
    assert error.value.hint == f"open it as {other}"
    path.write_bytes(b"a\tb\n")
    with pytest.raises(DataError, match="2 columns") as error:
        opened(layout, path)
    assert error.value.hint is None
    header = b"\t".join(name.encode() for name in LAYOUTS[layout]) + b"\n"
    path.write_bytes(header + line(layout, a_row()))
    with pytest.raises(DataError, match=r"line 1 .*no whole number") as error:
        opened(layout, path)
    assert "no header" in str(error.value.hint)
    with pytest.raises(UsageProblem, match="max_boxes"):
        opened(layout, path, max_boxes=0)


@BOTH
def test_rows_without_boxes(tmp_path: Path, layout: str) -> None:
    empty = a_row("e", boxes=0)
    reader = opened(layout, write(tmp_path / "r.tsv", layout, [a_row(), empty]))
    regions = reader.get("e")
    assert (regions.boxes.shape, regions.features.shape) == ((0, 4), (0, 3))


@BOTH
def test_a_file_that_changes_while_it_is_open(tmp_path: Path, layout: str) -> None:
    rows = [a_row("a"), a_row("b", seed=1)]
    path = write(tmp_path / "r.tsv", layout, rows)
    reader = opened(layout, path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"line 2 \(image b\): the file changed"):
        reader.get("b")
    write(path, layout, rows[::-1])
    with pytest.raises(DataError, match="the file changed"):
        reader.get("a")
    reader.close()
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        reader.get("a")


@BOTH
def test_threads_share_a_reader_even_while_it_is_closed(tmp_path: Path, layout: str) -> None:
    rows = [a_row(str(n), seed=n) for n in range(40)]
    reader = opened(layout, write(tmp_path / "r.tsv", layout, rows))
    right: list[str] = []

    def read(offset: int) -> None:
        for row in rows[offset:] + rows[:offset]:
            if np.array_equal(reader.get(row["id"]).features, row["features"]):
                right.append(row["id"])
            if offset == 7:
                reader.close()

    threads = [threading.Thread(target=read, args=(n * 7,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(right) == 160


def _read_in_child(reader: ObjectTsvReader, ids: Sequence[str], results: Any) -> None:
    results.put([float(reader.get(image).features.sum()) for image in ids])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_processes_read_at_once(tmp_path: Path) -> None:
    rows = [a_row(str(n), seed=n) for n in range(20)]
    reader = opened("lxmert-tsv", write(tmp_path / "r.tsv", "lxmert-tsv", rows))
    expected = [float(row["features"].sum()) for row in rows]
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    children = [context.Process(target=_read_in_child, args=(reader, reader.ids(), results)) for _ in range(2)]
    for child in children:
        child.start()
    here = [float(reader.get(image).features.sum()) for image in reader.ids()]
    there = [results.get() for _ in children]
    for child in children:
        child.join()
    assert here == there[0] == there[1] == expected


share = st.floats(0, 0.5, width=32)
ids = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1, max_size=8).filter(
    lambda name: name.strip() == name
)


@st.composite
def tables(draw: st.DrawFn) -> list[Row]:
    dim = draw(st.integers(1, 5))
    rows = []
    for image in draw(st.lists(ids, min_size=1, max_size=4, unique=True)):
        width, height = draw(st.integers(20, 3000)), draw(st.integers(20, 3000))
        corners = draw(st.lists(st.tuples(share, share), min_size=1, max_size=4))
        boxes = np.array(
            [[x * width, y * height, (x + 0.45) * width, (y + 0.45) * height] for x, y in corners], dtype="<f4"
        )
        number = st.floats(width=32, allow_nan=False, allow_infinity=False)
        features = np.array([draw(st.lists(number, min_size=dim, max_size=dim)) for _ in corners], dtype="<f4")
        conf = np.array([draw(st.floats(0, 1, width=32)) for _ in corners], dtype="<f4")
        row = a_row(image, boxes=len(corners), w=width, h=height)
        rows.append({**row, "boxes": boxes, "features": features, "conf": conf})
    return rows


@BOTH
@given(rows=tables(), end=st.sampled_from([b"\n", b"\r\n"]))
@settings(max_examples=25)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, layout: str, rows: list[Row], end: bytes) -> None:
    path = write(tmp_path_factory.mktemp("tsv") / "r.tsv", layout, rows, end)
    for reader in (opened(layout, path), opened(layout, path)):  # the second finds the index
        assert list(reader.ids()) == [row["id"] for row in rows]
        for row in rows:
            regions = reader.get(row["id"])
            np.testing.assert_array_equal(regions.features, row["features"])
            scale = np.array([row["w"], row["h"], row["w"], row["h"]])
            np.testing.assert_allclose(regions.boxes * scale, row["boxes"], rtol=1e-5, atol=1e-3)
            assert regions.size == (row["w"], row["h"])
            if layout == "lxmert-tsv":
                if row["n"] and not row["conf"].any():  # zeros are what stands there where nothing is known
                    assert regions.confidence is None
                else:
                    np.testing.assert_array_equal(regions.confidence, row["conf"])


def read_all(layout: str, path: Path) -> dict[str, Any]:
    reader = opened(layout, path)
    return {image: reader.get(image) for image in reader.ids()}


def corrupted(tmp_path_factory: pytest.TempPathFactory, layout: str, change: Callable[[bytes], bytes]) -> Any:
    """(regions of the whole file, regions of the changed one or None if it was refused)."""
    path = write(tmp_path_factory.mktemp("tsv") / "r.tsv", layout, [a_row("a"), a_row("b", seed=1), a_row("c", seed=2)])
    whole = read_all(layout, path)
    path.write_bytes(change(path.read_bytes()))
    try:
        return whole, read_all(layout, path)
    except DataError as error:
        return whole, error


@BOTH
@given(cut=st.floats(0, 1, exclude_max=True))
@settings(max_examples=30)
def test_a_cut_file_is_refused_or_ends_earlier(
    tmp_path_factory: pytest.TempPathFactory, layout: str, cut: float
) -> None:
    whole, rest = corrupted(tmp_path_factory, layout, lambda data: data[: int(cut * len(data))])
    if isinstance(rest, DataError):
        assert "r.tsv" in rest.message
        return
    assert list(rest) == list(whole)[: len(rest)]
    for image, regions in rest.items():
        np.testing.assert_array_equal(regions.features, whole[image].features)
        np.testing.assert_array_equal(regions.boxes, whole[image].boxes)


@BOTH
@given(at=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
@settings(max_examples=50)
def test_a_changed_byte_raises_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, layout: str, at: float, byte: int
) -> None:
    def change(data: bytes) -> bytes:
        position = int(at * len(data))
        return data[:position] + bytes([byte]) + data[position + 1 :]

    whole, rest = corrupted(tmp_path_factory, layout, change)
    if isinstance(rest, DataError):
        assert "r.tsv" in rest.message
        return
    for image, regions in rest.items():
        assert regions.boxes.shape == (2, 4)
        assert regions.features.shape == (2, 3)
        if image in whole:
            assert regions.boxes.min() >= 0


@BOTH
@given(byte=st.sampled_from([ord(c) for c in string.punctuation + " " if c not in "+/="]))
@settings(max_examples=10)
def test_a_foreign_character_in_base64_is_never_skipped(
    tmp_path_factory: pytest.TempPathFactory, layout: str, byte: int
) -> None:
    def change(data: bytes) -> bytes:
        return data[:-5] + bytes([byte]) + data[-4:]  # inside the last row's features

    _, rest = corrupted(tmp_path_factory, layout, change)
    assert isinstance(rest, DataError)
    assert "line 3 (image c): 'features' is no valid base64" in rest.message
