"""Data whose lines give another size than the pictures have: features, drawings and the check read them alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from madkit.cli.main import main
from madkit.core.errors import DataError
from madkit.core.workspace import Workspace
from madkit.tasks.check import SIZES, Finding, check_dataset
from madkit.tasks.data import TaskData
from madkit.tasks.importing import ImportOptions
from madkit.tasks.importing.run import import_data
from madkit.tasks.picture import draw_example
from madkit.tasks.region_files import make_pixels

N = 8
BOX = (10, 16, 42, 48)  # in the pictures of 96 x 64


def load(folder: Path, *sizes: tuple[int, int], scale: float = 1.0) -> TaskData:
    """A data set of pictures of 96 x 64, red in the box, whose lines give the sizes in turn."""
    images = folder / "pictures"
    images.mkdir(exist_ok=True, parents=True)
    rows = []
    for n in range(N):
        pixels = np.full((64, 96, 3), 255, np.uint8)
        pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 200, 0, 0
        Image.fromarray(pixels).save(images / f"{n}.png")
        width, height = sizes[n % len(sizes)]
        row = {"id": n, "split": "train" if n % 2 else "test", "image": f"{n}.png", "sentence": "[It](1) is."}
        rows.append(row | {"width": width, "height": height, "boxes": [[value * scale for value in BOX]], "label": "a"})
    rows[1]["label"] = "b"
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    workspace = Workspace.at(folder / "workspace")
    data = import_data(workspace, "custom", path, ImportOptions(kind="classification", images=images, dev_cut=0)).data
    assert data is not None
    return data


def sizes_of(data: TaskData, **how: Any) -> Finding:
    return {finding.what: finding for finding in check_dataset(data, **how)}[SIZES]


def test_boxes_of_a_copy_are_cut_drawn_and_checked_as_such(tmp_path: Path) -> None:
    own, copy = load(tmp_path / "own", (96, 64)), load(tmp_path / "copy", (48, 32), scale=0.5)
    made = []
    for data in (own, copy):
        make_pixels(data, side=4, grid=1, workers=1)
        reader = data.regions()
        assert reader is not None
        regions = reader.get("3.png")
        np.testing.assert_allclose(regions.features, np.tile([200 / 255 - 0.5, -0.5, -0.5], 16)[None], atol=1e-3)
        example = data.examples("train")[0]
        shares = np.array(example.boxes) / ([example.width, example.height] * 2)
        np.testing.assert_allclose(regions.boxes, shares, atol=1e-6, err_msg="what students look boxes up by")
        made.append((data.root / "regions-pixels.h5").read_bytes())
    assert made[0] == made[1]
    drawn = [np.asarray(draw_example(data.examples("train")[0], data.spec)) for data in (own, copy)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert sizes_of(own).noted == 0
    found = sizes_of(copy, deep=True)
    assert (found.looked_at, found.wrong, found.noted, len(found.notes)) == (N, 0, N, 5)
    said = "0.png is 96 x 64, the data say 48 x 32: its boxes are read as those of a copy of that size"
    assert found.notes[0].endswith(said)


def test_another_shape_is_refused_wherever_boxes_meet_the_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = load(tmp_path, (600, 64), (96, 64), (48, 48))
    said_of_one = r"\d\.png is 96 x 64, the data say (600 x 64|48 x 48)\."
    with pytest.raises(DataError, match=said_of_one):
        make_pixels(data, side=4, grid=1, workers=1)
    with pytest.raises(DataError, match=said_of_one):
        draw_all(data)
    found = sizes_of(data, deep=True)
    assert (found.looked_at, found.wrong, found.noted) == (N, 5, 0)
    assert found.first[0].endswith("0.png is 96 x 64, the data say 600 x 64")
    place = ("mine", "--workspace", str(tmp_path / "workspace"))
    assert main(["data", "check", *place, "--deep"]) == 3
    said = capsys.readouterr()
    assert "images' sizes: " in said.out
    assert "mend 'width' and 'height'" in said.err


def test_the_command_says_how_many_more_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load(tmp_path, (48, 32), scale=0.5)
    assert main(["data", "check", "mine", "--workspace", str(tmp_path / "workspace"), "--deep"]) == 0
    said = capsys.readouterr().out
    assert said.count("Note: images' sizes: ") == 6
    assert "Note: images' sizes: 3 more like these" in said


def test_a_turned_picture_is_a_note(tmp_path: Path) -> None:
    data = load(tmp_path, (64, 96), scale=0.5)
    exif = Image.Exif()
    exif[0x0112] = 6
    for n in range(N):
        path = tmp_path / "pictures" / f"{n}.png"
        with Image.open(path) as picture:
            picture.load()
        picture.save(path, exif=exif)
    found = sizes_of(data)
    assert (found.wrong, found.noted) == (0, N)
    assert "that its EXIF note turns" in found.notes[0]
    assert make_pixels(data, side=4, grid=1, workers=1).covered == N
    # a picture of 64 x 96 stands on the page
    assert draw_all(data)[0].size[1] > 480


def draw_all(data: TaskData) -> list[Image.Image]:
    return [draw_example(example, data.spec) for split in ("train", "test") for example in data.examples(split)]
