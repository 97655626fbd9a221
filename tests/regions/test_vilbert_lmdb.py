from __future__ import annotations

import base64
import os
import pickle
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from madkit.core.errors import DataError, MadkitError, NotFoundError
from madkit.regions import open_regions

BOXES = np.array([[0, 0, 50, 40], [10, 10, 99, 59]], np.float32)
FEATURES = np.arange(8, dtype=np.float32).reshape(2, 4)
VCR_ID = "lsmdc_3015_CHARLIE_ST_CLOUD/3015_CHARLIE_ST_CLOUD_00.23.57.935-00.24.00.783@0.jpg"


def a_record(image: str = "9", **changes: Any) -> dict[str, Any]:
    record = {
        "image_id": image,
        "image_h": 60,
        "image_w": 100,
        "num_boxes": 2,
        "boxes": base64.b64encode(BOXES.tobytes()),
        "features": base64.b64encode(FEATURES.tobytes()),
    }
    return {key: value for key, value in {**record, **changes}.items() if value is not ...}


def write(path: Path, records: dict[str, Any], *, keys: Any = None, folder: bool = True, protocol: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    listed = [name.encode() for name in records] if keys is None else keys
    with lmdb.open(str(path), subdir=folder, map_size=1 << 24) as environment, environment.begin(write=True) as t:
        for name, record in records.items():
            t.put(name.encode(), record if isinstance(record, bytes) else pickle.dumps(record, protocol))
        if keys is not ...:
            t.put(b"keys", pickle.dumps(listed, protocol))
    return path


RECORDS = {"9": a_record(), VCR_ID: a_record(VCR_ID, features=base64.b64encode((FEATURES + 1).tobytes()))}


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("folder", [True, False])
def test_a_folder_and_a_single_file(tmp_path: Path, folder: bool, protocol: int) -> None:
    path = write(tmp_path / "f.lmdb", RECORDS, folder=folder, protocol=protocol)
    before = sorted(tmp_path.rglob("*"))
    reader = open_regions("vilbert-lmdb", path)
    assert list(reader.ids()) == ["9", VCR_ID]
    assert reader.dim == 4
    regions = reader.get(VCR_ID)
    np.testing.assert_array_equal(regions.features, FEATURES + 1)
    np.testing.assert_allclose(regions.boxes, BOXES / [100, 60, 100, 60], rtol=1e-6)
    assert (regions.size, regions.confidence) == ((100, 60), None)
    with pytest.raises(NotFoundError, match="no image '8'"):
        reader.get("8")
    with pytest.raises(NotFoundError, match="no image 'keys'"):
        reader.get("keys")
    assert len(open_regions("vilbert-lmdb", path).get("9").boxes) == 2  # a second reader of the same file
    reader.close()
    assert len(reader.get("9").boxes) == 2  # opens again
    reader.close()
    assert sorted(tmp_path.rglob("*")) == before  # no lock file comes into being


# Python 2's cPickle, protocol 2: text as byte strings.
PYTHON2 = (
    b"\x80\x02}q\x01(U\x08image_idU\x019U\x07image_hK<U\x07image_wKdU\tnum_boxesK\x01U\x05boxesU\x18"
    + base64.b64encode(BOXES[:1].tobytes())
    + b"U\x08featuresU\x18"
    + base64.b64encode(FEATURES[0].tobytes())
    + b"u."
)


@pytest.mark.parametrize(
    "record",
    [
        PYTHON2,
        a_record(num_boxes=1, boxes=BOXES[:1], features=FEATURES[:1]),
        a_record(num_boxes=np.int64(1), boxes=BOXES[:1].astype(np.float64), features=FEATURES[:1].astype(np.float16)),
        a_record(num_boxes=1, boxes=base64.b64encode(BOXES[:1].tobytes()).decode(), features=FEATURES[:1]),
    ],
)
def test_other_ways_to_write_the_arrays(tmp_path: Path, record: Any) -> None:
    reader = open_regions("vilbert-lmdb", write(tmp_path / "f.lmdb", {"9": record}, keys=["9"]))
    regions = reader.get("9")
    np.testing.assert_array_equal(regions.features, FEATURES[:1])
    np.testing.assert_allclose(regions.boxes, BOXES[:1] / [100, 60, 100, 60], rtol=1e-6)
    assert type(regions.features) is np.ndarray
    reader.close()


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


def test_code_in_records_and_keys_is_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    path = write(tmp_path / "a.lmdb", {"9": a_record(), "10": a_record(boxes=Hostile(marker))})
    reader = open_regions("vilbert-lmdb", path)
    with pytest.raises(DataError, match=r"a\.lmdb, image 10: this pickle asks for '\w+\.system'"):
        reader.get("10")
    reader.close()
    with pytest.raises(DataError, match=r"b\.lmdb, record 'keys': this pickle asks for '\w+\.system'"):
        open_regions("vilbert-lmdb", write(tmp_path / "b.lmdb", RECORDS, keys=[b"9", Hostile(marker)]))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        (..., "the record 'keys', a list of all image ids, is missing"),
        ({"a": 1}, "record 'keys': no list of image ids"),
        ([1, 2], "record 'keys': no list of image ids"),
        ([b"9", "9"], "record 'keys': the image '9' is listed twice"),
        ([], "holds no region features"),
        ([b"8", b"9"], "image 8: listed under 'keys', but it has no record"),
        ([b"x" * 600], "listed under 'keys', but it has no record"),
        ([b""], "listed under 'keys', but it has no record"),
    ],
)
def test_a_wrong_list_of_keys_is_refused_on_opening(tmp_path: Path, keys: Any, problem: str) -> None:
    path = write(tmp_path / "f.lmdb", {"9": a_record()}, keys=keys)
    with pytest.raises(DataError, match=rf"f\.lmdb.*{problem}"):
        open_regions("vilbert-lmdb", path)


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ([1], "the record is no dictionary"),
        (b"\x80\x02}", "this is no readable pickle"),
        (a_record(num_boxes=3), "'boxes' holds 32 bytes; 3 boxes"),
        (a_record(num_boxes="2"), "'num_boxes' is 2 and no number of boxes"),
        (a_record(num_boxes=...), "'num_boxes' is None"),
        (a_record(boxes=...), "'boxes' is missing, or neither base64 nor an array"),
        (a_record(features=b"AAA*"), "'features' is no valid base64"),
        (a_record(features="\u20ac" * 4), "'features' is no valid base64"),
        (a_record(features=np.array([None, 1])), "'features' is missing, or neither"),
        (a_record(features=FEATURES[:1]), r"'features' has the shape \(1, 4\), which does not fit 2 boxes"),
        (a_record(boxes=np.ones((2, 5))), r"'boxes' has the shape \(2, 5\)"),
        (a_record(features=np.full((2, 4), np.inf)), "the features of 2 of 2 regions hold NaN or infinity"),
        (a_record(features=np.ones((2, 5))), "features of length 5, those of 9 have 4"),
        (a_record(image_w=60, image_h=100), "all fit 100 x 60: width and height"),
        (a_record(image_w=...), "the image's width is 'None', no number"),
        (a_record(boxes=BOXES * 3), "a box lies outside the image"),
    ],
)
def test_a_wrong_record_is_named(tmp_path: Path, record: Any, problem: str) -> None:
    reader = open_regions("vilbert-lmdb", write(tmp_path / "f.lmdb", {"9": a_record(), "10": record}))
    with pytest.raises(DataError, match=rf"f\.lmdb, image 10: .*{problem}"):
        reader.get("10")
    reader.close()


def test_what_is_no_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFoundError, match=r"none\.lmdb does not exist"):
        open_regions("vilbert-lmdb", tmp_path / "none.lmdb")
    (tmp_path / "f.lmdb").write_bytes(b"no database" * 1000)
    with pytest.raises(DataError, match=r"f\.lmdb is no LMDB database"):
        open_regions("vilbert-lmdb", tmp_path / "f.lmdb")
    path = write(tmp_path / "cut.lmdb", {str(n): a_record() for n in range(200)}, folder=False)
    path.write_bytes(path.read_bytes()[:8192])
    with pytest.raises(DataError, match=r"cut\.lmdb is cut off"):
        open_regions("vilbert-lmdb", path)
    monkeypatch.setitem(__import__("sys").modules, "lmdb", None)
    with pytest.raises(MadkitError, match="the package lmdb is not installed") as error:
        open_regions("vilbert-lmdb", tmp_path / "cut.lmdb")
    assert "pip install" in str(error.value.hint)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_threads_and_a_forked_process(tmp_path: Path) -> None:
    records = {str(n): a_record(str(n), features=base64.b64encode((FEATURES + n).tobytes())) for n in range(30)}
    reader = open_regions("vilbert-lmdb", write(tmp_path / "f.lmdb", records))
    right: list[int] = []

    def read(offset: int) -> None:
        for n in range(30):
            which = (n * 7 + offset) % 30
            if (reader.get(str(which)).features == FEATURES + which).all():
                right.append(which)

    threads = [threading.Thread(target=read, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(right) == 120
    child = os.fork()
    if child == 0:
        code = 1
        with suppress(BaseException):
            code = 0 if (reader.get("17").features == FEATURES + 17).all() else 1
        os._exit(code)
    assert (reader.get("3").features == FEATURES + 3).all()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    reader.close()


PICKLED = pickle.dumps(a_record(), 2)


@given(at=st.integers(0, len(PICKLED) - 1), byte=st.integers(0, 255), cut=st.booleans())
@settings(max_examples=60)
def test_a_damaged_record_raises_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, at: int, byte: int, cut: bool
) -> None:
    damaged = PICKLED[:at] if cut else PICKLED[:at] + bytes([byte]) + PICKLED[at + 1 :]
    path = write(tmp_path_factory.mktemp("l") / "f.lmdb", {"9": a_record(), "10": damaged})
    reader = open_regions("vilbert-lmdb", path)
    try:
        regions = reader.get("10")
    except DataError as error:
        assert "f.lmdb, image 10" in error.message  # noqa: PT017 (either outcome is right)
    else:
        assert not cut
        assert regions.features.shape == (2, 4)
    finally:
        reader.close()


@given(
    count=st.integers(1, 4),
    dim=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
    size=st.tuples(st.integers(20, 3000), st.integers(20, 3000)),
    encoded=st.booleans(),
)
@settings(max_examples=30)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, count: int, dim: int, seed: int, size: tuple[int, int], encoded: bool
) -> None:
    draw = np.random.default_rng(seed)
    corner = draw.uniform(0, 0.5, (count, 2))
    sides = np.array([*size, *size])
    boxes = (np.concatenate([corner, corner + 0.45], axis=1) * sides).astype(np.float32)
    features = draw.normal(size=(count, dim)).astype(np.float32)
    arrays = [base64.b64encode(a.tobytes()) if encoded else a for a in (boxes, features)]
    record = a_record(image_w=size[0], image_h=size[1], num_boxes=count, boxes=arrays[0], features=arrays[1])
    path = write(tmp_path_factory.mktemp("l") / "f.lmdb", {"9": record})
    reader = open_regions("vilbert-lmdb", path)
    regions = reader.get("9")
    np.testing.assert_array_equal(regions.features, features)
    np.testing.assert_allclose(regions.boxes * sides, boxes, rtol=1e-5, atol=1e-3)
    assert regions.size == size
    reader.close()
