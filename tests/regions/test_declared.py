"""Boxes that are meant in another size than that of the file: a copy's, or that of the picture as viewers turn it."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from madkit.core.errors import DataError
from madkit.regions.declared import DeclaredBoxes, Fit, fit_of, placed
from madkit.regions.pixels import file_regions, pixel_regions, read_image


def turned(size: tuple[int, int], path: Path, orientation: int = 6) -> Path:
    """A picture that is stored lying, with its upper half red, and a note that viewers turn it by."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[: size[1] // 2] = 200, 0, 0
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return path


@pytest.mark.parametrize(
    ("real", "size", "fit"),
    [
        ((96, 64), (96, 64), Fit.SAME),
        ((96, 64), (48, 32), Fit.SCALED),
        ((96, 64), (1920, 1280), Fit.SCALED),
        ((97, 65), (48, 32), Fit.SCALED),  # rounded down
        ((500, 333), (1024, 683), Fit.SCALED),
        ((96, 64), (600, 64), Fit.NONE),
        ((96, 64), (64, 96), Fit.NONE),
        ((640, 480), (640, 426), Fit.NONE),
        ((640, 480), (224, 224), Fit.NONE),
    ],
)
def test_a_size_fits_where_it_is_that_of_a_copy(real: tuple[int, int], size: tuple[int, int], fit: Fit) -> None:
    assert fit_of(Image.new("RGB", real), size) is fit


@given(real=st.tuples(*[st.integers(1, 5000)] * 2), longest=st.integers(1, 5000), up=st.booleans())
def test_whatever_a_copy_is_rounded_to_it_fits(real: tuple[int, int], longest: int, up: bool) -> None:
    scale = longest / max(real)
    width, height = (max(1, int(np.ceil(side * scale) if up else np.floor(side * scale))) for side in real)
    if min(real) * scale < 1:  # a line of pixels has no shape
        return

    class Opened:
        size = real

        def getexif(self) -> dict[int, int]:
            return {}

    assert fit_of(cast("Image.Image", Opened()), (width, height)) in (Fit.SAME, Fit.SCALED)


def test_boxes_are_scaled_each_way_and_whole_pixels_stay_whole() -> None:
    picture, corners = placed(Image.new("RGB", (96, 65)), DeclaredBoxes(((3, 4, 7, 32),), (9, 6)), "x")
    assert picture.size == (96, 65)
    np.testing.assert_array_equal(corners, [[32, 4 * 65 / 6, 7 * 96 / 9, 32 * 65 / 6]])
    same = ((1.25, 2.0, 9.1, 8.7),)
    np.testing.assert_array_equal(placed(picture, DeclaredBoxes(same, (96, 65)), "x")[1], same)
    np.testing.assert_array_equal(placed(picture, DeclaredBoxes(same, (0, 0)), "x")[1], same)


def test_another_shape_is_an_error_that_names_the_file_and_both_sizes(tmp_path: Path) -> None:
    path = tmp_path / "3.png"
    Image.new("RGB", (96, 64)).save(path)
    with pytest.raises(DataError, match=r"3\.png is 96 x 64, the data say 600 x 64\.$") as caught:
        file_regions(path, DeclaredBoxes(((0, 0, 500, 60),), (600, 64)))
    assert "madkit data check TASK --deep" in str(caught.value.hint)
    assert len(file_regions(path, DeclaredBoxes((), (600, 64))).features) == 10  # a grid needs no size


@pytest.mark.parametrize("form", ["jpg", "png"])
def test_a_picture_is_turned_where_only_that_fits(tmp_path: Path, form: str) -> None:
    path = turned((96, 64), tmp_path / f"x.{form}")
    red = np.array([200, 0, 0]) / 255 - 0.5
    # as it is stored: red is above, whatever the note says
    stored = file_regions(path, DeclaredBoxes(((0, 0, 48, 16),), (48, 32)), 1)
    np.testing.assert_allclose(stored.features, [red], atol=0.02)
    np.testing.assert_allclose(stored.boxes, [[0, 0, 1, 0.5]])
    assert read_image(path).shape == (64, 96, 3)
    # as a viewer shows it, red is at the right
    for size in ((64, 96), (32, 48)):
        box = (size[0] / 2, 0.0, float(size[0]), float(size[1]))
        seen = file_regions(path, DeclaredBoxes((box,), size), 1)
        np.testing.assert_allclose(seen.features, [red], atol=0.02)
        np.testing.assert_allclose(seen.boxes, [[0.5, 0, 1, 1]])
        assert seen.size == (64, 96)
    with pytest.raises(DataError, match="is 96 x 64, the data say 64 x 96"):  # upside down is no quarter
        file_regions(turned((96, 64), path, 3), DeclaredBoxes(((0, 0, 9, 9),), (64, 96)))


def test_a_nearly_square_picture_is_turned_where_that_fits_better(tmp_path: Path) -> None:
    with Image.open(turned((100, 101), tmp_path / "x.jpg")) as picture:
        assert fit_of(picture, (100, 101)) is Fit.SAME
        assert fit_of(picture, (101, 100)) is Fit.TURNED
        assert fit_of(picture, (50, 50)) is Fit.SCALED


def test_a_damaged_note_turns_nothing() -> None:
    picture = Image.new("RGB", (96, 64))
    picture.info["exif"] = b"Exif\0\0no note"
    assert fit_of(picture, (64, 96)) is Fit.NONE


def test_features_of_a_copys_boxes_are_those_of_the_same_place(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    path = tmp_path / "x.png"
    Image.fromarray(pixels).save(path)
    ours = file_regions(path, DeclaredBoxes(((5, 8, 21, 24),), (48, 32)))
    theirs = pixel_regions(pixels, np.array([[10, 16, 42, 48]]))
    np.testing.assert_array_equal(ours.features, theirs.features)
    np.testing.assert_array_equal(ours.boxes, theirs.boxes)
