"""Texts longer than a teacher's limit, read in overlapping windows so that nothing is cut.

A window holds as many tokens as fit, and the next one begins half a window later; the last one ends where the text
ends. Of every overlap the first half is taken from the earlier window and the second half from the later one, so every
token stands once in the result, with at least a quarter of a window of context on both sides wherever the text has it.
The global vector is the mean of the windows' global vectors, weighted by the tokens taken from each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from madkit.teachers.interface import TextOutput, TokenizedText

WINDOWS = "half-overlapping windows, middle tokens, globals weighted by tokens"
"""What a store's identity says when any of its texts was read in windows."""


@dataclass(frozen=True, slots=True)
class Window:
    """One window of a text: tokens ``start`` to ``stop`` are read, ``first`` to ``last`` are kept (half-open)."""

    start: int
    stop: int
    first: int
    last: int


def windows_of(length: int, limit: int) -> list[Window]:
    """Return the windows of a text of ``length`` tokens; one where it fits ``limit``."""
    if length <= limit:
        return [Window(0, length, 0, length)]
    step = max(1, limit - limit // 2)
    starts = [*range(0, length - limit, step), length - limit]
    cuts = [0, *((later + earlier + limit) // 2 for earlier, later in pairwise(starts)), length]
    return [Window(start, start + limit, *cuts[i : i + 2]) for i, start in enumerate(starts)]


def encode_in_windows(
    texts: Sequence[TokenizedText], limit: int, encode: Callable[[Sequence[TokenizedText]], TextOutput]
) -> TextOutput:
    """Encode texts with a function that reads at most ``limit`` tokens of each.

    Args:
        texts: tokenized texts of any length. Where all fit, ``encode`` is called once and its result returned.
        limit: real tokens that fit beside the special ones.
        encode: the teacher's own forward pass.

    Returns:
        As the teacher's, but without places for special tokens: token i of a text is at position i.
    """
    if all(len(text.ids) <= limit for text in texts):
        return encode(texts)
    plans = [windows_of(len(text.ids), limit) for text in texts]
    pieces = [
        TokenizedText(text.ids[window.start : window.stop], text.spans[window.start : window.stop], text.approximate)
        for text, plan in zip(texts, plans, strict=True)
        for window in plan
    ]
    output = encode(pieces)
    device, dim = output.tokens.device, output.tokens.shape[-1]
    width = max(len(text.ids) for text in texts)
    tokens = output.tokens.new_zeros(len(texts), width, dim)
    globals_ = torch.zeros(len(texts), dim, dtype=torch.float32, device=device)
    mask = torch.zeros(len(texts), width, dtype=torch.bool)
    spans = torch.zeros(len(texts), width, 2, dtype=torch.int32)
    piece = 0
    for row, (text, plan) in enumerate(zip(texts, plans, strict=True)):
        n = len(text.ids)
        for window in plan:
            places = output.mask[piece].nonzero().squeeze(1)  # on the host: the device would be asked for their number
            real: Tensor = output.tokens[piece][places.to(device, non_blocking=True)]
            tokens[row, window.first : window.last] = real[window.first - window.start : window.last - window.start]
            share = (window.last - window.first) / n if n else 1.0
            globals_[row] += output.global_[piece].float() * share
            piece += 1
        mask[row, :n] = True
        if n:
            spans[row, :n] = torch.tensor(text.spans, dtype=torch.int32)
    return TextOutput(tokens, globals_.to(output.global_.dtype), mask, spans)
