"""open_clip's image encoders that are no plain vision transformers: how their tokens get into the common space.

Every token is what the encoder's own head says when it sees that place alone:

- ResNets with attention pooling: a cell of the last map, its position added, goes through the value and output
  projections of the pooling. That is the whole pooling for a single cell, since a softmax over one key is one.
- Vision transformers that pool by learnt queries (CoCa): the first query, which the global vector comes from, looks at
  one patch only; then ``ln_post`` and ``proj``.
- Encoders of timm (ConvNeXt, Swin, EVA, SigLIP, ViTamin, MobileCLIP, ...): timm's ``forward_head`` on a map of one cell
  or on a sequence of one token, then open_clip's projection.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.func import functional_call

from madkit.core.errors import ConfigError
from madkit.teachers.grid_vision import Forward
from madkit.teachers.timm_vision import FeatureLayout, feature_layout

ATTENTION_POOL = "layer4+attnpool of one cell"
QUERY_POOL = "last+attn_pool of one patch+ln_post+proj"
TIMM_HEAD = "forward_features+head of one token"


@dataclass(frozen=True, slots=True)
class VisionWay:
    """An image encoder's way from pixels to tokens.

    Attributes:
        forward: see :data:`madkit.teachers.grid_vision.Forward`.
        grid: (rows, columns) of tokens.
        dim: width of tokens and global vectors.
        layer: where tokens are taken, for the identity.
    """

    forward: Forward
    grid: tuple[int, int]
    dim: int
    layer: str


def vision_way(visual: nn.Module, *, embed_dim: int, name: str) -> VisionWay:
    """Return the way through one of open_clip's image encoders.

    Args:
        visual: ``model.visual``.
        embed_dim: width of the common space.
        name: the teacher, for errors.

    Raises:
        ConfigError: an encoder whose tokens cannot be brought into the common space.
    """
    if isinstance(visual, ModifiedResNet):
        return _resnet(visual)
    if isinstance(visual, TimmModel):
        return _timm(visual, embed_dim, name)
    if isinstance(visual, VisionTransformer) and visual.attn_pool is not None and visual.attn_pool_contrastive is None:
        return _queries(visual)
    raise ConfigError(
        f"The vision encoder of '{name}' ({type(visual).__name__}) gives no patch tokens that madkit can read.",
        hint="use another model, such as clip-vit-b32 or clip-vit-l14",
    )


def _resnet(visual: Any) -> VisionWay:
    pool = visual.attnpool
    side = int(visual.image_size) // 32  # the stem and three of the stages halve the map, the stem's pooling once more

    def forward(pixels: Tensor) -> tuple[Tensor, Tensor]:
        features = visual.stem(pixels)
        for stage in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
            features = stage(features)
        cells = features.flatten(2).transpose(1, 2) + pool.positional_embedding[1:].to(features.dtype)
        return pool.c_proj(pool.v_proj(cells)), pool(features)

    return VisionWay(forward, (side, side), int(visual.output_dim), ATTENTION_POOL)


def _queries(visual: Any) -> VisionWay:
    pool = visual.attn_pool

    def forward(pixels: Tensor) -> tuple[Tensor, Tensor]:
        found = visual.forward_intermediates(pixels, indices=1, output_fmt="NLC")
        patches: Tensor = found["image_intermediates"][-1]
        keys = pool.ln_k(patches.reshape(-1, 1, patches.shape[-1]))
        query = pool.ln_q(pool.query[:1]).expand(len(keys), 1, -1)
        seen = pool.attn(query, keys, keys, need_weights=False)[0]
        tokens = visual.ln_post(seen).view(*patches.shape[:2], -1) @ visual.proj
        return tokens, found["image_features"]

    grid = (int(visual.grid_size[0]), int(visual.grid_size[1]))
    return VisionWay(forward, grid, int(visual.output_dim), QUERY_POOL)


def _timm(visual: Any, embed_dim: int, name: str) -> VisionWay:
    trunk = visual.trunk
    if "pool" in dict(visual.head.named_children()):
        raise ConfigError(f"The vision encoder of '{name}' pools with an attention that needs its whole map.")
    layout = _layout(trunk, visual.image_size, name)

    def forward(pixels: Tensor) -> tuple[Tensor, Tensor]:
        features: Tensor = trunk.forward_features(pixels)
        tokens = layout.tokens(features)
        alone = layout.alone(tokens)
        projected = visual.head(trunk.forward_head(alone)).view(*tokens.shape[:2], -1)
        return projected, visual.head(trunk.forward_head(features))

    return VisionWay(forward, layout.grid, embed_dim, TIMM_HEAD)


def _layout(trunk: nn.Module, size: tuple[int, int], name: str) -> FeatureLayout:
    """Find the shape of a model's features with an image without content: on the meta device nothing is computed."""
    named = {**dict(trunk.named_parameters()), **dict(trunk.named_buffers())}
    shadow = {
        key: torch.empty_like(value, device="meta", dtype=torch.float32 if value.is_floating_point() else None)
        for key, value in named.items()
    }

    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = trunk

        def forward(self, pixels: Tensor) -> Any:
            owner: Any = self.trunk
            return owner.forward_features(pixels)

    weights = {f"trunk.{key}": value for key, value in shadow.items()}
    try:
        with torch.inference_mode():
            features = functional_call(Features(), weights, (torch.zeros(1, 3, *size, device="meta"),))
    except (AssertionError, RuntimeError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:160]
        stated = f"{size[0]} x {size[1]} pixels"
        raise ConfigError(
            f"The vision encoder of '{name}' cannot read the {stated} that open_clip states for it ({first})."
        ) from None
    return feature_layout(trunk, features, size, name=name)
