from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from madkit.core.errors import DataError, NotFoundError
from madkit.regions import open_regions
from madkit.regions.mmf_npy import MmfNpyReader

Image = tuple[Any, dict[str, Any]]


def image(count: int = 6, width: int = 640, height: int = 480, seed: int = 0) -> Image:
    """Features and info of an image as MMF's extraction script keeps them."""
    draw = np.random.default_rng(seed)
    low = draw.uniform(0, 0.6, (count, 2))
    boxes = np.concatenate([low, low + draw.uniform(0.05, 0.39, (count, 2))], 1) * [width, height, width, height]
    return draw.normal(size=(count, 3)).astype(np.float32), {
        "bbox": boxes.astype(np.float32),
        "num_boxes": count,
        "objects": draw.integers(0, 1600, count),
        "cls_prob": draw.dirichlet(np.ones(9), count).astype(np.float32),
        "image_width": width,
        "image_height": height,
    }


def save(folder: Path, name: str, content: Image) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{name}.npy", content[0])
    np.save(folder / f"{name}_info.npy", content[1])  # a dictionary becomes a pickle


@given(
    shares=hnp.arrays(np.float64, st.tuples(st.integers(0, 5), st.just(4)), elements=st.floats(0, 0.49)),
    size=st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    seed=st.integers(0, 99),
    order=st.sampled_from(["C", "F"]),
)
@settings(max_examples=40)
def test_random_records_are_read_back_as_numpy_reads_them(
    tmp_path_factory: pytest.TempPathFactory, shares: Any, size: tuple[int, int], seed: int, order: Any
) -> None:
    folder = tmp_path_factory.mktemp("mmf")
    features, info = image(len(shares), *size, seed=seed)
    corners = np.concatenate([shares[:, :2], shares[:, :2] + shares[:, 2:] + 0.01], 1)
    info["bbox"] = np.asarray(corners * (size * 2), dtype=np.float32, order=order)
    save(folder, "a", (np.asarray(features, order=order), info))
    regions = MmfNpyReader(folder).get("a")
    oracle = np.load(folder / "a_info.npy", allow_pickle=True).item()
    np.testing.assert_array_equal(regions.features, np.load(folder / "a.npy"))
    absolute = regions.boxes * np.array([oracle["image_width"], oracle["image_height"]] * 2)
    np.testing.assert_allclose(absolute, oracle["bbox"], rtol=1e-5, atol=1e-3)
    assert regions.size == size
    assert regions.confidence is not None
    np.testing.assert_array_equal(regions.confidence, oracle["cls_prob"].max(axis=1, initial=0))


def test_ids_selection_and_padding(tmp_path: Path) -> None:
    features, info = image()
    info["num_boxes"] = 4  # the last two were suppressed
    save(tmp_path, "COCO_train2014_000000000009", (features, info))
    save(tmp_path, "deep/x", image(2))
    reader = open_regions("mmf-npy", tmp_path)
    assert reader.ids() == ["COCO_train2014_000000000009", "deep/x"]
    confidence = reader.get("COCO_train2014_000000000009").confidence
    expected = info["cls_prob"].max(1) * [1, 1, 1, 1, 0, 0]
    np.testing.assert_array_equal(confidence, expected)
    cut = MmfNpyReader(tmp_path, max_boxes=3).get("COCO_train2014_000000000009")
    np.testing.assert_array_equal(cut.features, features[np.argsort(-expected, kind="stable")[:3]])


def test_the_background_column_is_no_confidence(tmp_path: Path) -> None:
    features, info = image(2)
    info["cls_prob"] = np.zeros((2, 1601), np.float32)
    info["cls_prob"][:, 0] = 0.75
    info["cls_prob"][:, 7] = 0.25
    save(tmp_path, "a", (features, info))
    np.testing.assert_array_equal(MmfNpyReader(tmp_path).get("a").confidence, [0.25, 0.25])


def test_features_padded_with_zeros_behind_the_last_box(tmp_path: Path) -> None:
    features, info = image(4)
    save(tmp_path, "a", (np.concatenate([features, np.zeros((2, 3), np.float32)]), info))
    np.testing.assert_array_equal(MmfNpyReader(tmp_path).get("a").features, features)


class Touch:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    save(tmp_path, "a", image())
    features, info = image()
    save(tmp_path, "b", (features, {**info, "objects": Touch(str(tmp_path / "touched"))}))
    with pytest.raises(DataError, match=r"b_info\.npy.*mkdir"):
        MmfNpyReader(tmp_path).get("b")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda f, i: (f[:4], i), "6 boxes, but features of shape"),
        (lambda f, i: (np.concatenate([f, f[:1]]), i), "6 boxes, but features of shape"),
        (lambda f, i: (f[None], i), "6 boxes, but features of shape"),
        (lambda f, i: (f * np.nan, i), "features of 6 of 6"),
        (lambda f, i: (f.astype(str), i), "holds no numbers"),
        (lambda f, i: (f, {**i, "bbox": i["bbox"] * 5}), "outside the image"),
        (lambda f, i: (f, {**i, "bbox": i["bbox"][:, [2, 3, 0, 1]]}), "empty"),
        (lambda f, i: (f, {**i, "bbox": "x"}), "'bbox' holds no numbers"),
        (lambda f, i: (f, {**i, "image_width": "wide"}), "width is 'wide', no number"),
        (lambda f, i: (f, {**i, "image_width": -640}), "width cannot be -640"),
        (lambda f, i: (f, {**i, "num_boxes": 7}), "'num_boxes' is 7, but there are 6"),
        (lambda f, i: (f, {**i, "num_boxes": "all"}), "'num_boxes' is 'all'"),
        (lambda f, i: (f, {**i, "cls_prob": i["cls_prob"][:2]}), "'cls_prob' has the shape"),
        (lambda f, i: (f, {n: v for n, v in i.items() if n != "bbox"}), "the key 'bbox' is missing"),
        (lambda f, i: (f, np.array([1, 2])), "should hold a dictionary"),
        (lambda f, i: (f, np.array([1, {}])), "there is no dictionary in it"),
    ],
)
def test_impossible_content_is_named_with_its_file(tmp_path: Path, change: Callable[..., Image], problem: str) -> None:
    save(tmp_path, "a", image())
    save(tmp_path, "b", change(*image()))
    reader = MmfNpyReader(tmp_path)
    with pytest.raises(DataError, match=rf"b(_info)?\.npy.*{problem}"):
        reader.get("b")


def test_features_without_boxes(tmp_path: Path) -> None:
    save(tmp_path, "a", image())
    np.save(tmp_path / "b.npy", image()[0])
    with pytest.raises(NotFoundError, match=r"b_info\.npy does not exist"):
        MmfNpyReader(tmp_path).get("b")


@given(where=st.floats(0, 1), byte=st.integers(1, 255), cut=st.booleans(), info=st.booleans())
@settings(max_examples=60)
def test_damage_is_a_data_error_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, where: float, byte: int, cut: bool, info: bool
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    save(folder, "a", image())
    save(folder, "b", image())
    path = folder / ("b_info.npy" if info else "b.npy")
    raw = bytearray(path.read_bytes())
    position = min(int(where * len(raw)), len(raw) - 1)
    if cut:
        raw = raw[:position]
    else:
        raw[position] ^= byte
    path.write_bytes(raw)
    with suppress(DataError):
        MmfNpyReader(folder).get("b")
