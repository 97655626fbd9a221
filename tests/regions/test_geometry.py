"""The checks of boxes in pixels: what is right passes unchanged, what is exchanged is called by its name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from madkit.core.errors import DataError
from madkit.regions.geometry import TOLERANCE, check_absolute, check_confidence

side = st.integers(20, 5000)
share = st.floats(0, 0.5)
boxes_of = st.lists(st.tuples(share, share, st.floats(0.01, 0.5), st.floats(0.01, 0.5)), min_size=1, max_size=5)


def pixels(shares: list[tuple[float, float, float, float]], width: int, height: int) -> Any:
    return np.array([[x * width, y * height, (x + w) * width, (y + h) * height] for x, y, w, h in shares])


@given(boxes_of, side, side)
def test_boxes_inside_the_image_become_shares(
    shares: list[tuple[float, float, float, float]], width: int, height: int
) -> None:
    expected = [[x, y, x + w, y + h] for x, y, w, h in shares]
    boxes = check_absolute(pixels(shares, width, height), width, height, "f")
    np.testing.assert_allclose(boxes, expected, atol=1e-6)
    assert boxes.dtype == np.float32


@given(boxes_of, side, st.floats(1.03, 3))
def test_width_and_height_exchanged_are_said_to_be(
    shares: list[tuple[float, float, float, float]], width: int, ratio: float
) -> None:
    height = int(width * ratio) + 1
    whole = [*shares, (0.0, 0.0, 1.0, 1.0)]  # a box that only one orientation holds
    with pytest.raises(DataError, match=f"^f: .*all fit {width} x {height}: width and height .* are swapped"):
        check_absolute(pixels(whole, width, height), height, width, "f")
    turned = pixels(whole, width, height)[:, [1, 0, 3, 2]]  # the same, seen as x and y exchanged
    with pytest.raises(DataError, match=r"or x and y\) are swapped"):
        check_absolute(turned, width, height, "f")


@given(boxes_of, side, side)
def test_sizes_in_the_place_of_corners_are_said_to_be(
    shares: list[tuple[float, float, float, float]], width: int, height: int
) -> None:
    low = [*shares, (0.6, 0.6, 0.3, 0.3)]  # a box whose size is smaller than its place
    boxes = pixels(low, width, height)
    boxes[:, 2:] -= boxes[:, :2]
    with pytest.raises(DataError, match=r"^f: the columns of the boxes look like x, y, width, height"):
        check_absolute(boxes, width, height, "f")


def test_how_far_outside_a_box_may_lie() -> None:
    inside = [[0, 0, 100 * (1 + TOLERANCE * 0.9), 50], [-100 * TOLERANCE * 0.9, 0, 99, 49]]
    boxes = check_absolute(np.array(inside), 100, 50, "f")
    assert (boxes.min(), boxes.max()) == (0, 1)  # clipped
    for beyond in ([0, 0, 100 * (1 + TOLERANCE * 1.1), 50], [0, -50 * TOLERANCE * 1.1, 99, 49]):
        with pytest.raises(DataError, match="a box lies outside the image"):
            check_absolute(np.array([beyond]), 100, 50, "f")


@pytest.mark.parametrize(
    ("boxes", "size", "problem"),
    [
        ([[0, 0, 5, 5]], (0, 10), "the image size 0 x 10 is not positive"),
        ([[0, 0, 5, 5]], (10, -3), "the image size 10 x -3 is not positive"),
        ([[0, 0, 5, 5]], (float("nan"), 10), "the image size nan x 10 is not positive"),
        ([[0, 0, 5, np.nan]], (10, 10), "a box holds NaN or infinity"),
        ([[0, 0, 1e300, 5]], (10, 10), "a box holds NaN or infinity|outside"),
        ([[5, 5, 5, 9]], (10, 10), "a box is empty"),
        ([[5, 5, 9, 5]], (10, 10), "a box is empty"),
        ([[9, 5, 5, 9]], (10, 10), "a box is empty or its columns are not x1, y1, x2, y2"),
    ],
)
def test_impossible_boxes(boxes: Any, size: tuple[float, float], problem: str) -> None:
    with pytest.raises(DataError, match=f"^f: .*({problem})"):
        check_absolute(np.array(boxes, dtype=np.float64), *size, "f")


def test_no_boxes_are_no_error() -> None:
    assert check_absolute(np.zeros((0, 4)), 10, 10, "f").shape == (0, 4)


def test_confidences() -> None:
    scores = check_confidence(np.array([[0.5], [0.25]], np.float16), 2, "f")
    assert (scores.tolist(), scores.dtype) == ([0.5, 0.25], np.float32)
    with pytest.raises(DataError, match=r"^f: 3 boxes, but 2 confidences"):
        check_confidence(scores, 3, "f")
    with pytest.raises(DataError, match=r"^f: a confidence is NaN or infinite"):
        check_confidence(np.array([np.inf]), 1, "f")
