"""What the teacher gives for one batch, aligned to the student's tokens."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from madkit.mad.chosen import ChosenTokens, moved


@dataclass(frozen=True, slots=True)
class ChannelStats:
    """Mean and variance per channel of one modality's teacher tokens, as the cache counted them.

    Attributes:
        mean: [D].
        var: [D].
    """

    mean: Tensor
    var: Tensor

    def standardise(self, tokens: Tensor) -> Tensor:
        """Tokens [..., D] scaled to mean 0 and variance 1 per channel, in float32.

        The spread is taken as at least a thousandth of the channels' mean spread: a dead channel is not blown up.
        """
        var = self.var.float()
        floor = 1e-6 * var.mean() + 1e-12
        return (tokens.float() - self.mean.float()) * torch.rsqrt(torch.maximum(var, floor))

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> ChannelStats:
        """The same on another device."""
        device = torch.device(device)
        if self.mean.device == device and self.var.device == device:
            return self
        return ChannelStats(moved(self.mean, device, non_blocking), moved(self.var, device, non_blocking))


@dataclass(frozen=True, slots=True)
class TeacherTargets:
    """Teacher embeddings of a batch with S sequences over B images. Any float dtype; never receives a gradient.

    Attributes:
        text_tokens: [S, T, Dl] the teacher's text tokens on the student's text positions (`align_text`).
        text_mask: [S, T] bool: positions with a target.
        text_global: [S, Dl] l_0 of each sequence's text.
        regions: [B, R, Dv] v_j of each region (`pool_regions`).
        region_mask: [B, R] bool.
        image_global: [B, Dv] v_0.
        image_index: [S] long: row of each sequence's image.
        shared_space: both teachers embed into one space (CLIP-like), so their cosines mean something.
        text_content: [S, T] bool: tokens that selection may take (no function words); None: all of `text_mask`.
        text_stats, vision_stats: per channel over the cache's tokens; needed for standardised targets only.
        text_global_stats, vision_global_stats: likewise for the globals; None takes the tokens'.
        taught: [S] bool: sequences that the teacher says anything about; the others add nothing to any term. None: all.
        example_key: [S] long: a number that names the example whatever the batch; needed by random selection only.
        chosen: the token part, chosen beforehand. `regions` [B, 0, Dv] may then be empty where no affinity reads them.

    Where no term compares words, or the token part was chosen and no affinity of words reads them, `text_tokens`
    [S, 0, Dl] and its masks [S, 0] may be empty.
    """

    text_tokens: Tensor
    text_mask: Tensor
    text_global: Tensor
    regions: Tensor
    region_mask: Tensor
    image_global: Tensor
    image_index: Tensor
    shared_space: bool = False
    text_content: Tensor | None = None
    text_stats: ChannelStats | None = None
    vision_stats: ChannelStats | None = None
    text_global_stats: ChannelStats | None = None
    vision_global_stats: ChannelStats | None = None
    taught: Tensor | None = None
    example_key: Tensor | None = None
    chosen: ChosenTokens | None = None

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> TeacherTargets:
        """The same on another device, with nothing left to be looked up."""
        device = torch.device(device)
        changed: dict[str, Any] = {}
        for name in _MOVED:
            value = getattr(self, name)
            if value is None or (isinstance(value, Tensor) and value.device == device):  # on a CPU most are
                continue
            there = value.to(device, non_blocking=non_blocking)
            if there is not value:
                changed[name] = there
        return replace(self, **changed) if changed else self

    @property
    def selectable_text(self) -> Tensor:
        """[S, T] bool: text positions that selection may take."""
        return self.text_mask if self.text_content is None else self.text_mask & self.text_content


_MOVED = tuple(field.name for field in fields(TeacherTargets) if field.name != "shared_space")
