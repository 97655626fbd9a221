"""Text encoders of the ``transformers`` library (BERT, RoBERTa, DeBERTa, MiniLM, ...) as teachers.

Tokens are the last hidden state. The global vector is what a sentence encoder's folder says (the mean over all
positions, the first one, ...), else the library's own ``pooler_output`` where the weights hold a pooler, and else the
mean over the real tokens; which one it is stands in the identity.
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
CLASS_TOKEN, LAST_TOKEN, MAXIMUM = "first token", "last token", "maximum over all tokens, special ones included"
POOLED_HERE = (ALL_MEAN, REAL_MEAN, CLASS_TOKEN, LAST_TOKEN, MAXIMUM)


@dataclass(frozen=True, slots=True)
class TextEncoder:
    """A model's way from ids to vectors.

    Attributes:
        model: holds the weights.
        forward: (ids [B, T], attention mask [B, T] or None where nothing is padding) -> (tokens [B, T, D], the
            library's pooled output [B, D]); the latter is not looked at where ``pooling`` is one of ``POOLED_HERE``.
        dim: D.
        vocabulary: how many ids the model knows.
        layer: where the tokens are taken, for the identity.
        pooling: where the global vector comes from: one of ``POOLED_HERE``, or the library's pooled output.
        always_masked: the library looks at the ids on the host where it is given no mask.
        full_width: texts are padded to the full length as in the model's training, not to the longest of the batch.
    """

    model: nn.Module
    forward: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]
    dim: int
    vocabulary: int
    layer: str = "last_hidden_state"
    pooling: str = POOLER
    full_width: bool = False
    always_masked: bool = False


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
        self.full_width = encoder.full_width
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
        batch = self._batch(texts, full_width=self.full_width)
        if batch.ids.numel() and int(batch.ids.max()) >= encoder.vocabulary:
            raise DataError(
                f"The tokenizer of '{self.name}' gives ids up to {int(batch.ids.max())}, and the model knows "
                f"{encoder.vocabulary} tokens: they do not belong together.",
                hint="put the tokenizer's files of the same checkpoint beside its weights",
            )
        device = next(encoder.model.parameters()).device
        # Without padding there is nothing to mask, and the library asks the device, once per batch, about a mask.
        attention = None
        if encoder.always_masked or not bool(batch.attention.all()):
            attention = batch.attention.to(device, non_blocking=True).long()
        hidden, pooled = encoder.forward(batch.ids.to(device, non_blocking=True), attention)
        if encoder.pooling in POOLED_HERE:
            pooled = _pool(hidden, batch, encoder.pooling)
        return TextOutput(hidden, pooled, batch.mask, batch.spans)


def _pool(hidden: Tensor, batch: TextBatch, pooling: str) -> Tensor:
    """Pool the hidden states [B, T, D] of a batch into [B, D]; what is masked was built on the host."""
    device = hidden.device
    if pooling == CLASS_TOKEN:
        return hidden[:, 0]
    if pooling == LAST_TOKEN:
        last = (batch.attention.sum(1) - 1).to(device)
        return hidden[torch.arange(len(hidden), device=device), last]
    if pooling == MAXIMUM:
        return hidden.masked_fill(~batch.attention.to(device).unsqueeze(-1), -torch.inf).amax(1)
    return (hidden.float() * _shares(batch, pooling).to(device)).sum(1).to(hidden.dtype)


def _shares(batch: TextBatch, pooling: str) -> Tensor:
    """Return how much each position counts in the mean of its text, [B, T, 1]."""
    weights = batch.attention
    if pooling == REAL_MEAN:  # an empty text has no real tokens; its special tokens are all there is
        weights = torch.where(batch.mask.any(1, keepdim=True), batch.mask, batch.attention)
    return (weights.float() / weights.sum(1, keepdim=True).clamp_min(1)).unsqueeze(-1)
