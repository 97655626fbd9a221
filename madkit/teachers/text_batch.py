"""Tokenized texts as the tensors of one forward pass: special tokens around each, padding at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from madkit.teachers.interface import TokenizedText


@dataclass(frozen=True, slots=True)
class TextBatch:
    """B texts of width T.

    Attributes:
        ids: [B, T] int64.
        attention: [B, T] bool, true for everything but padding.
        mask: [B, T] bool, true for the real tokens.
        spans: [B, T, 2] int32, zeros where ``mask`` is false.
    """

    ids: Tensor
    attention: Tensor
    mask: Tensor
    spans: Tensor


def text_batch(
    texts: Sequence[TokenizedText],
    prefix: Sequence[int],
    suffix: Sequence[int],
    pad_id: int,
    *,
    width: int | None = None,
) -> TextBatch:
    """Put texts into tensors, ``width`` wide or as wide as the longest of them."""
    before, around = len(prefix), len(prefix) + len(suffix)
    longest = max((len(text.ids) for text in texts), default=0) + around
    shape = (len(texts), longest if width is None else width)
    ids = np.full(shape, pad_id, dtype=np.int64)
    attention, mask = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    spans = np.zeros((*shape, 2), dtype=np.int32)
    for row, text in enumerate(texts):
        n = len(text.ids)
        ids[row, : n + around] = (*prefix, *text.ids, *suffix)
        attention[row, : n + around] = True
        mask[row, before : before + n] = True
        if n:
            spans[row, before : before + n] = text.spans
    return TextBatch(*(torch.from_numpy(array) for array in (ids, attention, mask, spans)))
