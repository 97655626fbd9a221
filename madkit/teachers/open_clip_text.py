"""open_clip's text encoders that are not its plain transformer: those of transformers, and CoCa's."""

from __future__ import annotations

from typing import Any

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from madkit.teachers.hf_text import TextEncoder

HF_LAYER = "last_hidden_state+proj"
CLASS_LAYER = "last+ln_final+text_projection"


def text_way(text: nn.Module | None, *, embed_dim: int) -> TextEncoder | None:
    """Return the way through ``model.text``, or None for open_clip's plain transformer and what is unknown."""
    if isinstance(text, HFTextEncoder):
        return _hf(text, embed_dim)
    if isinstance(text, TextTransformer) and text.cls_emb is not None:
        return _class_token(text, embed_dim)
    return None


def _hf(text: Any, dim: int) -> TextEncoder:
    """A text encoder of transformers, whose pooled vector open_clip projects: so is every token."""

    def forward(ids: Tensor, attention: Tensor | None) -> tuple[Tensor, Tensor]:
        output: Any = text.transformer(input_ids=ids, attention_mask=attention)
        pooled = text.pooler(output, torch.ones_like(ids) if attention is None else attention)
        return text.proj(output.last_hidden_state), text.proj(pooled.to(output.last_hidden_state.dtype))

    pooling = f"{type(text.pooler).__name__}+proj"
    return TextEncoder(text, forward, dim, int(text.vocab_size), HF_LAYER, pooling)


def _class_token(text: Any, dim: int) -> TextEncoder:
    """CoCa's: the class token stands behind the padding, at the last position, so texts keep their full width."""

    def forward(ids: Tensor, attention: Tensor | None) -> tuple[Tensor, Tensor]:
        found = text.forward_intermediates(ids, indices=1, normalize_intermediates=True, output_fmt="NLC")
        tokens: Tensor = found["text_intermediates"][-1]
        projection = text.text_projection
        if projection is not None:
            tokens = projection(tokens) if isinstance(projection, nn.Linear) else tokens @ projection
        return tokens, found["text_features"]

    return TextEncoder(text, forward, dim, int(text.vocab_size), CLASS_LAYER, "class token", full_width=True)
