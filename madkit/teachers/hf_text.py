"""Text encoders of the ``transformers`` library (BERT, RoBERTa, DeBERTa, MiniLM, ...) as teachers.

Tokens are the last hidden state. The global vector is the library's own ``pooler_output`` where the weights hold a
pooler, the mean over all positions where the folder says that the model is a mean-pooling sentence encoder, and the
mean over the real tokens otherwise; which one it is stands in the identity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from madkit.core.errors import DataError
from madkit.teachers.fast_tokenizer import FastTokenizer
from madkit.teachers.interface import TextOutput, TokenizedText
from madkit.teachers.text_batch import text_batch
from madkit.teachers.windows import encode_in_windows

POOLER, ALL_MEAN, REAL_MEAN = "pooler_output", "mean of all tokens, special ones included", "mean of real tokens"


@dataclass(frozen=True, slots=True)
class TextEncoder:
    """A model's way from ids to vectors.

    Attributes:
        model: holds the weights.
        forward: (ids [B, T], attention mask [B, T]) -> (tokens [B, T, D], the library's pooled output [B, D]); the
            latter is not looked at where ``pooling`` is a mean.
        dim: D.
        vocabulary: how many ids the model knows.
        layer: where the tokens are taken, for the identity.
        pooling: where the global vector comes from: ``ALL_MEAN``, ``REAL_MEAN``, or the library's pooled output.
        full_width: texts are padded to the full length as in the model's training, not to the longest of the batch.
    """

    model: nn.Module
    forward: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    dim: int
    vocabulary: int
    layer: str = "last_hidden_state"
    pooling: str = POOLER
    full_width: bool = False


class HfText:
    """A text encoder. See :class:`madkit.teachers.interface.TextTeacher`.

    Args:
        name: canonical name.
        encoder: the model and how to read it.
        tokenizer: its tokenizer.
        context_length: longest input, special tokens included.
        weights: digest of the weights.
    """

    def __init__(
        self,
        name: str,
        encoder: TextEncoder,
        tokenizer: FastTokenizer,
        context_length: int,
        weights: str,
    ) -> None:
        self.name = name
        self.dim = encoder.dim
        self.tokenizer = tokenizer
        self.context_length = context_length
        self.limit = context_length - tokenizer.specials
        self._encoder = encoder
        self.identity: dict[str, Any] = {
            "library": "transformers",
            "weights": weights,
            "tokenizer": tokenizer.digest,
            "context_length": context_length,
            "layer": encoder.layer,
            "global": encoder.pooling,
            "dim": self.dim,
        }

    def tokenize(self, texts: Sequence[str]) -> list[TokenizedText]:
        """Tokenize without special tokens."""
        return self.tokenizer.tokenize(texts)

    def encode(self, texts: Sequence[str]) -> TextOutput:
        """Tokenize and encode."""
        return self.encode_tokenized(self.tokenize(texts))

    @torch.inference_mode()
    def encode_tokenized(self, texts: Sequence[TokenizedText]) -> TextOutput:
        """Encode tokenized texts, those beyond ``limit`` in windows (:mod:`madkit.teachers.windows`)."""
        return encode_in_windows(texts, self.limit, self._encode_short)

    def _encode_short(self, texts: Sequence[TokenizedText]) -> TextOutput:
        encoder, special = self._encoder, self.tokenizer
        width = self.context_length if encoder.full_width else None
        batch = text_batch(texts, special.prefix, special.suffix, special.pad_id, width=width)
        if batch.ids.numel() and int(batch.ids.max()) >= encoder.vocabulary:
            raise DataError(
                f"The tokenizer of '{self.name}' gives ids up to {int(batch.ids.max())}, and the model knows "
                f"{encoder.vocabulary} tokens: they do not belong together."
            )
        device = next(encoder.model.parameters()).device
        attention = batch.attention.to(device)
        hidden, pooled = encoder.forward(batch.ids.to(device), attention.long())
        if encoder.pooling not in (ALL_MEAN, REAL_MEAN):
            global_ = pooled
        else:
            real = batch.mask.to(device)
            # An empty text has no real tokens; its special tokens are all there is.
            weights = (
                attention if encoder.pooling == ALL_MEAN else torch.where(real.any(1, keepdim=True), real, attention)
            )
            shares = weights.float() / weights.sum(1, keepdim=True).clamp_min(1)
            global_ = (hidden.float() * shares.unsqueeze(-1)).sum(1).to(hidden.dtype)
        return TextOutput(hidden, global_, batch.mask, batch.spans)
