"""Vision encoders of the ``transformers`` library: CLIP's, SigLIP's, DINOv2, ViT and other patch models.

Tokens are those of the patches, without class and register tokens: the last hidden state, where a final norm that the
library applies to the class token only (CLIP's ``post_layernorm``) is applied to them, too. The global vector is the
library's ``pooler_output``; where the weights hold no pooler it is the class token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from madkit.core.errors import ConfigError
from madkit.teachers.grid_vision import Forward
from madkit.teachers.hf_files import quiet
from madkit.teachers.preprocess import Preprocessing

_INTERPOLATION = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
CLASS_TOKEN, PATCH_MEAN = "class token", "mean of patch tokens"


def image_preprocessing(folder: Path, *, name: str) -> Preprocessing:
    """Read a folder's image processor.

    Raises:
        ConfigError: there is none, or it does something else than resize, crop, scale and normalise.
    """
    from transformers import AutoImageProcessor

    try:
        with quiet():
            found = AutoImageProcessor.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
            config: dict[str, Any] = found.to_dict()
    except Exception as error:  # the library raises unrelated families
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]
        raise ConfigError(
            f"The image processor of '{name}' in {folder} cannot be read ({first}).",
            hint="the folder needs the model's preprocessor_config.json",
        ) from None
    return preprocessing_of(config, name=name)


def preprocessing_of(config: dict[str, Any], *, name: str) -> Preprocessing:
    """Turn an image processor's settings into ours (ConfigError for steps that madkit does not have)."""
    size, crop = _edges(config.get("size")), _edges(config.get("crop_size"))
    if not config.get("do_center_crop"):
        crop = {}
    resample = config.get("resample", 3)
    interpolation = _INTERPOLATION.get(int(getattr(resample, "value", resample) or 0))
    scale = config.get("rescale_factor") or 1 / 255
    squashed = "height" in size
    checks = {
        "images are not resized to a fixed size": bool(config.get("do_resize", True)) and bool(size),
        f"the resampling filter {resample}": interpolation is not None,
        "pixels are not scaled to 0..1": bool(config.get("do_rescale", True)) and abs(scale * 255 - 1) < 1e-6,
        "images are padded": not config.get("do_pad"),
        "images keep their shape": squashed or "height" in crop,
        "images are squashed to a rectangle and then cropped": not (squashed and crop)
        or size["height"] == size["width"],
        "the crop is larger than the image": not crop or max(crop.values()) <= min(size.values(), default=0),
    }
    problem = next((what for what, fine in checks.items() if not fine), None)
    if problem is not None:
        raise ConfigError(f"The preprocessing of '{name}' is not one that madkit has: {problem}.")
    normalised = config.get("do_normalize", True)
    final = crop or size
    plain = Preprocessing.from_config(
        {
            "size": (final["height"], final["width"]),
            "mean": config["image_mean"] if normalised else (0.0, 0.0, 0.0),
            "std": config["image_std"] if normalised else (1.0, 1.0, 1.0),
        }
    )
    edge = size["height"] if squashed else size["shortest_edge"]
    return replace(
        plain,
        interpolation=interpolation or "",
        resize_mode="squash" if squashed else "shortest",
        resize_edge=edge if crop and plain.size != (edge, edge) else None,
        crop="floor" if crop else "round",
    )


def _edges(value: Any) -> dict[str, int]:
    """Return {"height", "width"}, {"shortest_edge"}, or nothing for what madkit does not know."""
    if isinstance(value, int):
        return {"height": value, "width": value}
    if not isinstance(value, dict):
        return {}
    edges = {str(key): int(number) for key, number in value.items() if number is not None}
    return edges if set(edges) in ({"shortest_edge"}, {"height", "width"}) else {}


@dataclass(frozen=True, slots=True)
class VisionLayout:
    """How a vision model lays out its last hidden state.

    Attributes:
        grid: (rows, columns) of tokens.
        before: class and register tokens before those of the grid.
        dim: width of a token.
        is_map: [B, D, rows, columns] instead of [B, before + P, D].
        pooled: whether there is a ``pooler_output`` as wide as a token.
    """

    grid: tuple[int, int]
    before: int
    dim: int
    is_map: bool = False
    pooled: bool = False

    def tokens(self, hidden: Tensor) -> Tensor:
        """Return the tokens [B, P, D] of a last hidden state, row by row."""
        return hidden.flatten(2).transpose(1, 2) if self.is_map else hidden[:, self.before :]


def vision_layout(skeleton: nn.Module, size: tuple[int, int], *, name: str) -> VisionLayout:
    """Find the layout of a model's output with an image that has no content.

    Args:
        skeleton: a vision model on torch's meta device.
        size: (height, width) of the input.
        name: the teacher, for errors.

    Raises:
        ConfigError: images of that size do not fit the model, or its output is no grid of tokens.
    """
    config: Any = skeleton.config
    pixels = torch.zeros(1, 3, *size, device="meta")
    try:
        with quiet(), torch.inference_mode():
            output: Any = skeleton(pixel_values=pixels, **_unmasked(skeleton, 1, size, pixels.device))
    except (ValueError, RuntimeError, TypeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ConfigError(
            f"The vision encoder of '{name}' cannot read {size[0]} x {size[1]} pixels ({first})."
        ) from None
    shape = tuple(output.last_hidden_state.shape)
    pooled = getattr(output, "pooler_output", None)
    widths = [] if pooled is None else [pooled.flatten(1).shape[1]]
    if len(shape) == 4:
        return VisionLayout((shape[2], shape[3]), 0, shape[1], is_map=True, pooled=widths == [shape[1]])
    most = 2 + int(getattr(config, "num_register_tokens", 0) or 0)
    for grid in _grids(config, size, shape):
        before = shape[1] - grid[0] * grid[1]
        if 0 <= before <= most:
            return VisionLayout(grid, before, shape[2], pooled=widths == [shape[2]])
    raise ConfigError(f"The vision encoder of '{name}' gives {shape}, in which madkit sees no grid of patches.")


def _grids(config: Any, size: tuple[int, int], shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return the grids that an output may be: that of the patches, then a square with or without a class token."""
    if len(shape) != 3:
        return []
    patch = getattr(config, "patch_size", None)
    sides = [patch, patch] if isinstance(patch, int) else list(patch or ())
    found = [(size[0] // int(sides[0]), size[1] // int(sides[1]))] if len(sides) == 2 else []
    for count in (shape[1], shape[1] - 1):
        side = math.isqrt(max(0, count))
        if side * side == count and size[0] == size[1]:
            found.append((side, side))
    return found


def _unmasked(model: nn.Module, n: int, size: tuple[int, int], device: torch.device) -> dict[str, Any]:
    """Return what makes a masked autoencoder see every patch, in order: it hides most of them at random otherwise."""
    config: Any = model.config
    if config.model_type != "vit_mae":
        return {}
    config.mask_ratio = 0.0
    count = (size[0] // config.patch_size) * (size[1] // config.patch_size)
    return {"noise": torch.arange(count, device=device, dtype=torch.float32).expand(n, count)}


def vision_forward(model: nn.Module, layout: VisionLayout, *, pooled: bool) -> tuple[Forward, str, str]:
    """Return the way through a vision model, and the names of its layer and of its global vector.

    Args:
        model: a vision model of the library.
        layout: of :func:`vision_layout`.
        pooled: whether the weights hold what makes ``pooler_output``.
    """
    encoder: Any = getattr(model, "vision_model", model)
    config: Any = model.config
    norm = encoder.post_layernorm if config.model_type == "clip_vision_model" else None
    layer = "last_hidden_state" + ("+post_layernorm" if norm is not None else "")
    global_name = "pooler_output" if pooled else CLASS_TOKEN if layout.before else PATCH_MEAN

    def forward(pixels: Tensor) -> tuple[Tensor, Tensor]:
        height, width = pixels.shape[-2:]
        output: Any = model(pixel_values=pixels, **_unmasked(model, len(pixels), (height, width), pixels.device))
        hidden: Tensor = output.last_hidden_state
        tokens = layout.tokens(hidden)
        if norm is not None:
            tokens = norm(tokens)
        if pooled:
            return tokens, output.pooler_output.flatten(1)
        return tokens, hidden[:, 0] if layout.before else tokens.mean(1)

    return forward, layer, global_name


def has_pooler(missing: frozenset[str], layout: VisionLayout) -> bool:
    """Whether the model gives a ``pooler_output``, and the weights held all that makes it."""
    return layout.pooled and not any("pooler." in key for key in missing)
