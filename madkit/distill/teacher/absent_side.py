"""The bank of a side that a teacher does not have: width 0, so that it takes no room and no term can compare it."""

from __future__ import annotations

import torch
from torch import Tensor

from madkit.distill.teacher.bank import ImageBank, TextBank
from madkit.mad.targets import ChannelStats


def no_images(boxes: Tensor) -> ImageBank:
    """The images of a teacher that reads texts alone; boxes [n, R, 4] are the student's regions."""
    n, R = boxes.shape[:2]
    stats = ChannelStats(torch.zeros(0), torch.zeros(0))
    nothing = torch.zeros(n, R, 0, dtype=torch.float16)
    return ImageBank(nothing, torch.zeros(n, 0), stats, stats, torch.ones(n, dtype=torch.bool))


def no_texts(n: int) -> TextBank:
    """The n texts of a teacher that reads images alone."""
    stats = ChannelStats(torch.zeros(0), torch.zeros(0))
    return TextBank(torch.zeros(n, 0), stats, stats, torch.ones(n, dtype=torch.bool))
