from __future__ import annotations

import base64
import csv
import io
from pathlib import Path

import numpy as np
import pytest

from madkit.core.errors import DataError
from madkit.regions import open_regions

# The column names with which the classic extraction tool opens csv.DictWriter: the width stands before the height.
FIELDS = ["image_id", "image_w", "image_h", "num_boxes", "boxes", "features"]


def written(path: Path, *, swap: bool = False) -> np.ndarray:
    """Two rows through csv.DictWriter, as the extraction tool writes them; returns the boxes of the second."""
    boxes = np.array([[0, 0, 639, 100], [20.5, 10, 400, 479]], np.float32)
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, delimiter="\t")
    for image, count in ((150367, 1), (458752, 2)):
        writer.writerow(
            {
                "image_id": image,
                "image_w": 480 if swap else 640,
                "image_h": 640 if swap else 480,
                "num_boxes": count,
                "boxes": base64.b64encode(boxes[:count].tobytes()).decode(),
                "features": base64.b64encode(np.full((count, 4), image, np.float32).tobytes()).decode(),
            }
        )
    path.write_bytes(text.getvalue().encode())
    return boxes


def test_rows_of_csv_with_different_numbers_of_boxes(tmp_path: Path) -> None:
    boxes = written(tmp_path / "r.tsv")
    assert b"\r\n" in (tmp_path / "r.tsv").read_bytes()
    reader = open_regions("butd-tsv", tmp_path / "r.tsv")
    assert list(reader.ids()) == ["150367", "458752"]
    regions = reader.get("458752")
    np.testing.assert_allclose(regions.boxes, boxes / [640, 480, 640, 480], rtol=1e-6)
    assert (regions.size, regions.confidence) == ((640, 480), None)
    assert (regions.features == 458752).all()
    assert len(reader.get("150367").boxes) == 1


def test_height_before_width_is_noticed(tmp_path: Path) -> None:
    written(tmp_path / "r.tsv", swap=True)
    with pytest.raises(DataError, match=r"line 1 \(image 150367\): .*all fit 640 x 480: width and height"):
        open_regions("butd-tsv", tmp_path / "r.tsv")


def test_boxes_without_confidences_cannot_be_cut(tmp_path: Path) -> None:
    written(tmp_path / "r.tsv")
    reader = open_regions("butd-tsv", tmp_path / "r.tsv", max_boxes=2)
    assert len(reader.get("458752").boxes) == 2
    with pytest.raises(DataError, match=r"line 2 \(image 458752\): 2 boxes without confidences"):
        open_regions("butd-tsv", tmp_path / "r.tsv", max_boxes=1)
