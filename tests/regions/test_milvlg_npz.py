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

from madkit.core.errors import DataError
from madkit.regions import open_regions
from madkit.regions.milvlg_npz import MilvlgNpzReader


def record(count: int = 6, width: int = 640, height: int = 480, seed: int = 0) -> dict[str, Any]:
    """The arrays that the extractor gives to `savez_compressed`; boxes in its own order."""
    draw = np.random.default_rng(seed)
    low = draw.uniform(0, 0.6, (count, 2))
    boxes = np.concatenate([low, low + draw.uniform(0.05, 0.39, (count, 2))], 1) * [width, height, width, height]
    return {
        "x": draw.normal(size=(count, 3)).astype(np.float32),
        "bbox": boxes.astype(np.float32),
        "num_bbox": count,
        "image_h": height,
        "image_w": width,
        "info": {
            "image_id": "COCO_val2014_000000000042",
            "image_h": height,
            "image_w": width,
            "num_boxes": count,
            "objects_id": draw.integers(0, 1600, count),
            "objects_conf": draw.permutation(np.linspace(0.1, 0.9, count)).astype(np.float32),
            "attrs_id": draw.integers(0, 400, count),
            "attrs_conf": draw.uniform(size=count).astype(np.float32),
        },
    }


def save(path: Path, content: dict[str, Any]) -> Path:
    np.savez_compressed(path, **content)
    return path


@given(
    shares=hnp.arrays(np.float64, st.tuples(st.integers(0, 5), st.just(4)), elements=st.floats(0, 0.49)),
    size=st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    seed=st.integers(0, 99),
)
@settings(max_examples=40)
def test_random_records_are_read_back_as_numpy_reads_them(
    tmp_path_factory: pytest.TempPathFactory, shares: Any, size: tuple[int, int], seed: int
) -> None:
    count = len(shares)
    corners = np.concatenate([shares[:, :2], shares[:, :2] + shares[:, 2:] + 0.01], 1)
    content = record(count, *size, seed=seed)
    content["bbox"] = (corners * (size * 2)).astype(np.float32)
    path = save(tmp_path_factory.mktemp("m") / "a.npz", content)
    regions = MilvlgNpzReader(path.parent).get("a")
    with np.load(path, allow_pickle=True) as oracle:
        info = oracle["info"].item()
        absolute = regions.boxes * np.array([oracle["image_w"], oracle["image_h"]] * 2)
        np.testing.assert_allclose(absolute, oracle["bbox"], rtol=1e-5, atol=1e-3)
        np.testing.assert_array_equal(regions.features, oracle["x"])
        np.testing.assert_array_equal(regions.confidence, info["objects_conf"])
    assert regions.size == size


def test_boxes_are_cut_by_confidence_not_by_position(tmp_path: Path) -> None:
    content = record()
    save(tmp_path / "COCO_val2014_000000000042.npz", content)
    reader = open_regions("milvlg-npz", tmp_path, min_confidence=0.4, min_boxes=1)
    assert reader.ids() == ["COCO_val2014_000000000042"]
    regions = reader.get("COCO_val2014_000000000042")
    scores = content["info"]["objects_conf"]
    best = [n for n in np.argsort(-scores) if scores[n] > 0.4]
    assert len(best) == 4
    assert best != sorted(best)
    np.testing.assert_array_equal(regions.features, content["x"][best])


def test_info_may_be_missing_or_without_confidences(tmp_path: Path) -> None:
    content = record()
    del content["info"]["objects_conf"]
    save(tmp_path / "a.npz", content)
    del content["info"], content["num_bbox"]
    save(tmp_path / "b.npz", content)
    reader = MilvlgNpzReader(tmp_path)
    for name in ("a", "b"):
        assert reader.get(name).confidence is None
        np.testing.assert_array_equal(reader.get(name).features, content["x"])


class Touch:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def test_info_that_would_run_code_is_refused(tmp_path: Path) -> None:
    content = record()
    save(tmp_path / "a.npz", content)
    content["info"]["image_id"] = Touch(str(tmp_path / "touched"))
    save(tmp_path / "b.npz", content)
    reader = MilvlgNpzReader(tmp_path)
    with pytest.raises(DataError, match=r"b\.npz, 'info'.*mkdir"):
        reader.get("b")
    assert not (tmp_path / "touched").exists()


def swapped(content: dict[str, Any]) -> dict[str, Any]:
    return {**content, "image_w": content["image_h"], "image_h": content["image_w"]}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda c: {**c, "bbox": c["bbox"] * [0, 0, 1, 1] + [0, 0, 400, 100]} | {"image_w": 300}, "outside"),
        (lambda c: swapped({**c, "bbox": c["bbox"] * 0 + [0, 0, 630, 100]}), "swapped"),
        (lambda c: {**c, "bbox": c["bbox"] * 0 + [500, 300, 100, 120]}, "x, y, width, height"),
        (lambda c: {**c, "bbox": c["bbox"] * 0}, "empty"),
        (lambda c: {**c, "bbox": c["bbox"] * np.nan}, "NaN"),
        (lambda c: {**c, "bbox": c["bbox"][:, :3]}, r"boxes of shape \(6, 3\)"),
        (lambda c: {**c, "bbox": c["bbox"].ravel()}, r"boxes of shape \(24,\)"),
        (lambda c: {**c, "bbox": c["bbox"][:5]}, "5 boxes, but features of shape"),
        (lambda c: {**c, "num_bbox": 5}, "'num_bbox' is 5, but there are 6 boxes"),
        (lambda c: {**c, "bbox": 5}, r"boxes of shape \(\)"),
        (lambda c: {**c, "x": c["x"][:5]}, "6 boxes, but features of shape"),
        (lambda c: {**c, "x": c["x"] * np.inf}, "features of 6 of 6 regions hold NaN"),
        (lambda c: {**c, "x": c["x"].astype(complex)}, "'x' holds no numbers"),
        (lambda c: {**c, "image_h": 0}, "height cannot be 0 pixels"),
        (lambda c: {**c, "image_h": np.nan}, "height cannot be nan pixels"),
        (lambda c: {**c, "image_w": 1.5}, "width cannot be 1.5 pixels"),
        (lambda c: {**c, "image_w": [640, 480]}, "width is .*, no number"),
        (lambda c: {n: v for n, v in c.items() if n != "image_w"}, "the array 'image_w' is missing"),
        (lambda c: {**c, "info": {**c["info"], "objects_conf": np.ones(2)}}, "6 boxes, but 2 confidences"),
        (lambda c: {**c, "info": {**c["info"], "objects_conf": ["x"]}}, "'objects_conf' in 'info' holds no numbers"),
        (lambda c: {**c, "info": np.array([1, {}])}, "'info' holds no dictionary"),
        (lambda c: {**c, "info": 3}, "should hold a dictionary"),
    ],
)
def test_impossible_content_is_named_with_its_file(
    tmp_path: Path, change: Callable[[dict[str, Any]], dict[str, Any]], problem: str
) -> None:
    save(tmp_path / "a.npz", record())
    with np.errstate(invalid="ignore"):
        save(tmp_path / "b.npz", change(record()))
    reader = MilvlgNpzReader(tmp_path)
    with pytest.raises(DataError, match=rf"b\.npz.*{problem}"):
        reader.get("b")


@given(where=st.floats(0, 1), byte=st.integers(1, 255), cut=st.booleans())
@settings(max_examples=60)
def test_damage_is_a_data_error_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, where: float, byte: int, cut: bool
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    save(folder / "a.npz", record())
    raw = bytearray(save(folder / "b.npz", record()).read_bytes())
    position = min(int(where * len(raw)), len(raw) - 1)
    if cut:
        raw = raw[:position]
    else:
        raw[position] ^= byte
    (folder / "b.npz").write_bytes(raw)
    with suppress(DataError):
        MilvlgNpzReader(folder).get("b")
