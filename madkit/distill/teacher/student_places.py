"""Where the tokens and regions of somebody's own student lie: what a training loop states, checked before it is used.

A span counted in the wrong text or a box in pixels would not stop anything; the student would be taught other words
and other places. So each of them is an error with the number of the token or box.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from madkit.core.errors import DataError

_SLACK = 1e-3  # of normalised boxes: detectors round


def token_spans(encoding: Any) -> tuple[Tensor, Tensor]:
    """Character spans [S, T, 2] and segments [S, T] of what a fast tokenizer of transformers has encoded.

    Args:
        encoding: a ``BatchEncoding`` of texts or of pairs of texts, padded to one length.

    Raises:
        DataError: a slow tokenizer made it, which keeps no offsets, or its sequences differ in length.
    """
    encodings = getattr(encoding, "encodings", None)
    if not encodings:
        raise DataError(
            "This encoding keeps no character offsets, which a fast tokenizer's does.",
            hint="AutoTokenizer.from_pretrained(NAME, use_fast=True)",
        )
    if len({len(one.ids) for one in encodings}) != 1:
        raise DataError("The encoded sequences differ in length.", hint="tokenizer(texts, padding=True)")
    spans = torch.tensor([one.offsets for one in encodings], dtype=torch.long)
    segments = torch.tensor([[-1 if row is None else row for row in one.sequence_ids] for one in encodings])
    return spans, segments


def rows_of_images(given: Tensor | None, S: int, B: int) -> Tensor:
    """[S] row of each sequence's image, on the CPU; of sequences that follow each other where none are given."""
    if given is None:
        if B == 0 or S % B:
            raise DataError(
                f"{S} sequences are no whole number for each of {B} images.",
                hint="say which image is whose: image_index",
            )
        return torch.arange(B).repeat_interleave(S // B)
    index = given.detach().cpu().long()
    if index.shape != (S,) or (S and not 0 <= int(index.min()) <= int(index.max()) < B):
        raise DataError(f"image_index must be [{S}] rows of {B} images, and is {tuple(index.shape)}.")
    return index


def places_of_tokens(texts: Sequence[tuple[str, ...]], spans: Tensor, segments: Tensor | None) -> tuple[Tensor, Tensor]:
    """Spans [S, T, 2] and segments [S, T] as int64 on the CPU; (0, 0) and -1 where a token is no text."""
    S = len(texts)
    spans = spans.detach().cpu().long()
    if spans.dim() != 3 or spans.shape[0] != S or spans.shape[2] != 2:
        raise DataError(f"{S} sequences need spans of [{S}, T, 2], not {tuple(spans.shape)}.")
    filled = spans[..., 1] > spans[..., 0]
    if segments is None:
        if any(len(row) != 1 for row in texts):
            raise DataError(
                "Sequences of several texts need segments, which say whose text a token is.",
                hint="spans, segments = token_spans(encoding)",
            )
        segments = torch.zeros(spans.shape[:2], dtype=torch.long)
    if segments.shape != spans.shape[:2]:
        raise DataError(
            f"The segments must be {tuple(spans.shape[:2])} like the spans, and are {tuple(segments.shape)}."
        )
    segments = torch.where(filled, segments.detach().cpu().long(), -1)
    most = max((len(row) for row in texts), default=0)
    if most == 0:
        return torch.zeros_like(spans), torch.full_like(segments, -1)
    sizes = torch.tensor([[len(text) for text in row] + [-1] * (most - len(row)) for row in texts]).view(S, most)
    room = sizes.gather(1, segments.clamp(0, most - 1)).masked_fill(segments >= most, -1)
    wrong = torch.nonzero((segments >= 0) & ((spans[..., 1] > room) | (spans[..., 0] < 0)))
    if len(wrong):
        s, t = (int(number) for number in wrong[0])
        start, end = (int(number) for number in spans[s, t])
        which = int(segments[s, t])
        if which >= len(texts[s]):
            raise DataError(f"Sequence {s}, token {t} belongs to text {which}, and the sequence has {len(texts[s])}.")
        raise DataError(
            f"Sequence {s}, token {t} is at characters {start} to {end} of a text of {int(room[s, t])} characters.",
            hint="spans count in the token's own text, not in the joined sequence",
        )
    return torch.where((segments >= 0).unsqueeze(-1), spans, 0), segments


def check_boxes(boxes: Tensor, mask: Tensor, images: Sequence[str]) -> None:
    """Raise DataError for the first real box of boxes [B, R, 4], by mask [B, R], that cannot be corners in shares.

    That is one outside of 0 to 1, or with its second corner left of the first or above it.
    """
    inside = (boxes.amin(-1) >= -_SLACK) & (boxes.amax(-1) <= 1 + _SLACK)  # a NaN is nowhere
    ordered = (boxes[..., 2:] - boxes[..., :2]).amin(-1) >= -_SLACK
    wrong = torch.nonzero(~(inside & ordered) & mask)
    if len(wrong):
        b, r = (int(number) for number in wrong[0])
        corners = ", ".join(f"{float(value):g}" for value in boxes[b, r])
        if inside[b, r]:
            raise DataError(
                f"The box {r} of image '{images[b]}' is ({corners}), and its second corner is left of the first, or "
                "above it.",
                hint="boxes are the corners (x1, y1, x2, y2), not (x, y, width, height)",
            )
        raise DataError(
            f"The box {r} of image '{images[b]}' is ({corners}), and boxes are shares of the image's sides, 0 to 1.",
            hint="divide x by the image's width and y by its height",
        )
