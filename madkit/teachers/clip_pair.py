"""A pair of encoders built by open_clip, giving tokens in the shared space.

Of open_clip's own transformers, image tokens are the patch tokens of the last layer through ``ln_post`` and ``proj``,
the way the class token goes, and text tokens the last layer through ``ln_final`` and ``text_projection``, the way the
pooled token goes; for its other encoders see :mod:`madkit.teachers.open_clip_vision` and ``open_clip_text``. Global
vectors are the library's own ``encode_image`` and ``encode_text``, not normalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIP
from open_clip.transformer import TextTransformer, VisionTransformer, text_global_pool
from torch import Tensor, nn

from madkit.core.errors import ConfigError
from madkit.teachers.digest import weights_digest
from madkit.teachers.grid_vision import GridVision
from madkit.teachers.hf_text import HfText
from madkit.teachers.interface import (
    SpanTokenizer,
    Teacher,
    TextOutput,
    TextTeacher,
    TokenizedText,
    VisionOutput,
    VisionTeacher,
)
from madkit.teachers.open_clip_text import text_way
from madkit.teachers.open_clip_vision import vision_way
from madkit.teachers.preprocess import Preprocessing
from madkit.teachers.text_teacher import WindowedText

VISION_LAYER = "last+ln_post+proj"
TEXT_LAYER = "last+ln_final+text_projection"
DEFAULT_CONTEXT = 77  # what open_clip's tokenizers cut at where an architecture states nothing
NOT_READING = ("visual.", "text_decoder.")  # CoCa's decoder writes captions; no token comes from it


class ClipVision:
    """The vision half of a pair. See :class:`madkit.teachers.interface.VisionTeacher`."""

    def __init__(self, name: str, visual: VisionTransformer, preprocessing: Preprocessing, weights: str) -> None:
        self.name = name
        self.visual = visual
        self.preprocessing = preprocessing
        self.dim = int(visual.output_dim)
        self.grid = (int(visual.grid_size[0]), int(visual.grid_size[1]))
        self.image_size = preprocessing.size
        self.identity: dict[str, Any] = {
            "weights": weights,
            "preprocessing": preprocessing.identity(),
            "layer": VISION_LAYER,
            "dim": self.dim,
            "grid": list(self.grid),
        }

    def load_image(self, path: Path) -> Tensor:
        """Read an image file as uint8 [3, H, W] (DataError when it cannot be)."""
        return self.preprocessing.load(path)

    @torch.inference_mode()
    def encode(self, images: Tensor) -> VisionOutput:
        """Encode uint8 [B, 3, H, W] into tokens [B, P, D] and global vectors [B, D] on the device of the weights."""
        weight = self.visual.conv1.weight
        pixels = self.preprocessing.normalise(images.to(weight.device, non_blocking=True), weight.dtype)
        outputs = self.visual.forward_intermediates(pixels, indices=1, normalize_intermediates=True, output_fmt="NLC")
        tokens = outputs["image_intermediates"][-1]
        if self.visual.proj is not None:
            tokens = tokens @ self.visual.proj
        return VisionOutput(tokens, outputs["image_features"], self.grid)


@dataclass(frozen=True, slots=True)
class _TextParts:
    """The modules of a text encoder, which open_clip keeps in two places."""

    token_embedding: nn.Embedding
    positional_embedding: Tensor
    transformer: Any  # open_clip.transformer.Transformer
    ln_final: nn.Module
    projection: Any
    attn_mask: Tensor | None
    pool_type: str
    eos_id: int | None
    context_length: int


def _text_parts(name: str, model: nn.Module) -> _TextParts:
    text = model if isinstance(model, CLIP) else getattr(model, "text", None)
    plain = isinstance(model, CLIP) or (isinstance(text, TextTransformer) and text.cls_emb is None)
    if not plain or text is None:
        kind = type(text).__name__ if text is not None else type(model).__name__
        raise ConfigError(
            f"The text encoder of '{name}' ({kind}) is not one that madkit can read tokens from.",
            hint="use a model with open_clip's plain text transformer, such as clip-vit-b32 or clip-vit-l14",
        )
    owner: Any = text
    is_clip = isinstance(model, CLIP)
    return _TextParts(
        token_embedding=owner.token_embedding,
        positional_embedding=owner.positional_embedding,
        transformer=owner.transformer,
        ln_final=owner.ln_final,
        projection=owner.text_projection,
        attn_mask=owner.attn_mask,
        pool_type=owner.text_pool_type if is_clip else owner.pool_type,
        eos_id=getattr(owner, "text_eos_id" if is_clip else "eos_id", None),
        context_length=int(owner.context_length),
    )


class ClipText(WindowedText):
    """The text half of a pair. See :class:`madkit.teachers.interface.TextTeacher`.

    With a causal mask, and pooling at the end token, what follows the end token cannot reach anything that is kept;
    such texts are padded to the longest of the batch only. Any other model reads them padded as in its training.
    """

    def __init__(self, name: str, model: nn.Module, tokenizer: SpanTokenizer, dim: int, weights: str) -> None:
        parts = _text_parts(name, model)
        super().__init__(name, tokenizer, parts.context_length, dim)
        self._parts = parts
        short = self._parts.attn_mask is not None and self._parts.pool_type in ("argmax", "eos", "first")
        self.full_width = not short
        self.identity = {
            "weights": weights,
            "tokenizer": tokenizer.digest,
            "context_length": self.context_length,
            "layer": TEXT_LAYER,
            "dim": dim,
        }

    def _encode_short(self, texts: Sequence[TokenizedText]) -> TextOutput:
        """Encode texts that fit. Position 0 is the start token, so tokens of a text are positions 1..n."""
        parts = self._parts
        batch = self._batch(texts, full_width=self.full_width)
        length = batch.ids.shape[1]
        dtype: torch.dtype = parts.transformer.get_cast_dtype()
        device = parts.positional_embedding.device
        ids = batch.ids.to(device, non_blocking=True)
        hidden = parts.token_embedding(ids).to(dtype) + parts.positional_embedding[:length].to(dtype)
        causal = None if parts.attn_mask is None else parts.attn_mask[:length, :length]
        hidden = parts.ln_final(parts.transformer(hidden, attn_mask=causal))
        pooled = text_global_pool(hidden, ids, parts.pool_type, eos_token_id=parts.eos_id)
        if parts.projection is not None:
            linear = isinstance(parts.projection, nn.Linear)
            hidden = parts.projection(hidden) if linear else hidden @ parts.projection
            pooled = parts.projection(pooled) if linear else pooled @ parts.projection
        return TextOutput(hidden, pooled, batch.mask, batch.spans)


def clip_pair(
    name: str,
    model: nn.Module,
    tokenizer: SpanTokenizer,
    preprocessing: Preprocessing,
    *,
    context_length: int | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Teacher:
    """Wrap an open_clip ``CLIP``, ``CustomTextCLIP`` or ``CoCa`` as a teacher in evaluation mode on ``device``.

    The digests are those of the weights as given, before they are cast to ``dtype``.
    For ``context_length`` see :func:`clip_sides`.

    Raises:
        ConfigError: the model has an encoder whose tokens cannot be read.
    """
    model.eval().requires_grad_(False)
    tensors: dict[str, Tensor] = dict(model.state_dict())
    vision_weights = weights_digest({key: value for key, value in tensors.items() if key.startswith("visual.")})
    text_weights = weights_digest({key: value for key, value in tensors.items() if not key.startswith(NOT_READING)})
    logit_scale = float(tensors["logit_scale"].float().exp().reshape(-1)[0])
    del tensors
    # Before the halves are made: they keep tensors, and a move gives a buffer's place to another tensor.
    model.to(device=device, dtype=dtype)
    vision, text = clip_sides(
        name,
        model,
        tokenizer,
        preprocessing,
        vision_weights=vision_weights,
        text_weights=text_weights,
        context_length=context_length,
    )
    return Teacher(
        name=name,
        vision=vision,
        text=text,
        shared_space=True,
        logit_scale=logit_scale,
        device=device,
        dtype=dtype,
    )


def clip_sides(
    name: str,
    model: nn.Module,
    tokenizer: SpanTokenizer,
    preprocessing: Preprocessing,
    *,
    vision_weights: str,
    text_weights: str,
    context_length: int | None = None,
) -> tuple[VisionTeacher, TextTeacher]:
    """Return the two halves of a pair. The model may be on torch's meta device.

    Args:
        name: the teacher.
        model: one of open_clip's models.
        tokenizer: the text half's.
        preprocessing: the image half's.
        vision_weights: digest of the image half's weights.
        text_weights: digest of the text half's weights.
        context_length: longest input that the model was trained with, for text encoders of transformers, which could
            read more; without it what they can.

    Raises:
        ConfigError: the model has an encoder whose tokens cannot be read.
    """
    visual: Any = model.visual
    dim = _common_dim(model)
    vision: VisionTeacher
    if isinstance(visual, VisionTransformer) and visual.attn_pool is None:
        vision = ClipVision(name, visual, preprocessing, vision_weights)
    else:
        way = vision_way(visual, embed_dim=dim, name=name)
        facts = {"library": "open_clip", "weights": vision_weights, "layer": way.layer, "global": "encode_image"}
        vision = GridVision(name, visual, way.forward, preprocessing, way.grid, way.dim, facts)
    encoder = text_way(getattr(model, "text", None), embed_dim=dim)
    if encoder is None:
        return vision, ClipText(name, model, tokenizer, dim, text_weights)
    owner: Any = encoder.model
    limits = [int(limit) for limit in (context_length, owner.context_length) if limit]  # 0: no limit of its own
    length = min(limits, default=DEFAULT_CONTEXT)
    return vision, HfText(name, encoder, tokenizer, length, text_weights, library="open_clip")


def _common_dim(model: Any) -> int:
    """Return the width of the space that images and texts share."""
    text = getattr(model, "text", None)
    found = getattr(model.visual, "output_dim", None) or getattr(text, "output_dim", None)
    if found is None:  # an image encoder of timm beside a text encoder that is spread over the model
        projection = model.text_projection
        found = projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1]
    return int(found)
