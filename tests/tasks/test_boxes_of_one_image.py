"""Lines about one image may each name boxes of their own; an import with other boxes says whose features there are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from madkit.core.workspace import Workspace
from madkit.regions.declared import DeclaredBoxes, joined
from madkit.students.inputs import boxes_to_regions
from madkit.tasks.data import TaskData
from madkit.tasks.importing import ImportOptions
from madkit.tasks.importing.run import import_data
from madkit.tasks.region_files import make_pixels

BOXES = ((0, 0, 30, 30), (60, 60, 95, 95), (10, 50, 40, 90))


def load(folder: Path, shift: int = 0) -> TaskData:
    """Four pictures of 100 x 100, three lines about each, a box in each line."""
    images = folder / "pictures"
    images.mkdir(exist_ok=True, parents=True)
    rows = []
    for n in range(4):
        Image.fromarray(np.full((100, 100, 3), 50 * n, np.uint8)).save(images / f"{n}.png")
        for place, box in enumerate(BOXES):
            row = {
                "id": f"{n}-{place}",
                "split": "train" if n % 2 else "test",
                "image": f"{n}.png",
                "label": "ab"[place % 2],
            }
            rows.append(
                row | {"width": 100, "height": 100, "sentence": "[It](1).", "boxes": [[v + shift for v in box]]}
            )
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    workspace = Workspace.at(folder / "workspace")
    data = import_data(workspace, "custom", path, ImportOptions(kind="classification", images=images, dev_cut=0)).data
    assert data is not None
    return data


def test_pixel_features_hold_the_boxes_of_every_line(tmp_path: Path) -> None:
    data = load(tmp_path)
    make_pixels(data, side=4, grid=1, workers=1)
    reader = data.regions()
    assert reader is not None
    for place, example in enumerate(data.examples("test")[:3]):
        regions = reader.get(example.image.id)
        assert len(regions.boxes) == 3
        assert boxes_to_regions(np.array(example.boxes, np.float32) / 100, regions.boxes).tolist() == [place]


def test_other_boxes_are_said_to_need_other_features(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_pixels(load(tmp_path), side=4, grid=1, workers=1)
    load(tmp_path)
    assert "pixel features" not in capsys.readouterr().err, "the same lines again"
    data = load(tmp_path, shift=3)
    told = capsys.readouterr().err
    assert "if boxes or pictures changed, make them again: madkit data regions make mine" in " ".join(told.split())
    make_pixels(data, side=4, grid=1, workers=1)
    reader = load(tmp_path, shift=3).regions()
    assert reader is not None
    np.testing.assert_allclose(reader.get("0.png").boxes[0], [0.03, 0.03, 0.33, 0.33], atol=1e-6)


def test_boxes_are_joined_in_the_first_lines_size() -> None:
    first, same = DeclaredBoxes(((0, 0, 4, 4),), (10, 20)), DeclaredBoxes(((0, 0, 4, 4), (1, 1, 2, 2)), (10, 20))
    assert joined(first, same) == same
    assert joined(first, DeclaredBoxes(((2, 2, 4, 4),), (20, 40))).corners == ((0, 0, 4, 4), (1, 1, 2, 2))
    assert joined(first, DeclaredBoxes(((2, 2, 4, 4),), (0, 0))) == first, "nobody can tell what size is meant"
