from __future__ import annotations

import base64
import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from madkit.core.errors import DataError
from madkit.regions import open_regions

REAL = Path(__file__).parents[3] / "shared" / "data" / "regions" / "train2014_obj36.tsv"


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """The ten real rows under a name beside which an index may lie."""
    if not REAL.is_file():
        pytest.skip("the real rows are not there")
    path = tmp_path / REAL.name
    path.symlink_to(REAL)
    return path


def decoded(path: Path) -> list[dict[str, Any]]:
    """The rows as csv, base64 and NumPy alone read them."""
    names = ["img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "num_boxes", "boxes"]
    csv.field_size_limit(sys.maxsize)
    rows: list[dict[str, Any]] = []
    with path.open(newline="") as file:
        for row in csv.DictReader(file, [*names, "features"], delimiter="\t"):
            size = np.array([int(row["img_w"]), int(row["img_h"])] * 2)
            arrays = {
                name: np.frombuffer(base64.b64decode(row[name]), dtype=np.float32)
                for name in ("objects_conf", "boxes", "features")
            }
            boxes = arrays["boxes"].reshape(int(row["num_boxes"]), 4)
            rows.append({**row, **arrays, "pixels": boxes, "shares": boxes / size})
    return rows


def test_the_real_rows_are_read_as_csv_and_base64_give_them(real: Path) -> None:
    reader = open_regions("lxmert-tsv", real)
    rows = decoded(real)
    assert len(rows) == 10
    assert list(reader.ids()) == [row["img_id"] for row in rows]
    assert reader.dim == 2048
    for row, regions in zip(rows, reader.get_many(reader.ids()), strict=True):
        assert regions.features.shape == (36, 2048)
        np.testing.assert_array_equal(regions.features, row["features"].reshape(36, 2048))
        np.testing.assert_allclose(regions.boxes, row["shares"], rtol=1e-6)
        np.testing.assert_array_equal(regions.confidence, row["objects_conf"])
        assert regions.size == (int(row["img_w"]), int(row["img_h"]))
    assert (real.parent / f"{real.name}.madkit-index.npz").is_file()


def test_no_real_row_is_sorted_so_a_cut_goes_by_confidence(real: Path) -> None:
    rows = {row["img_id"]: row for row in decoded(real)}
    reader = open_regions("lxmert-tsv", real, max_boxes=10)
    unsorted = 0
    for image in reader.ids():
        regions = reader.get(image)
        scores = rows[image]["objects_conf"]
        best = sorted(range(36), key=lambda box: (-scores[box], box))[:10]
        unsorted += best != list(range(10))
        np.testing.assert_array_equal(regions.confidence, scores[best])
        np.testing.assert_array_equal(regions.features, rows[image]["features"].reshape(36, 2048)[best])
        np.testing.assert_allclose(regions.boxes, rows[image]["shares"][best], rtol=1e-6)
    assert unsorted > 0, "rows that are sorted already would show nothing"


def test_uniters_rule_on_the_real_rows(real: Path) -> None:
    reader = open_regions("lxmert-tsv", real, min_confidence=0.5, min_boxes=4, max_boxes=12)
    counts = set()
    for row in decoded(real):
        regions = reader.get(row["img_id"])
        expected = min(12, max(4, int((row["objects_conf"] > 0.5).sum())))
        assert len(regions.boxes) == len(regions.features) == expected
        assert regions.confidence is not None
        assert (np.diff(regions.confidence) <= 0).all()
        counts.add(expected)
    assert len(counts) > 1


def test_real_rows_with_height_and_width_exchanged_are_refused(real: Path) -> None:
    rows = [line.split(b"\t") for line in real.read_bytes().splitlines()]
    swapped = real.with_name("swapped.tsv")
    refused = 0
    for row in rows:
        row[1], row[2] = row[2], row[1]
        swapped.write_bytes(b"\t".join(row) + b"\n")
        with pytest.raises(DataError, match=r"swapped\.tsv, line 1 .*width and height \(or x and y\) are swapped"):
            open_regions("lxmert-tsv", swapped)
        refused += 1
    assert refused == 10


@pytest.mark.parametrize(
    ("missing", "problem"),
    [(104, "'features' holds 294834 bytes; 36 boxes with 2048 float32 each need 294912"), (101, "no valid base64")],
)
def test_a_real_file_that_was_cut_off_is_refused_on_opening(real: Path, missing: int, problem: str) -> None:
    cut = real.with_name("cut.tsv")
    cut.write_bytes(real.read_bytes().rstrip(b"\r\n")[:-missing])
    with pytest.raises(DataError, match=rf"cut\.tsv, line 10 .*{problem}") as error:
        open_regions("lxmert-tsv", cut)
    assert "cut off" in str(error.value.hint)


@pytest.mark.parametrize(
    ("confidence", "problem"),
    [
        (np.array([0.5, np.nan], "<f4"), "a confidence is NaN or infinite"),
        (np.array([0.5], "<f4"), "'objects_conf' holds 4 bytes; 2 boxes with 1 float32 each need 8"),
    ],
)
def test_impossible_confidences(tmp_path: Path, confidence: Any, problem: str) -> None:
    arrays = [confidence, np.zeros(2, "<i8"), np.ones(2, "<f4")]
    ids, conf, attrs = (base64.b64encode(a.tobytes()) for a in (np.zeros(2, "<i8"), *arrays[:2]))
    boxes = base64.b64encode(np.array([[0, 0, 5, 5], [1, 1, 9, 9]], "<f4").tobytes())
    features = base64.b64encode(np.ones((2, 3), "<f4").tobytes())
    path = tmp_path / "r.tsv"
    path.write_bytes(b"\t".join([b"a", b"10", b"10", ids, conf, attrs, conf, b"2", boxes, features]) + b"\n")
    with pytest.raises(DataError, match=rf"r\.tsv, line 1 \(image a\): .*{problem}"):
        open_regions("lxmert-tsv", path)
