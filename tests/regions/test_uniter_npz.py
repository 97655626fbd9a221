from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from madkit.core.errors import DataError, NotFoundError, UsageProblem
from madkit.regions import open_regions
from madkit.regions.uniter_npz import UniterNpzReader


def record(count: int = 5, dim: int = 4, seed: int = 0, dtype: str = "float16") -> dict[str, Any]:
    """What UNITER's extractor keeps of an image, boxes by falling confidence."""
    draw = np.random.default_rng(seed)
    low = draw.uniform(0, 0.6, (count, 2))
    high = low + draw.uniform(0.05, 0.39, (count, 2)) * [1, 0.5]
    return {
        "norm_bb": np.concatenate([low, high, high - low], 1).astype(dtype),
        "features": draw.normal(size=(count, dim)).astype(dtype),
        "conf": np.sort(draw.uniform(0.01, 0.99, (count, 1)), axis=0)[::-1].astype(dtype),
        "soft_labels": draw.uniform(size=(count, 7)).astype(dtype),
    }


def save(folder: Path, **images: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, arrays in images.items():
        np.savez_compressed(folder / f"{name}.npz", **arrays)
    return folder


shares = st.integers(0, 1000).map(lambda n: n / 2048)  # exact in float16, below a half


@given(
    corners=hnp.arrays(np.float32, st.tuples(st.integers(0, 6), st.just(4)), elements=shares.map(np.float32)),
    data=st.data(),
    dtype=st.sampled_from(["float16", "float32", ">f4", "float64"]),
)
@settings(max_examples=40)
def test_random_records_are_read_back_as_numpy_reads_them(
    tmp_path_factory: pytest.TempPathFactory, corners: Any, data: st.DataObject, dtype: str
) -> None:
    count = len(corners)
    boxes = np.concatenate([corners[:, :2], corners[:, :2] + corners[:, 2:] + np.float32(1 / 2048)], 1)
    located = np.concatenate([boxes, boxes[:, 2:] - boxes[:, :2]], 1)
    finite = st.floats(-1000, 1000, width=16)
    features = data.draw(hnp.arrays(np.float16, (count, 3), elements=finite))
    confidence = data.draw(hnp.arrays(np.float16, (count, 1), elements=st.floats(0, 1, width=16)))
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    arrays = {"norm_bb": located, "features": features, "conf": confidence}
    np.savez(path, **{name: values.astype(dtype) for name, values in arrays.items()})
    regions = UniterNpzReader(path.parent).get("a.npz")
    with np.load(path) as oracle:
        np.testing.assert_array_equal(regions.boxes, oracle["norm_bb"][:, :4])
        np.testing.assert_array_equal(regions.features, oracle["features"])
        np.testing.assert_array_equal(regions.confidence, oracle["conf"][:, 0])
    assert regions.boxes.dtype == regions.features.dtype == np.float32
    assert regions.size is None


def test_ids_are_names_and_paths_below_the_folder(tmp_path: Path) -> None:
    save(tmp_path, coco_val2014_000000000042=record(3), coco_val2014_000000000009=record(2))
    save(tmp_path / "more", x=record(4))
    save(tmp_path / ".hidden", y=record(4))
    (tmp_path / "nbb_th0.2_max100_min10.json").write_text("{}")
    reader = open_regions("uniter-npz", tmp_path)
    assert reader.ids() == ["coco_val2014_000000000009.npz", "coco_val2014_000000000042.npz", "more/x.npz"]
    assert reader.dim == 4
    many = reader.get_many(["more/x.npz", "coco_val2014_000000000009.npz"])
    assert [len(regions.boxes) for regions in many] == [4, 2]
    with pytest.raises(NotFoundError, match=r"no image 'more/y\.npz'\. Did you mean 'more/x\.npz'"):
        reader.get("more/y.npz")
    reader.close()


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        ({}, 6),
        ({"min_confidence": 0.2}, 6),  # ten at least
        ({"min_confidence": 0.2, "min_boxes": 1}, 3),
        ({"min_confidence": 0.2, "min_boxes": 4}, 4),
        ({"min_confidence": 0.2, "min_boxes": 1, "max_boxes": 2}, 2),
        ({"min_confidence": 0.05, "min_boxes": 1, "max_boxes": 5}, 5),
        ({"max_boxes": 2}, 2),
        ({"max_boxes": 9}, 6),
    ],
)
def test_unsorted_boxes_are_sorted_before_any_is_left_out(tmp_path: Path, limits: dict[str, Any], kept: int) -> None:
    content = record(6)
    content["conf"] = np.array([[0.1], [0.9], [0.125], [0.5], [0.15], [0.25]], np.float16)
    save(tmp_path, a=content)
    regions = UniterNpzReader(tmp_path, **limits).get("a.npz")
    order = [0, 1, 2, 3, 4, 5] if kept == 6 else [1, 3, 5, 4, 2, 0][:kept]
    np.testing.assert_array_equal(regions.features, content["features"][order])
    np.testing.assert_array_equal(regions.boxes, content["norm_bb"][order, :4])


def test_without_confidences_no_box_is_left_out_by_guess(tmp_path: Path) -> None:
    content = record(6)
    del content["conf"]
    save(tmp_path, a=content)
    assert UniterNpzReader(tmp_path, max_boxes=6).get("a.npz").confidence is None
    with pytest.raises(DataError, match=r"a\.npz: 6 boxes without confidences"):
        UniterNpzReader(tmp_path, max_boxes=5)
    with pytest.raises(DataError, match="without confidences"):
        UniterNpzReader(tmp_path, min_confidence=0.2)


@pytest.mark.parametrize(
    "limits", [{"min_confidence": 2}, {"max_boxes": 0}, {"min_boxes": -1}, {"min_boxes": 5, "max_boxes": 4}]
)
def test_impossible_limits(tmp_path: Path, limits: dict[str, Any]) -> None:
    save(tmp_path, a=record())
    with pytest.raises(UsageProblem):
        UniterNpzReader(tmp_path, **limits)


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("norm_bb", lambda a: a[:, [0, 1, 2, 3, 5, 4]], "but 4 and 5 are height and width"),
        ("norm_bb", lambda a: a[:, [0, 1, 4, 5, 2, 3]], "columns 2 and 3 of 'norm_bb' are width and height|empty"),
        ("norm_bb", lambda a: a[:, [1, 0, 3, 2, 4, 5]], "or the corners are y1, x1, y2, x2"),
        ("norm_bb", lambda a: a * [640, 480, 640, 480, 640, 480], "holds pixels"),
        ("norm_bb", lambda a: a - [0.7, 0, 0.7, 0, 0, 0], "outside the image"),
        ("norm_bb", lambda a: np.where(np.arange(6) == 2, a[:, :1], a) * [1, 1, 1, 1, 0, 1], "empty|do not fit"),
        ("norm_bb", lambda a: a * np.nan, "NaN"),
        ("norm_bb", lambda a: a[:, :4], r"'norm_bb' has the shape \(5, 4\)"),
        ("norm_bb", lambda a: a[0], r"'norm_bb' has the shape \(6,\)"),
        ("norm_bb", lambda a: np.concatenate([a, np.ones((5, 1))], 1), "seventh column"),
        ("norm_bb", lambda a: a[:4], "4 boxes, but features of shape"),
        ("features", lambda a: a * np.nan, "features of 5 of 5 regions hold NaN"),
        ("features", lambda a: a[:, 0], "5 boxes, but features of shape"),
        ("features", lambda a: a[:, :0], "5 boxes, but features of shape"),
        ("features", lambda a: a.astype(str), "'features' holds no numbers"),
        ("features", lambda a: a.astype(object), "'features' holds no numbers"),
        ("conf", lambda a: a[:3], "5 boxes, but 3 confidences"),
        ("conf", lambda a: a * np.nan, "a confidence is NaN"),
    ],
)
def test_impossible_content_is_named_with_its_file(
    tmp_path: Path, name: str, change: Callable[[Any], Any], problem: str
) -> None:
    content = record()
    save(tmp_path, good=record(), wrong={**content, name: change(content[name])})
    reader = UniterNpzReader(tmp_path)
    with pytest.raises(DataError, match=rf"(?s)wrong\.npz.*({problem})"):
        reader.get("wrong.npz")


def test_seven_columns_with_the_area_last_are_fine(tmp_path: Path) -> None:
    content = record(dtype="float32")
    located = content["norm_bb"]
    content["norm_bb"] = np.concatenate([located, located[:, 4:5] * located[:, 5:]], 1)
    save(tmp_path, a=content)
    np.testing.assert_array_equal(UniterNpzReader(tmp_path).get("a.npz").boxes, located[:, :4])


def test_narrow_boxes_survive_float16(tmp_path: Path) -> None:
    boxes = np.array([[1800 / 1920, 0.5, 1800.4 / 1920, 0.75, 0.4 / 1920, 0.25]]).astype(np.float16)
    assert boxes[0, 0] == boxes[0, 2]
    save(tmp_path, a={**record(1), "norm_bb": boxes})
    read = UniterNpzReader(tmp_path).get("a.npz").boxes[0]
    assert read[2] - read[0] == pytest.approx(0.4 / 1920, rel=1e-2)


def test_features_of_another_length_and_missing_arrays(tmp_path: Path) -> None:
    lacking = record()
    del lacking["features"]
    save(tmp_path, a=record(), b=record(dim=5), c=lacking)
    reader = UniterNpzReader(tmp_path)
    with pytest.raises(DataError, match=r"features of length 5, those of a\.npz have 4"):
        reader.get("b.npz")
    with pytest.raises(DataError, match=r"c\.npz: the array 'features' is missing"):
        reader.get("c.npz")


def test_no_folder_or_nothing_in_it(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        UniterNpzReader(tmp_path / "none")
    with pytest.raises(DataError, match="holds no region features"):
        UniterNpzReader(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="is a file"):
        UniterNpzReader(tmp_path / "file")


@given(where=st.floats(0, 1), byte=st.integers(1, 255), cut=st.booleans())
@settings(max_examples=60)
def test_damage_is_a_data_error_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, where: float, byte: int, cut: bool
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    save(folder, a=record(), b=record())
    raw = bytearray((folder / "b.npz").read_bytes())
    position = min(int(where * len(raw)), len(raw) - 1)
    if cut:
        raw = raw[:position]
    else:
        raw[position] ^= byte
    (folder / "b.npz").write_bytes(raw)
    reader = UniterNpzReader(folder)
    with suppress(DataError):
        reader.get("b.npz")


def test_a_folder_inside_a_zip(tmp_path: Path) -> None:
    import shutil

    save(tmp_path / "f", a=record(3))
    packed = Path(shutil.make_archive(str(tmp_path / "f"), "zip", tmp_path / "f"))
    np.testing.assert_array_equal(UniterNpzReader(packed).get("a.npz").features, record(3)["features"])
