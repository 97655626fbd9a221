"""What text teachers of every library share: tokenize, read long texts in windows, put a batch together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from madkit.teachers.interface import SpanTokenizer, TextOutput, TokenizedText
from madkit.teachers.text_batch import TextBatch, text_batch
from madkit.teachers.windows import encode_in_windows


class WindowedText(ABC):
    """A text teacher but for its forward pass. See :class:`madkit.teachers.interface.TextTeacher`.

    Args:
        name: canonical name.
        tokenizer: its tokenizer.
        context_length: longest input, special tokens included.
        dim: width of tokens and global vectors.

    Attributes:
        full_width: whether every text is padded to ``context_length``, and not to the longest of its batch.
    """

    full_width = False

    def __init__(self, name: str, tokenizer: SpanTokenizer, context_length: int, dim: int) -> None:
        self.name = name
        self.dim = dim
        self.tokenizer = tokenizer
        self.context_length = context_length
        self.limit = context_length - len(tokenizer.prefix) - len(tokenizer.suffix)
        self.identity: dict[str, Any] = {}

    def tokenize(self, texts: Sequence[str]) -> list[TokenizedText]:
        """Tokenize without special tokens; what is longer than ``limit`` is encoded in windows."""
        return self.tokenizer.tokenize(texts)

    def encode(self, texts: Sequence[str]) -> TextOutput:
        """Tokenize and encode into tokens [B, T, D], T the longest text of the batch with its special tokens."""
        return self.encode_tokenized(self.tokenize(texts))

    @torch.inference_mode()
    def encode_tokenized(self, texts: Sequence[TokenizedText]) -> TextOutput:
        """Encode tokenized texts, those beyond ``limit`` in windows (:mod:`madkit.teachers.windows`)."""
        return encode_in_windows(texts, self.limit, self._encode_short)

    def _batch(self, texts: Sequence[TokenizedText], *, full_width: bool) -> TextBatch:
        """Put texts into tensors as wide as the longest of them, or as the teacher reads at most."""
        special = self.tokenizer
        width = self.context_length if full_width else None
        return text_batch(texts, special.prefix, special.suffix, special.pad_id, width=width)

    @abstractmethod
    def _encode_short(self, texts: Sequence[TokenizedText]) -> TextOutput:
        """Encode texts of at most ``limit`` tokens."""
