"""Locations of boxes as the papers give them to their networks.

Four numbers (LXMERT: the corners), five (ViLBERT: and the area), six (width and height in place of it, the files of
BAN), seven (UNITER: width, height and area). All are shares of the image, corners (x1, y1, x2, y2) first.
"""

from __future__ import annotations

import torch
from torch import Tensor


def location_features(boxes: Tensor, dim: int = 7) -> Tensor:
    """Location [..., dim] of normalised boxes [..., 4]. Raises ValueError for a `dim` other than 4, 5, 6, 7."""
    if dim == 4:
        return boxes
    size = boxes[..., 2:] - boxes[..., :2]
    area = size.prod(-1, keepdim=True)
    parts = {5: [boxes, area], 6: [boxes, size], 7: [boxes, size, area]}
    if dim not in parts:
        raise ValueError(f"no location of {dim} numbers")
    return torch.cat(parts[dim], dim=-1)
