from __future__ import annotations

import errno
import json
import os
import pickle
import threading
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from madkit.core.errors import DataError, NotFoundError, UsageProblem
from madkit.regions import open_regions, write_butd_hdf5
from madkit.regions.butd_hdf5 import ButdHdf5Reader


def items(count: int = 3, dim: int = 5) -> list[Any]:
    draw = np.random.default_rng(0)
    made = []
    for number in range(count):
        corner = draw.uniform(0, 40, (number % 3 + 1, 2))
        boxes = np.concatenate([corner, corner + draw.uniform(5, 40, corner.shape)], axis=1)
        made.append((f"im/{number}.png", boxes, draw.normal(size=(len(boxes), dim)), (100, 80)))
    return made


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "r.h5"
    written = items()
    assert write_butd_hdf5(path, iter(written)) == 3
    reader = open_regions("butd-hdf5", path)
    assert reader.dim == 5
    assert reader.ids() == ["im/0.png", "im/1.png", "im/2.png"]
    for image, boxes, features, (width, height) in reversed(written):
        regions = reader.get(image)
        np.testing.assert_allclose(regions.boxes, boxes / [width, height, width, height], rtol=1e-6)
        np.testing.assert_array_equal(regions.features, features.astype(np.float16).astype(np.float32))
        assert regions.boxes.dtype == regions.features.dtype == np.float32
        assert regions.confidence is None
    assert [p.name for p in sorted(path.parent.iterdir())] == ["r.h5", "r_imgid2idx.json"]
    reader.close()
    assert len(reader.get("im/1.png").boxes) == 2  # opens again
    reader.close()


@pytest.mark.parametrize("longest", [1, 3, 4096])
def test_many_at_once_are_the_same_as_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, longest: int) -> None:
    monkeypatch.setattr("madkit.regions.butd_hdf5._LONGEST_RUN", longest)
    write_butd_hdf5(tmp_path / "a.h5", items(9))
    fixed(tmp_path / "f.h5")
    for name, wanted in (("a.h5", [f"im/{n}.png" for n in (7, 2, 3, 4, 0, 3)]), ("f.h5", ["9", "7"])):
        reader = ButdHdf5Reader(tmp_path / name)
        for image, regions in zip(wanted, reader.get_many(wanted), strict=True):
            np.testing.assert_array_equal(regions.boxes, reader.get(image).boxes)
            np.testing.assert_array_equal(regions.features, reader.get(image).features)
        assert reader.get_many([]) == []
        with pytest.raises(NotFoundError, match="no image 'x'"):
            reader.get_many([wanted[0], "x"])
        reader.close()


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    dim, width, height = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 2000)), data.draw(st.integers(1, 2000))
    finite = st.floats(-100, 100, width=16)
    share = st.floats(0, 0.45)
    images = data.draw(
        st.dictionaries(
            st.text(min_size=1, max_size=4).filter(lambda s: s.isprintable()),
            st.lists(st.tuples(share, share, st.lists(finite, min_size=dim, max_size=dim)), max_size=4),
            min_size=1,
            max_size=4,
        )
    )
    made = {
        name: (
            np.array([[x * width, y * height, (x + 0.5) * width, (y + 0.5) * height] for x, y, _ in rows]).reshape(
                -1, 4
            ),
            np.array([vector for *_, vector in rows], dtype=np.float32).reshape(-1, dim),
        )
        for name, rows in images.items()
    }
    path = tmp_path_factory.mktemp("h5") / "r.h5"
    write_butd_hdf5(path, ((name, b, f, (width, height)) for name, (b, f) in made.items()))
    reader = ButdHdf5Reader(path)
    for name, (boxes, features) in made.items():
        regions = reader.get(name)
        np.testing.assert_array_equal(regions.features, features)
        np.testing.assert_allclose(regions.boxes * [width, height, width, height], boxes, rtol=1e-5, atol=1e-3)
    reader.close()


def fixed(path: Path) -> dict[str, Any]:
    """A file in the fixed layout, as other projects' tools write it."""
    boxes = np.array([[[0, 0, 50, 40], [10, 10, 99, 79]], [[5, 5, 20, 20], [0, 0, 99, 79]]], np.float32)
    shares = boxes / np.array([100, 80, 100, 80], np.float32)
    spatial = np.concatenate([shares, shares[..., 2:] - shares[..., :2]], axis=2)
    content = {"image_features": np.ones((2, 2, 3), np.float32), "image_bb": boxes, "spatial_features": spatial}
    save(path, content, {"9": 1, "7": 0})
    return content


def save(path: Path, content: dict[str, Any], ids: Any) -> None:
    with h5py.File(path, "w") as file:
        for name, values in content.items():
            file[name] = values
    path.with_name(f"{path.stem}_imgid2idx.json").write_text(json.dumps(ids))


def test_fixed_layout(tmp_path: Path) -> None:
    content = fixed(tmp_path / "val36.h5")
    reader = open_regions("butd-hdf5", tmp_path / "val36.h5")
    assert reader.ids() == ["7", "9"]
    np.testing.assert_array_equal(reader.get("9").boxes, content["spatial_features"][1, :, :4])
    reader.close()


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("spatial_features", lambda a: a[..., [0, 2, 1, 3, 4, 5]], "columns are not x1, y1, x2, y2"),
        ("spatial_features", lambda a: a[..., [0, 1, 2, 3, 5, 4]], "width and height columns do not fit the corners"),
        ("spatial_features", lambda a: a * [2, 1, 2, 1, 2, 1], "outside the image"),
        ("spatial_features", lambda a: a * np.nan, "a box holds NaN"),
        ("image_bb", lambda a: a[..., [1, 0, 3, 2]], "contradict each other"),
        ("image_bb", lambda a: a * np.inf, "an absolute box holds NaN or infinity"),
        ("image_features", lambda a: a * np.nan, "features of 2 of 2 regions hold NaN"),
    ],
)
def test_impossible_content_is_named_with_its_image(
    tmp_path: Path, name: str, change: Callable[[Any], Any], problem: str
) -> None:
    path = tmp_path / "r.h5"
    content = fixed(path)
    with np.errstate(invalid="ignore"):
        save(path, {**content, name: change(content[name])}, {"9": 1, "7": 0})
    reader = ButdHdf5Reader(path)
    with pytest.raises(DataError, match=rf"r\.h5, image 7: .*{problem}"):
        reader.get("7")
    reader.close()


@pytest.mark.parametrize(
    ("change", "ids", "problem"),
    [
        ({"image_bb": None}, {"7": 0, "9": 1}, "'image_bb' is missing"),
        ({"image_bb": np.zeros((2, 2, 5))}, {"7": 0, "9": 1}, "'image_bb' has the shape"),
        ({"image_bb": np.zeros((2, 3, 4))}, {"7": 0, "9": 1}, "different numbers of boxes"),
        ({"pos_boxes": np.zeros((2, 2))}, {"7": 0, "9": 1}, "'image_features' has the shape"),
        ({}, {"7": 0}, r"_imgid2idx\.json does not number the 2 images"),
        ({}, {"7": 0, "9": 2}, "does not number the 2 images"),
        ({}, {"7": 0, "9": 0}, "does not number the 2 images"),
        ({}, {"7": "0"}, "must be a JSON object from image id to row"),
        ({}, [0, 1], "must be a JSON object from image id to row"),
    ],
)
def test_a_wrong_layout_is_refused_on_opening(tmp_path: Path, change: Any, ids: Any, problem: str) -> None:
    path = tmp_path / "r.h5"
    content = {name: values for name, values in {**fixed(path), **change}.items() if values is not None}
    save(path, content, ids)
    with pytest.raises(DataError, match=problem):
        ButdHdf5Reader(path)


def test_spans_outside_the_boxes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.h5"
    flat = {name: values.reshape(4, -1) for name, values in fixed(path).items()}
    save(path, {**flat, "pos_boxes": np.array([[0, 2], [2, 5]], np.int32)}, {"7": 0, "9": 1})
    with pytest.raises(DataError, match="row 1 of 'pos_boxes' points outside the 4 boxes"):
        ButdHdf5Reader(path)
    save(path, {**flat, "pos_boxes": np.array([[0, 4], [4, 4]], np.int32)}, {"7": 0, "9": 1})
    reader = ButdHdf5Reader(path)
    assert (len(reader.get("7").boxes), len(reader.get("9").boxes)) == (4, 0)
    reader.close()


def test_missing_files_and_ids(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"none\.h5 does not exist"):
        open_regions("butd-hdf5", tmp_path / "none.h5")
    with pytest.raises(UsageProblem, match="butd-hdf5"):
        open_regions("butd-hdf", tmp_path / "none.h5")
    path = tmp_path / "r.h5"
    fixed(path)
    reader = ButdHdf5Reader(path)
    with pytest.raises(NotFoundError, match="no image '8'"):
        reader.get("8")
    reader.close()
    (tmp_path / "r_imgid2idx.json").rename(tmp_path / "kept")
    with pytest.raises(NotFoundError, match=r"neither .*r_imgid2idx\.json nor r_imgid2idx\.pkl exists"):
        ButdHdf5Reader(path)
    path.write_bytes(b"no hdf5")
    (tmp_path / "kept").rename(tmp_path / "r_imgid2idx.json")
    with pytest.raises(DataError, match="no readable HDF5 file"):
        ButdHdf5Reader(path)


def python2_pickle(rows: dict[int, int]) -> bytes:
    """{number: number} as cPickle of Python 2 writes it in its default protocol."""
    return b"(dp1\n" + b"".join(b"I%d\nI%d\ns" % item for item in rows.items()) + b"."


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("pickled", [python2_pickle({9: 1, 7: 0}), *(pickle.dumps({9: 1, 7: 0}, p) for p in range(6))])
def test_the_original_id_pickles_are_read(tmp_path: Path, pickled: bytes, adaptive: bool) -> None:
    path = tmp_path / "train36.hdf5"
    content = fixed(path)
    if adaptive:
        flat = {name: values.reshape(4, -1) for name, values in content.items()}
        save(path, {**flat, "pos_boxes": np.array([[0, 2], [2, 4]], np.int32)}, {})
    (tmp_path / "train36_imgid2idx.json").unlink()
    (tmp_path / "train36_imgid2idx.pkl").write_bytes(pickled)
    reader = ButdHdf5Reader(path)
    assert reader.ids() == ["7", "9"]
    np.testing.assert_array_equal(reader.get("9").boxes, content["spatial_features"][1, :, :4])
    assert reader.get("9").size == (100, 80)
    reader.close()


class Hostile:
    def __reduce__(self) -> Any:
        return os.system, ("exit 3",)


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ({7: 0, 9: Hostile()}, "this pickle asks for '(posix|nt).system'"),
        ([7, 9], "must be a dictionary from image id to row number"),
        ({7: 0, 9: "1"}, "the row of image '9' is '1', no number"),
        ({7: 0, 9: True}, "the row of image '9' is 'True', no number"),
        ({7: 0, (9,): 1}, "'\\(9,\\)' is no image id"),
        ({7: 0, "7": 1}, "the image '7' comes twice"),
        ({7: 0, 9: 2}, "does not number the 2 images"),
    ],
)
def test_an_impossible_id_pickle_is_refused(tmp_path: Path, rows: Any, problem: str) -> None:
    fixed(tmp_path / "train.hdf5")
    (tmp_path / "train_imgid2idx.json").unlink()
    (tmp_path / "train_imgid2idx.pkl").write_bytes(pickle.dumps(rows))
    with pytest.raises(DataError, match=rf"train_imgid2idx\.pkl.*{problem}"):
        ButdHdf5Reader(tmp_path / "train.hdf5")


def test_numpy_rows_and_python2_text_are_ids_too(tmp_path: Path) -> None:
    fixed(tmp_path / "train.hdf5")
    (tmp_path / "train_imgid2idx.json").unlink()
    (tmp_path / "train_imgid2idx.pkl").write_bytes(pickle.dumps({b"7": np.int64(0), np.int32(9): 1}))
    reader = ButdHdf5Reader(tmp_path / "train.hdf5")
    assert reader.ids() == ["7", "9"]
    reader.close()


def test_the_size_is_given_only_where_the_columns_are_exact(tmp_path: Path) -> None:
    path = tmp_path / "r.h5"
    content = fixed(path)
    rounded = {**content, "spatial_features": content["spatial_features"].astype(np.float16)}
    boxes = content["image_bb"] * [6.13, 6.13, 6.13, 6.13]
    save(path, {**rounded, "image_bb": boxes}, {"9": 1, "7": 0})
    reader = ButdHdf5Reader(path)
    assert reader.get("7").size is None
    reader.close()


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        (("im/0.png", np.ones((1, 4)), np.ones((1, 5)), (9, 9)), "'im/0.png' comes twice"),
        (("a", np.array([[0, 0, 5, 200]]), np.ones((1, 5)), (100, 80)), "image a: a box lies outside"),
        (("a", np.array([[5, 0, 5, 20]]), np.ones((1, 5)), (100, 80)), "image a: a box is empty"),
        (("a", np.array([[0, 0, 5, 20]]), np.full((1, 5), np.nan), (100, 80)), "image a: the features of 1 of 1"),
        (("a", np.array([[0, 0, 5, 20]]), np.ones((2, 5)), (100, 80)), r"1 boxes, but features of shape \(2, 5\)"),
        (("a", np.array([[0, 0, 5, 20]]), np.ones((1, 6)), (100, 80)), "different lengths"),
        (("a", np.array([[0, 0, 5, 20]]), np.full((1, 5), 1e6), (100, 80)), "does not fit float16"),
        (("a", np.array([[0, 0, 5, 20]]), np.ones((1, 5)), (0, 80)), "not positive"),
    ],
)
def test_a_wrong_item_leaves_nothing_behind(tmp_path: Path, item: Any, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        write_butd_hdf5(tmp_path / "r.h5", [*items(), item])
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_gets_full_is_said_before_hdf5_meets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HDF5 cannot close its file on a full disk, and the process ends with a segmentation fault."""
    free = [1 << 30, 8 << 20]  # after opening, another one fills the disk
    usage = namedtuple("usage", ["free"])
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(free.pop(0) if len(free) > 1 else free[0]))
    one = ("1", np.array([[1.0, 1, 5, 5]]), np.zeros((1, 4)), (10, 10))
    for _ in range(2):  # the second time it is full from the start
        with pytest.raises(OSError, match="No space left") as caught:
            write_butd_hdf5(tmp_path / "full.h5", [one])
        assert caught.value.errno == errno.ENOSPC
        assert list(tmp_path.iterdir()) == []
    free[:] = [9 << 20]
    assert write_butd_hdf5(tmp_path / "full.h5", [one]) == 1


def test_no_items(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no regions to write"):
        write_butd_hdf5(tmp_path / "r.h5", [])


def test_many_threads_read_one_file(tmp_path: Path) -> None:
    written = items(60)
    write_butd_hdf5(tmp_path / "r.h5", written)
    reader = ButdHdf5Reader(tmp_path / "r.h5")
    wrong: list[str] = []

    def read(offset: int) -> None:
        for image, _, features, _ in written[offset:] + written[:offset]:
            if not np.array_equal(reader.get(image).features, features.astype(np.float16)):
                wrong.append(image)

    threads = [threading.Thread(target=read, args=(n * 7,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    reader.close()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_reads_too(tmp_path: Path) -> None:
    write_butd_hdf5(tmp_path / "r.h5", items())
    reader = ButdHdf5Reader(tmp_path / "r.h5")
    reader.get("im/0.png")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if len(reader.get("im/1.png").boxes) == 2 else 1
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    reader.close()


def test_writing_and_reading_is_fast_and_streams(tmp_path: Path) -> None:
    features = np.ones((4, 768), np.float16)
    boxes = np.array([[0, 0, 5, 5.0]] * 4)
    start = time.process_time()
    write_butd_hdf5(tmp_path / "r.h5", ((str(i), boxes, features, (10, 10)) for i in range(3000)))
    reader = ButdHdf5Reader(tmp_path / "r.h5")
    for i in range(0, 3000, 3):
        reader.get(str(i))
    assert time.process_time() - start < 10  # CPU time, below 1 s on an idle core
    reader.close()
