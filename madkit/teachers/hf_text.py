"""Text encoders of the ``transformers`` library (BERT, RoBERTa, DeBERTa, MiniLM, ...) as teachers.

Tokens are the last hidden state. The global vector is the library's own ``pooler_output`` where the weights hold a
pooler, the mean over all positions where the folder says that the model is a mean-pooling sentence encoder, and the
mean over the real tokens otherwise; which one it is stands in the identity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from madkit.core.errors import DataError
from madkit.teachers.interface import SpanTokenizer, TextOutput, TokenizedText
from madkit.teachers.text_batch import TextBatch
from madkit.teachers.text_teacher import WindowedText

POOLER, ALL_MEAN, REAL_MEAN = "pooler_output", "mean of all tokens, special ones included", "mean of real tokens"


@dataclass(frozen=True, slots=True)
class TextEncoder:
    """A model's way from ids to vectors.

    Attributes:
        model: holds the weights.
        forward: (ids [B, T], attention mask [B, T] or None where nothing is padding) -> (tokens [B, T, D], the
            library's pooled output [B, D]); the latter is not looked at where ``pooling`` is a mean.
        dim: D.
        vocabulary: how many ids the model knows.
        layer: where the tokens are taken, for the identity.
        pooling: where the global vector comes from: ``ALL_MEAN``, ``REAL_MEAN``, or the library's pooled output.
        full_width: texts are padded to the full length as in the model's training, not to the longest of the batch.
    """

    model: nn.Module
    forward: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]
    dim: int
    vocabulary: int
    layer: str = "last_hidden_state"
    pooling: str = POOLER
    full_width: bool = False


class HfText(WindowedText):
    """A text encoder. See :class:`madkit.teachers.interface.TextTeacher`.

    Args:
        name: canonical name.
        encoder: the model and how to read it.
        tokenizer: its tokenizer.
        context_length: longest input, special tokens included.
        weights: digest of the weights.
        library: whose model it is, for the identity.
    """

    def __init__(
        self,
        name: str,
        encoder: TextEncoder,
        tokenizer: SpanTokenizer,
        context_length: int,
        weights: str,
        *,
        library: str = "transformers",
    ) -> None:
        super().__init__(name, tokenizer, context_length, encoder.dim)
        self._encoder = encoder
        self.identity = {
            "library": library,
            "weights": weights,
            "tokenizer": tokenizer.digest,
            "context_length": context_length,
            "layer": encoder.layer,
            "global": encoder.pooling,
            "dim": self.dim,
        }

    def _encode_short(self, texts: Sequence[TokenizedText]) -> TextOutput:
        encoder = self._encoder
        batch = self._batch(texts, full_width=encoder.full_width)
        if batch.ids.numel() and int(batch.ids.max()) >= encoder.vocabulary:
            raise DataError(
                f"The tokenizer of '{self.name}' gives ids up to {int(batch.ids.max())}, and the model knows "
                f"{encoder.vocabulary} tokens: they do not belong together."
            )
        device = next(encoder.model.parameters()).device
        # Without padding there is nothing to mask, and the library asks the device, once per batch, about a mask.
        attention = None if bool(batch.attention.all()) else batch.attention.to(device, non_blocking=True).long()
        hidden, pooled = encoder.forward(batch.ids.to(device, non_blocking=True), attention)
        if encoder.pooling in (ALL_MEAN, REAL_MEAN):
            pooled = (hidden.float() * _shares(batch, encoder.pooling).to(device)).sum(1).to(hidden.dtype)
        return TextOutput(hidden, pooled, batch.mask, batch.spans)


def _shares(batch: TextBatch, pooling: str) -> Tensor:
    """Return how much each position counts in the mean of its text, [B, T, 1]."""
    weights = batch.attention
    if pooling == REAL_MEAN:  # an empty text has no real tokens; its special tokens are all there is
        weights = torch.where(batch.mask.any(1, keepdim=True), batch.mask, batch.attention)
    return (weights.float() / weights.sum(1, keepdim=True).clamp_min(1)).unsqueeze(-1)
