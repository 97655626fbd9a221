from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from madkit.core.errors import DataError, NotFoundError, UsageProblem
from madkit.regions import open_regions
from madkit.regions.area import resize_area
from madkit.regions.declared import DeclaredBoxes
from madkit.regions.pixels import make_pixel_regions, pixel_features, pixel_regions, read_image
from madkit.tasks.mini.draw import Draw
from madkit.tasks.mini.render import Picture, region_features

SHARED = Path(__file__).parents[3] / "shared" / "data" / "regions"


def picture(width: int = 40, height: int = 30, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_the_embedded_benchmarks_features_are_these() -> None:
    """The formula with which the embedded benchmark was first built, spelled out."""
    draw = Draw("pixels")
    pixels = draw.state.randint(0, 256, (96, 96, 3)).astype(np.uint8)
    boxes = tuple((x, y, x + draw.between(3, 30), y + draw.between(3, 30)) for x, y in [(0, 0), (13, 40), (60, 61)])
    rows = [
        resize_area(pixels[y1:y2, x1:x2], 16, 16).reshape(-1).astype(np.float32) / 255.0 - 0.5
        for x1, y1, x2, y2 in boxes
    ]
    made = region_features(Picture(pixels, boxes))
    assert made.dtype == np.float16
    np.testing.assert_array_equal(made, np.asarray(rows, dtype=np.float16))
    regions = pixel_regions(pixels, np.array(boxes))
    np.testing.assert_array_equal(regions.features.astype(np.float16), made)
    np.testing.assert_array_equal(regions.boxes, np.array(boxes, np.float32) / np.float32(96))
    assert regions.size == (96, 96)
    assert region_features(Picture(pixels, ())).shape == (0, 768)


def test_shrinking_by_whole_numbers_is_the_mean_of_blocks() -> None:
    image = picture(48, 32)
    blocks = image.reshape(16, 2, 16, 3, 3).mean(axis=(1, 3))
    features = pixel_features(image, np.array([[0, 0, 48, 32]]), 16).reshape(16, 16, 3)
    np.testing.assert_allclose(features, np.floor(blocks + 0.5) / 255 - 0.5, atol=1e-6)


def test_without_boxes_the_whole_image_and_a_grid() -> None:
    image = picture(60, 30)
    for boxes in (None, np.zeros((0, 4))):
        regions = pixel_regions(image, boxes, side=4, grid=3)
        assert regions.features.shape == (10, 48)
        np.testing.assert_allclose(regions.boxes[0], [0, 0, 1, 1])
        np.testing.assert_allclose(regions.boxes[5], [1 / 3, 1 / 3, 2 / 3, 2 / 3], rtol=1e-6)
        np.testing.assert_array_equal(regions.features[5], pixel_features(image, np.array([[20, 10, 40, 20]]), 4)[0])
    assert pixel_regions(image, None, grid=1).features.shape == (2, 768)


@given(
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    box=st.tuples(*[st.floats(0, 1)] * 4),
    side=st.integers(1, 5),
    grid=st.integers(1, 4),
)
@settings(max_examples=50)
def test_any_box_of_any_image(size: tuple[int, int], box: tuple[float, ...], side: int, grid: int) -> None:
    width, height = size
    image = picture(width, height)
    assert len(pixel_regions(image, None, side, grid).features) == 1 + grid * grid
    (x1, x2), (y1, y2) = sorted(box[:2]), sorted(box[2:])
    corners = np.array([[x1 * width, y1 * height, x2 * width, y2 * height]])
    if (corners[0, 2:] - corners[0, :2]).min() < 1e-3:
        return
    features = pixel_regions(image, corners, side).features
    assert features.shape == (1, side * side * 3)
    assert np.abs(features).max() <= 0.5
    touched = image[int(y1 * height) : int(np.ceil(y2 * height)), int(x1 * width) : int(np.ceil(x2 * width))]
    bounds = touched.min() / 255 - 0.5, touched.max() / 255 - 0.5
    assert bounds[0] - 1e-6 <= features.min() <= features.max() <= bounds[1] + 1e-6


@pytest.mark.parametrize(
    ("image", "boxes", "problem"),
    [
        (picture()[..., 0], None, "not uint8"),
        (picture().astype(float), None, "not uint8"),
        (picture()[:, :0], None, "not uint8"),
        (picture(), [[0, 0, 80, 20]], "outside the image"),
        (picture(), [[5, 5, 5, 20]], "empty"),
        (picture(), [[0, 0, 5]], "boxes of shape"),
        (picture(), [[0, 0, np.nan, 20]], "NaN"),
    ],
)
def test_impossible_content(image: Any, boxes: Any, problem: str) -> None:
    with pytest.raises(DataError, match=rf"photo: .*{problem}"):
        pixel_regions(image, boxes, where="photo")


def test_impossible_sizes() -> None:
    for side, grid in ((0, 3), (16, 0)):
        with pytest.raises(UsageProblem, match="at least 1"):
            pixel_regions(picture(), None, side, grid)


def test_a_file_of_many_images(tmp_path: Path) -> None:
    images = {f"{n}": picture(20 + n, 30, seed=n) for n in range(40)}
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for name, pixels in images.items():
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            archive.writestr(f"in/{name}.png", buffer.getvalue())
    seen: list[int] = []
    items = [
        (name, tmp_path / "photos.zip" / "in" / f"{name}.png", DeclaredBoxes(((1, 2, 9.5, 20),), (pixels.shape[1], 30)))
        for name, pixels in images.items()
    ]
    path = tmp_path / "r.h5"
    assert make_pixel_regions(path, items, side=4, advance=seen.append) == 40
    assert sum(seen) == 40
    reader = open_regions("butd-hdf5", path)
    assert reader.ids() == list(images)
    for name, pixels in images.items():
        expected = pixel_regions(pixels, np.array([[1, 2, 9.5, 20]]), 4)
        np.testing.assert_array_equal(reader.get(name).features, expected.features.astype(np.float16))
        np.testing.assert_allclose(reader.get(name).boxes, expected.boxes, atol=1e-6)
    reader.close()


def test_a_bad_image_leaves_nothing_behind(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"b\.png is no image that can be read"):
        make_pixel_regions(out / "r.h5", [(name, tmp_path / f"{name}.png", None) for name in "ab"])
    with pytest.raises(NotFoundError, match=r"c\.png"):
        make_pixel_regions(out / "r.h5", [("c", tmp_path / "c.png", None)])
    assert list(out.iterdir()) == []


def test_grey_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    for mode in ("L", "RGBA", "P", "CMYK"):
        file = tmp_path / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}"
        Image.fromarray(picture()).convert(mode).save(file)
        assert read_image(file).shape == (30, 40, 3)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared example files are not here")
def test_real_photos_with_their_real_boxes(tmp_path: Path) -> None:
    rows = tmp_path / "train2014_obj36.tsv"  # a link, so that the index of the rows lies beside it and not there
    rows.symlink_to(SHARED / rows.name)
    reader = open_regions("lxmert-tsv", rows)
    photos = sorted((SHARED / "images").iterdir())
    image = read_image(photos[0])
    regions = reader.get(photos[0].stem)
    assert regions.size == (image.shape[1], image.shape[0])
    made = pixel_regions(image, regions.boxes * np.array(regions.size * 2, np.float32))
    assert made.features.shape == (36, 768)
    np.testing.assert_allclose(made.boxes, regions.boxes, atol=1e-6)
    reader.close()
