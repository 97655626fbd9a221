"""What a teacher says of a box: its patches averaged over the part of the box that it saw, or nothing."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from madkit.cache import ImageTokens
from madkit.mad.align import boxes_in_view, known_share, pool_regions, pool_selected

WHOLE = 0.999  # a box that covers this share of the picture is the picture
SEEN = 0.5  # a box of which the teacher saw less than this has no target: its patches would describe something else


def pool_boxes(
    images: ImageTokens, rows: NDArray[np.int64], boxes: Tensor, image_global: Tensor
) -> tuple[Tensor, Tensor]:
    """Patches of n images averaged over boxes of the whole images, as far as the teacher saw them.

    Args:
        images: the image half of a cache.
        rows: [n] rows of images that have values.
        boxes: [n, R, 4] normalised corners.
        image_global: [n, Dv], the target of boxes that hold the whole image.

    Returns:
        [n, R, Dv] float16, zero where a box has no target, and [n, R] bool: boxes with a target.
    """
    patches = torch.from_numpy(np.ascontiguousarray(images.tokens(rows)))
    boxes, whole, seen = _in_view(images, rows, boxes)
    if images.selected is None:
        pooled = pool_regions(patches, boxes, images.grid, image_global=image_global, whole_image=whole)
    else:
        places = torch.from_numpy(np.array(images.positions(rows)))
        pooled, known = pool_selected(patches, places, boxes, images.grid, image_global=image_global, whole_image=whole)
        seen = seen & known
    return (pooled * seen.unsqueeze(-1)).half(), seen


def seen_boxes(images: ImageTokens, rows: NDArray[np.int64], boxes: Tensor) -> Tensor:
    """Which boxes [n, R, 4] of images `rows` have a target: [n, R] bool, as `pool_boxes` says, without its reading."""
    boxes, whole, seen = _in_view(images, rows, boxes)
    if images.selected is None:
        return seen
    share = known_share(torch.from_numpy(np.array(images.positions(rows))), boxes, images.grid)
    return seen & ((share > 0) | whole)


def _in_view(images: ImageTokens, rows: NDArray[np.int64], boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes in the part of each image that the teacher saw, which hold the whole image, and which it saw enough of."""
    whole = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1]) >= WHOLE
    views = images.views(rows)
    if views is None:
        return boxes, whole, torch.ones_like(whole)
    boxes, share = boxes_in_view(boxes, torch.from_numpy(views))
    return boxes, whole, whole | (share >= SEEN)
