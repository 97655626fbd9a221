"""What goes into any student and what comes out. Legend: S sequences, T text tokens, R regions, B images, C candidates,
F region-feature width, H hidden width, K outputs.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class StudentInputs:
    """A batch of S = B x C sequences (example-major: the C candidates of an example follow each other) over B images.

    Candidates share their image: region tensors are per image, `image_index` says which image a sequence looks at.
    "Regions" are whatever the student sees with: a detector's boxes, patches of pixels, or a teacher's tokens. All of
    them have a box, so nobody but the network has to know which.
    """

    input_ids: Tensor  # [S, T] long
    token_type_ids: Tensor  # [S, T] long
    text_mask: Tensor  # [S, T] bool, False on padding
    image_index: Tensor  # [S] long, row of the image tensors
    region_features: Tensor  # [B, R, F] float
    region_boxes: Tensor  # [B, R, 4] float, (x1, y1, x2, y2) in 0..1
    region_mask: Tensor  # [B, R] bool
    tag_regions: Tensor  # [S, T] long, the region that a text token is tagged with, -1 for none
    n_candidates: int

    def to(self, device: torch.device | str, non_blocking: bool = False) -> StudentInputs:
        """The same on another device."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "n_candidates"}
        moved = {name: tensor.to(device, non_blocking=non_blocking) for name, tensor in values.items()}
        return StudentInputs(**moved, n_candidates=self.n_candidates)

    @property
    def last_text_index(self) -> Tensor:
        """[S] long: position of the last real text token, the closing [SEP]."""
        return self.text_mask.sum(1) - 1


class Encoded(NamedTuple):
    """What an encoder gives, whatever its inner order of tokens."""

    pooled: Tensor  # [S, H]
    states: tuple[Tensor, ...]  # lowest first: [S, T + R, H], text positions first
    distillation_states: tuple[Tensor, ...] = ()  # of as many layers: [S, K, H] of the distillation tokens, if any


@dataclass(frozen=True, slots=True)
class StudentOutput:
    """Logits and the hidden states that a criterion may compare with a teacher's tokens."""

    logits: Tensor  # [B, C] multiple choice, [B, K] otherwise
    hidden_states: tuple[Tensor, ...]  # embedding output first, then every layer: [S, T + R, H], text positions first
    text_length: int  # T
    region_mask: Tensor  # [S, R] bool
    pair_logits: Tensor | None = None  # [B, C, 2] of a binary head: wrong, right
    distillation_states: tuple[Tensor, ...] = ()  # of every layer: [S, K, H] of the distillation tokens, if any

    def text_states(self, layer: int = -1) -> Tensor:
        """[S, T, H] of a layer; the inputs' `text_mask` says which are real."""
        return self.hidden_states[layer][:, : self.text_length]

    def region_states(self, layer: int = -1) -> Tensor:
        """[S, R, H] of a layer; `region_mask` says which are real."""
        return self.hidden_states[layer][:, self.text_length :]
