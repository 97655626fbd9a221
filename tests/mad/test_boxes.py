"""Patch weights of boxes against an oracle that samples each box on a fine grid."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from madkit.mad.align import box_patch_weights, boxes_in_view, grid_boxes, pool_regions

torch.set_num_threads(1)
SAMPLES = 400


def sampled(box: tuple[float, float, float, float], grid: tuple[int, int]) -> torch.Tensor:
    """Share of evenly spaced points of the box that fall into each patch."""
    steps = (torch.arange(SAMPLES, dtype=torch.float64) + 0.5) / SAMPLES
    x = ((box[0] + (box[2] - box[0]) * steps) * grid[1]).long().clamp(max=grid[1] - 1)
    y = ((box[1] + (box[3] - box[1]) * steps) * grid[0]).long().clamp(max=grid[0] - 1)
    across = torch.bincount(x, minlength=grid[1]) / SAMPLES
    down = torch.bincount(y, minlength=grid[0]) / SAMPLES
    return torch.outer(down, across).flatten()


side = st.tuples(st.floats(0, 1, width=32), st.floats(0.01, 1)).map(lambda p: (p[0] * (1 - p[1]), p[1]))
grids = st.tuples(st.integers(1, 9), st.integers(1, 9))


@given(side, side, grids)
@settings(max_examples=100, deadline=None)
def test_weights_are_the_share_of_the_boxes_area(
    x: tuple[float, float], y: tuple[float, float], grid: tuple[int, int]
) -> None:
    box = (x[0], y[0], x[0] + x[1], y[0] + y[1])
    weights = box_patch_weights(torch.tensor([[box]]), grid)[0, 0]
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0))
    # Each cut of a sampled interval is off by one sample at most.
    torch.testing.assert_close(weights, sampled(box, grid).float(), atol=3 / SAMPLES, rtol=0)


any_number = st.floats(-2, 3, width=32)


@given(st.tuples(any_number, any_number, any_number, any_number), grids)
@settings(max_examples=100, deadline=None)
def test_every_row_sums_to_one_whatever_the_box(box: tuple[float, ...], grid: tuple[int, int]) -> None:
    weights = box_patch_weights(torch.tensor([[box]]), grid)
    assert bool((weights >= 0).all())
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 1))


@given(st.floats(0, 1, width=32), st.floats(0, 1, width=32), grids)
@settings(max_examples=100, deadline=None)
def test_a_point_falls_into_its_own_patch(x: float, y: float, grid: tuple[int, int]) -> None:
    weights = box_patch_weights(torch.tensor([[[x, y, x, y]]]), grid)[0, 0].view(grid)
    row, column = min(int(y * grid[0]), grid[0] - 1), min(int(x * grid[1]), grid[1] - 1)
    near = weights[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
    torch.testing.assert_close(near.sum(), torch.tensor(1.0))
    assert weights[row, column] >= 0.2  # a corner point shares itself between four


def test_a_box_over_the_image_gives_the_mean() -> None:
    patches = torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(0)).half()
    pooled = pool_regions(patches, torch.tensor([[[0.0, 0.0, 1.0, 1.0]]] * 2), (3, 4))
    torch.testing.assert_close(pooled[:, 0], patches.float().mean(1))


def test_a_box_over_one_patch_gives_that_patch() -> None:
    patches = torch.arange(12.0).view(1, 12, 1)
    pooled = pool_regions(patches, torch.tensor([[[0.5, 1 / 3, 0.75, 2 / 3]]]), (3, 4))
    torch.testing.assert_close(pooled, torch.tensor([[[6.0]]]), atol=1e-5, rtol=0)


def test_whole_image_regions_take_the_global_embedding() -> None:
    patches, image_global = torch.zeros(1, 4, 2), torch.tensor([[7.0, 8.0]])
    boxes = torch.tensor([[[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 0.5]]])
    whole = torch.tensor([[True, False]])
    pooled = pool_regions(patches, boxes, (2, 2), image_global=image_global, whole_image=whole)
    assert pooled.tolist() == [[[7.0, 8.0], [0.0, 0.0]]]


def test_a_grid_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="2 x 2 cells cannot hold 9"):
        pool_regions(torch.zeros(1, 9, 2), torch.zeros(1, 1, 4), (2, 2))


def test_boxes_of_a_cropped_picture_move_with_the_crop() -> None:
    # 640 x 480 pixels, of which the central square is seen: 80 pixels are cut off on the left and on the right.
    view = torch.tensor([[80 / 640, 0.0, 560 / 640, 1.0]])
    boxes = torch.tensor(
        [[[80, 0, 320, 240], [0, 0, 160, 480], [0, 0, 80, 480], [320, 120, 320, 120], [0, 0, 640, 480]]]
    )
    inside, share = boxes_in_view(boxes / torch.tensor([640.0, 480, 640, 480]), view)
    expected = [[0, 0, 0.5, 0.5], [0, 0, 1 / 6, 1], [0, 0, 0, 1], [0.5, 0.25, 0.5, 0.25], [0, 0, 1, 1]]
    torch.testing.assert_close(inside[0], torch.tensor(expected), atol=1e-6, rtol=0)
    torch.testing.assert_close(share[0], torch.tensor([1.0, 0.5, 0.0, 1.0, 0.75]), atol=1e-6, rtol=0)


@given(side, side)
def test_a_whole_view_changes_no_bit(x: tuple[float, float], y: tuple[float, float]) -> None:
    boxes = torch.tensor([[[x[0], y[0], x[0] + x[1], y[0] + y[1]]]]).clamp(0, 1)
    inside, share = boxes_in_view(boxes, torch.tensor([[0.0, 0.0, 1.0, 1.0]]))
    assert torch.equal(inside, boxes)
    torch.testing.assert_close(share, torch.ones(1, 1))


def test_the_cells_of_a_grid_take_their_own_patches():
    """On the teacher's own grid a cell's target is the patch itself; row by row, as patches are numbered."""
    patches = torch.arange(6.0).view(1, 6, 1)
    boxes = grid_boxes(2, 3)
    assert boxes[1].tolist() == pytest.approx([1 / 3, 0, 2 / 3, 0.5])
    torch.testing.assert_close(pool_regions(patches, boxes.unsqueeze(0), (2, 3)), patches)
