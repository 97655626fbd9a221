"""CLIP and SigLIP of the ``transformers`` library as pairs whose vectors live in one space.

Every token goes the way of the pooled one. CLIP: patches through ``post_layernorm`` and ``visual_projection``, words
through ``text_projection``. SigLIP: a patch is what the attention-pooling head says when it sees that patch alone, a
word goes through the text head; texts are padded to the full length, as in its training.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from madkit.teachers.grid_vision import Forward
from madkit.teachers.hf_text import TextEncoder


def pair_vision(model: nn.Module, before: int) -> tuple[Forward, str, str]:
    """Return the way through the vision half, and the names of its layer and of its global vector."""
    owner: Any = model
    encoder, kind = owner.vision_model, owner.config.model_type

    def clip(pixels: Tensor) -> tuple[Tensor, Tensor]:
        output: Any = encoder(pixel_values=pixels)
        patches = encoder.post_layernorm(output.last_hidden_state[:, before:])
        return owner.visual_projection(patches), owner.visual_projection(output.pooler_output)

    def siglip(pixels: Tensor) -> tuple[Tensor, Tensor]:
        output: Any = encoder(pixel_values=pixels)
        hidden: Tensor = output.last_hidden_state
        alone = encoder.head(hidden.reshape(-1, 1, hidden.shape[-1]))
        return alone.view(hidden.shape), output.pooler_output

    if kind == "siglip":
        return siglip, "last_hidden_state+head of one patch", "pooler_output"
    return clip, "last_hidden_state+post_layernorm+visual_projection", "pooler_output+visual_projection"


def pair_text(model: nn.Module) -> TextEncoder:
    """Return the text half of a CLIP or SigLIP model."""
    owner: Any = model
    encoder, config = owner.text_model, owner.config

    def clip(ids: Tensor, attention: Tensor | None) -> tuple[Tensor, Tensor]:
        output: Any = encoder(input_ids=ids, attention_mask=attention)
        return owner.text_projection(output.last_hidden_state), owner.text_projection(output.pooler_output)

    def siglip(ids: Tensor, attention: Tensor | None) -> tuple[Tensor, Tensor]:
        output: Any = encoder(input_ids=ids)  # trained without a mask: padding is attended to
        return encoder.head(output.last_hidden_state), output.pooler_output

    vocabulary = int(config.text_config.vocab_size)
    if config.model_type == "siglip":
        dim = int(encoder.head.out_features)
        layer, pooling = "last_hidden_state+head", "last position+head"
        return TextEncoder(model, siglip, dim, vocabulary, layer, pooling, full_width=True)
    layer, pooling = "last_hidden_state+text_projection", "pooler_output+text_projection"
    return TextEncoder(model, clip, int(config.projection_dim), vocabulary, layer, pooling)
