from __future__ import annotations

import base64
import json
import os
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from madkit.core.errors import DataError, NotFoundError
from madkit.regions import open_regions
from madkit.regions.vl_bert import folder_of

BOXES = np.array([[0, 0, 50, 40], [10, 10, 99, 59], [5, 5, 20, 20]], np.float32)
FEATURES = np.arange(12, dtype=np.float32).reshape(3, 4)


def encoded(array: Any) -> str:
    return base64.b64encode(np.asarray(array, np.float32).tobytes()).decode()


def a_record(**changes: Any) -> dict[str, Any]:
    record = {
        "image_w": 100,
        "image_h": 60,
        "num_boxes": 3,
        "boxes": encoded(BOXES),
        "features": encoded(FEATURES),
    }
    return {key: value for key, value in {**record, **changes}.items() if value is not ...}


def folder(path: Path, records: dict[str, Any]) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, record in records.items():
        (path / f"{name}.json").write_text(json.dumps(record))
    return path


def zipped(path: Path, inside: str, records: dict[str, Any], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, record in records.items():
            file.writestr(f"{inside}{name}.json", json.dumps(record))
    return path


RECORDS = {"9": a_record(), "150367": a_record(features=encoded(FEATURES + 1)), "42": a_record()}


def check(reader: Any) -> None:
    assert list(reader.ids()) == ["9", "42", "150367"]
    assert reader.dim == 4
    regions = reader.get("150367")
    np.testing.assert_array_equal(regions.features, FEATURES + 1)
    np.testing.assert_allclose(regions.boxes, BOXES / [100, 60, 100, 60], rtol=1e-6)
    assert (regions.size, regions.confidence) == ((100, 60), None)
    assert regions.features.flags.writeable
    with pytest.raises(NotFoundError, match="has no image '43'"):
        reader.get("43")


def test_a_folder(tmp_path: Path) -> None:
    check(open_regions("vl-bert", folder(tmp_path / "trainval", RECORDS)))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    ("inside", "spelling"),
    [
        ("trainval/", "x.zip@/trainval"),
        ("trainval/", "x.zip/trainval"),
        ("trainval/", "x.zip"),
        ("", "x.zip"),
        ("", "x.zip@/"),
        ("a/trainval/", "x.zip@/a/trainval"),
        ("a/trainval/", "x.zip@/a"),
    ],
)
def test_a_zip_in_each_spelling(tmp_path: Path, inside: str, spelling: str, method: int) -> None:
    zipped(tmp_path / "x.zip", inside, RECORDS, method)
    path = tmp_path / spelling
    if spelling == "x.zip@/a":
        reader = open_regions("vl-bert", path)
        assert list(reader.ids()) == ["trainval/150367", "trainval/42", "trainval/9"]
        return
    check(open_regions("vl-bert", path))


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    zipped(tmp_path / "x.zip", "a/", RECORDS)
    with zipfile.ZipFile(tmp_path / "x.zip", "a") as file:
        file.writestr("b/1.json", "{}")
    with pytest.raises(DataError, match=r"x\.zip holds several folders of JSON files \(a, b\)") as error:
        folder_of(tmp_path / "x.zip")
    assert error.value.hint == f"name one: {tmp_path / 'x.zip'}@/FOLDER"
    assert list(open_regions("vl-bert", tmp_path / "x.zip@/a").ids()) == ["9", "42", "150367"]
    with pytest.raises(NotFoundError, match=r"x\.zip has no folder 'c'"):
        open_regions("vl-bert", tmp_path / "x.zip@/c")
    for missing in ("y.zip@/a", "nothing", "y.zip"):
        with pytest.raises(NotFoundError, match="neither a folder nor in a zip"):
            open_regions("vl-bert", tmp_path / missing)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no region features"):
        open_regions("vl-bert", tmp_path / "empty")
    (tmp_path / "x.zip").write_bytes((tmp_path / "x.zip").read_bytes()[:-60])
    with pytest.raises(DataError, match=r"x\.zip is no readable zip"):
        open_regions("vl-bert", tmp_path / "x.zip@/a")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"scores": encoded([0.2, 0.9, 0.5])}, [0.2, 0.9, 0.5]),
        ({"scores": [0.2, 0.9, 0.5]}, [0.2, 0.9, 0.5]),
        ({"scores": [[0.2], [0.9], [0.5]]}, [0.2, 0.9, 0.5]),
        ({"classes": encoded([[0.1, 0.2], [0.9, 0.1], [0.5, 0.3]])}, [0.2, 0.9, 0.5]),
        ({"classes": encoded([[0.1, 0.2]] * 3), "scores": [0.2, 0.9, 0.5]}, [0.2, 0.9, 0.5]),
        ({"classes": encoded([7, 8, 9])}, None),
        ({"classes": [7, 8, 9], "attributes": [1, 2, 3], "image_box_feature": encoded(np.ones(4))}, None),
    ],
)
def test_optional_keys(tmp_path: Path, change: dict[str, Any], expected: list[float] | None) -> None:
    reader = open_regions("vl-bert", folder(tmp_path / "f", {"1": a_record(**change)}))
    regions = reader.get("1")
    np.testing.assert_array_equal(regions.features, FEATURES)
    if expected is None:
        assert regions.confidence is None
        return
    np.testing.assert_array_equal(regions.confidence, np.array(expected, np.float32))
    best = open_regions("vl-bert", tmp_path / "f", max_boxes=2).get("1")
    np.testing.assert_array_equal(best.features, FEATURES[[1, 2]])
    kept = open_regions("vl-bert", tmp_path / "f", min_confidence=0.5, min_boxes=0).get("1")
    np.testing.assert_array_equal(kept.features, FEATURES[[1]])


def test_base64_with_line_breaks(tmp_path: Path) -> None:
    lines = base64.encodebytes(FEATURES.tobytes() * 20).decode()  # a line feed after 76 characters
    assert lines.count("\n") > 1
    record = a_record(features=lines)
    np.testing.assert_array_equal(
        open_regions("vl-bert", folder(tmp_path / "f", {"1": record})).get("1").features,
        np.frombuffer(FEATURES.tobytes() * 20, np.float32).reshape(3, -1),
    )


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"num_boxes": 4}, "'boxes' holds 48 bytes; 4 boxes"),
    ({"num_boxes": "3"}, "'num_boxes' is 3 and no number of boxes"),
    ({"num_boxes": True}, "'num_boxes' is True"),
    ({"num_boxes": -1}, "'num_boxes' is -1"),
    ({"num_boxes": 10**30}, "'boxes' holds 48 bytes"),
    ({"num_boxes": ...}, "'num_boxes' is None"),
    ({"boxes": ...}, "'boxes' is missing or no text"),
    ({"features": [1, 2]}, "'features' is missing or no text"),
    ({"features": "AAA*"}, "'features' is no valid base64"),
    ({"features": "\u00e9AAA"}, "'features' is no valid base64"),
    ({"features": "\ud800AAA"}, "'features' is no valid base64"),
    ({"features": encoded(FEATURES)[:-4]}, "'features' holds 4[0-9] bytes"),
    ({"features": encoded(FEATURES * np.nan)}, "the features of 3 of 3 regions hold NaN"),
    ({"image_w": ...}, "the image's width is 'None', no number"),
    ({"image_h": 0}, "the image's height cannot be 0 pixels"),
    ({"image_h": {}}, "the image's height is"),
    ({"image_w": 60, "image_h": 100}, "all fit 100 x 60: width and height"),
    ({"boxes": encoded(BOXES * 3)}, "a box lies outside the image"),
    ({"boxes": encoded(BOXES[:, [2, 1, 0, 3]])}, "a box is empty or its columns"),
    ({"scores": [0.1, 0.2]}, "3 boxes, but 2 confidences"),
    ({"scores": ["a", "b", "c"]}, "'scores' is no list of numbers"),
    ({"scores": [[1], [1, 2], []]}, "'scores' is no list of numbers"),
    ({"scores": encoded([0.1])}, "'scores' holds 4 bytes"),
    ({"scores": [0.1, float("nan"), 0.2]}, "a confidence is NaN"),
    ({"classes": encoded([1] * 7)}, "'classes' holds 28 bytes"),
]


@pytest.mark.parametrize(("change", "problem"), WRONG)
def test_a_wrong_record_is_named(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    reader = open_regions("vl-bert", folder(tmp_path / "f", {"1": a_record(), "7": a_record(**change)}))
    reader.get("1")
    with pytest.raises(DataError, match=rf"f/7\.json: .*{problem}"):
        reader.get("7")


@pytest.mark.parametrize("content", ["", "[]", '{"num_boxes": 3', "\xff", "[" * 100_000, "null"])
def test_a_file_that_is_no_json_object(tmp_path: Path, content: str) -> None:
    path = folder(tmp_path / "f", {"1": a_record()})
    (path / "7.json").write_bytes(content.encode("latin1"))
    with pytest.raises(DataError, match=r"f/7\.json is no (valid JSON|JSON object)"):
        open_regions("vl-bert", path).get("7")


def test_features_of_another_length(tmp_path: Path) -> None:
    path = folder(tmp_path / "f", {"1": a_record(), "7": a_record(features=encoded(np.ones((3, 5))))})
    with pytest.raises(DataError, match="features of length 5, those of 1 have 4"):
        open_regions("vl-bert", path).get("7")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_reads_the_zip_too(tmp_path: Path) -> None:
    zipped(tmp_path / "x.zip", "a/", RECORDS)
    reader = open_regions("vl-bert", tmp_path / "x.zip@/a")
    reader.get("9")
    child = os.fork()
    if child == 0:
        code = 1
        with suppress(BaseException):
            code = 0 if (reader.get("150367").features == FEATURES + 1).all() else 1
        os._exit(code)
    check(reader)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@given(st.data())
@settings(max_examples=40)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    dim, count = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    width, height = data.draw(st.integers(20, 3000)), data.draw(st.integers(20, 3000))
    share = st.floats(0, 0.5)
    corners = np.array(data.draw(st.lists(st.tuples(share, share), min_size=count, max_size=count)))
    boxes = (np.concatenate([corners, corners + 0.45], axis=1) * [width, height, width, height]).astype(np.float32)
    number = st.floats(width=32, allow_nan=False, allow_infinity=False)
    values = data.draw(st.lists(number, min_size=count * dim, max_size=count * dim))
    features = np.array(values, np.float32).reshape(count, dim)
    record = a_record(image_w=width, image_h=height, num_boxes=count, boxes=encoded(boxes), features=encoded(features))
    regions = open_regions("vl-bert", folder(tmp_path_factory.mktemp("v"), {"1": record})).get("1")
    np.testing.assert_array_equal(regions.features, features)
    np.testing.assert_allclose(regions.boxes * [width, height, width, height], boxes, rtol=1e-5, atol=1e-3)
    assert regions.size == (width, height)


def outcome(path: Path, change: Callable[[bytes], bytes]) -> Any:
    file = folder(path, {"1": a_record(scores=encoded([0.5, 0.25, 1]))}) / "1.json"
    file.write_bytes(change(file.read_bytes()))
    try:
        return open_regions("vl-bert", path).get("1")
    except DataError as error:
        return error


@given(st.floats(0, 1, exclude_max=True))
@settings(max_examples=40)
def test_a_cut_file_is_refused(tmp_path_factory: pytest.TempPathFactory, cut: float) -> None:
    path = tmp_path_factory.mktemp("v")
    error = outcome(path, lambda data: data[: int(cut * len(data))])
    assert isinstance(error, DataError)
    assert "1.json is no valid JSON" in error.message


@given(at=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
@settings(max_examples=80)
def test_a_changed_byte_raises_nothing_else(tmp_path_factory: pytest.TempPathFactory, at: float, byte: int) -> None:
    def change(data: bytes) -> bytes:
        position = int(at * len(data))
        return data[:position] + bytes([byte]) + data[position + 1 :]

    result = outcome(tmp_path_factory.mktemp("v"), change)
    assert isinstance(result, DataError) or result.features.shape == (3, 4)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@given(at=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
@settings(max_examples=80)
def test_a_changed_byte_in_the_zip_raises_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, method: int, at: float, flip: int
) -> None:
    path = zipped(tmp_path_factory.mktemp("z") / "x.zip", "a/", {"1": a_record()}, method)
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= flip
    path.write_bytes(content)
    try:
        regions = open_regions("vl-bert", path).get("1")
    except (DataError, NotFoundError):  # the name may be what changed
        return
    np.testing.assert_array_equal(regions.features, FEATURES)
