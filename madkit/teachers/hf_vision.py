"""Vision encoders of the ``transformers`` library: CLIP's, SigLIP's, DINOv2, ViT and other patch models.

Tokens are those of the patches, without class and register tokens: the last hidden state, where a final norm that the
library applies to the class token only (CLIP's ``post_layernorm``) is applied to them, too. The global vector is the
library's ``pooler_output``; where the weights hold no pooler it is the class token.
"""

from __future__ import annotations

from dataclasses import replace
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


def patch_grid(skeleton: nn.Module, size: tuple[int, int], *, name: str) -> tuple[tuple[int, int], int]:
    """Return (grid, number of tokens before the patches) of a model, found with an image that has no content.

    Args:
        skeleton: a vision model on torch's meta device.
        size: (height, width) of the input.
        name: the teacher, for errors.

    Raises:
        ConfigError: images of that size do not fit the model, or its output is no grid of patches.
    """
    config: Any = skeleton.config
    patch = getattr(config, "patch_size", None)
    sides = [patch, patch] if isinstance(patch, int) else list(patch or ())
    if len(sides) != 2:
        raise ConfigError(
            f"The vision encoder of '{name}' does not cut images into patches.", hint="for convnets use timm:NAME"
        )
    try:
        with quiet(), torch.inference_mode():
            output: Any = skeleton(pixel_values=torch.zeros(1, 3, *size, device="meta"))
    except (ValueError, RuntimeError, TypeError) as error:
        first = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(
            f"The vision encoder of '{name}' cannot read {size[0]} x {size[1]} pixels ({first})."
        ) from None
    grid = (size[0] // int(sides[0]), size[1] // int(sides[1]))
    shape = tuple(output.last_hidden_state.shape)
    before = shape[1] - grid[0] * grid[1] if len(shape) == 3 else -1
    if before < 0 or before > 1 + int(getattr(config, "num_register_tokens", 0) or 0):
        raise ConfigError(
            f"The vision encoder of '{name}' gives {shape} where a grid of {grid[0]} x {grid[1]} patches was expected."
        )
    return grid, before


def vision_forward(model: nn.Module, before: int, *, pooled: bool) -> tuple[Forward, str, str]:
    """Return the way through a vision model, and the names of its layer and of its global vector.

    Args:
        model: a vision model of the library.
        before: number of tokens before the patches.
        pooled: whether the weights hold what makes ``pooler_output``.
    """
    encoder: Any = getattr(model, "vision_model", model)
    config: Any = model.config
    norm = encoder.post_layernorm if config.model_type == "clip_vision_model" else None
    layer = "last_hidden_state" + ("+post_layernorm" if norm is not None else "")
    global_name = "pooler_output" if pooled else CLASS_TOKEN if before else PATCH_MEAN

    def forward(pixels: Tensor) -> tuple[Tensor, Tensor]:
        output: Any = model(pixel_values=pixels)
        hidden: Tensor = output.last_hidden_state
        tokens = hidden[:, before:] if norm is None else norm(hidden[:, before:])
        if pooled:
            return tokens, output.pooler_output
        return tokens, hidden[:, 0] if before else tokens.mean(1)

    return forward, layer, global_name


def has_pooler(model: nn.Module, missing: frozenset[str], *, before: int) -> bool:
    """Whether ``pooler_output`` is made of weights that were there: a norm, a dense layer, or a head."""
    encoder: Any = getattr(model, "vision_model", model)
    config: Any = model.config
    if any("pooler." in key for key in missing):
        return False
    if config.model_type == "siglip_vision_model":
        return bool(getattr(encoder, "use_head", True))
    if hasattr(encoder, "pooler"):
        return encoder.pooler is not None
    return before > 0 and hasattr(encoder, "post_layernorm" if "clip" in config.model_type else "layernorm")
