"""Vision encoders of the ``timm`` library: its ViTs give tokens, its convnets a map of features.

Tokens are what ``forward_features`` gives, class and register tokens left out, maps read row by row. The global vector
is timm's own pooled one (``forward_head`` before the classifier) where it is as wide as the tokens, and their mean
otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from madkit.core.errors import ConfigError, DataError, UsageProblem
from madkit.core.registry import suggest
from madkit.teachers.digest import weights_digest
from madkit.teachers.grid_vision import Forward, GridVision
from madkit.teachers.hf_vision import PATCH_MEAN
from madkit.teachers.interface import Teacher
from madkit.teachers.known import TeacherName
from madkit.teachers.preprocess import Preprocessing
from madkit.teachers.weights import read_weights, weights_file


def load_timm(parsed: TeacherName, weights: Path | None, device: str, dtype: torch.dtype) -> Teacher:
    """Load one of timm's models.

    Raises:
        UsageProblem: timm knows no such model; the message suggests the nearest.
        NotFoundError: the weights are neither here nor at the hub.
        DataError: the weights are damaged or of another model.
        ConfigError: a model whose features are no grid, or preprocessing that madkit does not have.
    """
    config = timm_config(parsed)
    path = weights_file(weights) if weights is not None else _fetch(parsed, config)
    model = build_timm_model(parsed, read_weights(path), path)
    preprocessing = timm_preprocessing(model, name=parsed.canonical)
    grid, forward, facts = timm_forward(model, build_timm_model(parsed), preprocessing.size, name=parsed.canonical)
    dim = int(model.num_features)
    facts = {"library": "timm", "weights": weights_digest(dict(model.state_dict())), **facts}
    model.to(device=device, dtype=dtype)
    vision = GridVision(parsed.canonical, model, forward, preprocessing, grid, dim, facts)
    return Teacher(parsed.canonical, vision, None, shared_space=False, logit_scale=1.0, device=device, dtype=dtype)


def timm_config(parsed: TeacherName) -> dict[str, Any]:
    """Return timm's facts about a model's weights (UsageProblem for a name that timm does not know)."""
    timm: Any = import_module("timm")  # its functions are not all annotated
    architecture, _, tag = parsed.rest.partition(".")
    if not timm.is_model(architecture):
        near = timm.list_models()
        raise UsageProblem(
            f"timm knows no model '{architecture}'.{suggest(architecture, near)}",
            hint="use a name such as timm:vit_small_patch14_dinov2.lvd142m",
        )
    tags = [name.partition(".")[2] for name in timm.list_models(f"{architecture}.*", pretrained=True)]
    if tag and tag not in tags:
        raise UsageProblem(
            f"timm knows no weights '{tag}' of {architecture}.{suggest(tag, tags)}",
            hint=f"use one of: {', '.join(tags)}" if tags else "leave the tag out and give a file: --weights PATH",
        )
    found = timm.get_pretrained_cfg(parsed.rest)
    return dict(found.to_dict()) if found is not None else {}


def build_timm_model(parsed: TeacherName, tensors: Mapping[str, Tensor] | None = None, path: Path | None = None) -> Any:
    """Build a model without classifier: with weights, or without memory on torch's meta device."""
    timm: Any = import_module("timm")  # its functions are not all annotated
    if tensors is None:
        with torch.device("meta"):
            return timm.create_model(parsed.rest, pretrained=False, num_classes=0).eval().requires_grad_(False)
    model: Any = timm.create_model(parsed.rest, pretrained=False, num_classes=0)
    state = _filtered(model, dict(tensors))
    own = model.state_dict()
    missing = sorted(own.keys() - state.keys())
    shapes = [key for key in own if key in state and own[key].shape != state[key].shape]
    if missing or shapes:
        what = f"{len(missing)} tensors missing, first {missing[0]}" if missing else f"another shape of {shapes[0]}"
        raise DataError(f"The weights {path} do not fit '{parsed.canonical}': {what}.")
    model.load_state_dict({key: state[key] for key in own})
    return model.float().eval().requires_grad_(False)


def _filtered(model: Any, tensors: dict[str, Tensor]) -> Mapping[str, Tensor]:
    """Let timm rename what a model's own publishers call otherwise; files of timm itself fit as they are."""
    if model.state_dict().keys() <= tensors.keys():
        return tensors
    module = import_module(type(model).__module__)
    convert: Callable[..., Any] | None = getattr(module, "checkpoint_filter_fn", None)
    if convert is None:
        return tensors
    try:
        converted: Mapping[str, Tensor] = convert(tensors, model)
    except (KeyError, RuntimeError, ValueError, AttributeError):
        return tensors
    return converted


def timm_preprocessing(model: Any, *, name: str) -> Preprocessing:
    """Return what timm does with images before this model (ConfigError for what madkit does not have)."""
    timm: Any = import_module("timm")  # its functions are not all annotated
    config: dict[str, Any] = timm.data.resolve_model_data_config(model)
    channels, height, width = config["input_size"]
    mode, filter_ = config.get("crop_mode") or "center", config["interpolation"]
    problem = None
    if channels != 3:
        problem = f"{channels} channels"
    elif mode not in ("center", "squash"):
        problem = f"the crop mode '{mode}'"
    elif filter_ not in ("bicubic", "bilinear"):
        problem = f"the resampling filter '{filter_}'"
    elif height != width:
        problem = f"images of {height} x {width} pixels"
    if problem is not None:
        raise ConfigError(f"The preprocessing of '{name}' is not one that madkit has: {problem}.")
    edge = math.floor(height / (config.get("crop_pct") or timm.data.DEFAULT_CROP_PCT))
    return Preprocessing(
        size=(height, width),
        mean=tuple(float(value) for value in config["mean"]),  # type: ignore[arg-type]
        std=tuple(float(value) for value in config["std"]),  # type: ignore[arg-type]
        interpolation=filter_,
        resize_mode="squash" if mode == "squash" else "shortest",
        resize_edge=edge if edge != height else None,
    )


def timm_forward(
    model: nn.Module, skeleton: nn.Module, size: tuple[int, int], *, name: str
) -> tuple[tuple[int, int], Forward, dict[str, Any]]:
    """Return the grid, the way through the model and the names of layer and global vector.

    Args:
        model: the model that computes.
        skeleton: the same on torch's meta device, which an image without content goes through to learn shapes.
        size: (height, width) of the input.
        name: the teacher, for errors.
    """
    owner: Any = model
    probe: Any = skeleton
    with torch.inference_mode():
        features = probe.forward_features(torch.zeros(1, 3, *size, device="meta"))
        layout = feature_layout(owner, features, size, name=name)
        pooled = probe.forward_head(features, pre_logits=True).shape[-1] == owner.num_features

    def forward(pixels: Tensor) -> tuple[Tensor, Tensor]:
        found: Tensor = owner.forward_features(pixels)
        tokens = layout.tokens(found)
        return tokens, owner.forward_head(found, pre_logits=True) if pooled else tokens.mean(1)

    return layout.grid, forward, {"layer": "forward_features", "global": "forward_head" if pooled else PATCH_MEAN}


@dataclass(frozen=True, slots=True)
class FeatureLayout:
    """How a model of timm lays out its features.

    Attributes:
        grid: (rows, columns) of tokens.
        before: class and register tokens before those of the grid.
        kind: ``NLC`` for a sequence, ``NHWC`` or ``NCHW`` for a map.
    """

    grid: tuple[int, int]
    before: int
    kind: str

    def tokens(self, features: Tensor) -> Tensor:
        """Return the tokens [B, P, D] of features, row by row."""
        if self.kind == "NLC":
            return features[:, self.before :]
        return features.flatten(1, 2) if self.kind == "NHWC" else features.flatten(2).transpose(1, 2)

    def alone(self, tokens: Tensor) -> Tensor:
        """Turn tokens [B, P, D] into B x P features of one token each, as the model's head takes them.

        Where class tokens come first the token stands in their places, too: whichever of them the head looks at.
        """
        n, dim = tokens.shape[0] * tokens.shape[1], tokens.shape[2]
        if self.kind == "NLC":
            return tokens.reshape(n, 1, dim).expand(n, self.before + 1, dim)
        return tokens.reshape((n, 1, 1, dim) if self.kind == "NHWC" else (n, dim, 1, 1))


def feature_layout(model: Any, features: Any, size: tuple[int, int], *, name: str) -> FeatureLayout:
    """Read the layout off the features of one image (ConfigError when they are no grid of tokens).

    Args:
        model: the model of timm.
        features: what its ``forward_features`` gave; on the meta device, shapes are enough.
        size: (height, width) of the image.
        name: the teacher, for errors.
    """
    shape = tuple(features.shape) if isinstance(features, Tensor) else ()
    dim, before = int(model.num_features), 0
    kind, grid, width = "", (0, 0), 0
    if len(shape) == 4:
        kind = "NHWC" if _channels_last(model, shape, dim) else "NCHW"
        grid, width = (shape[1:3], shape[3]) if kind == "NHWC" else (shape[2:4], shape[1])
    elif len(shape) == 3:
        before = int(getattr(model, "num_prefix_tokens", 0))
        if _token_grid(model, shape, before, size) == (0, 0):
            before += 1  # some models have a class token and do not say so
        kind, grid, width = "NLC", _token_grid(model, shape, before, size), shape[2]
    if grid == (0, 0) or width != dim:
        raise ConfigError(
            f"The features of '{name}' are {shape or type(features).__name__}, in which madkit sees no grid of tokens."
        )
    return FeatureLayout((int(grid[0]), int(grid[1])), before, kind)


def _channels_last(model: Any, shape: tuple[int, ...], dim: int) -> bool:
    stated = getattr(model, "output_fmt", None)
    if stated is not None:
        return "NHWC" in str(stated)
    return shape[1] != dim


def _token_grid(model: Any, shape: tuple[int, ...], before: int, size: tuple[int, int]) -> tuple[int, int]:
    """Return the grid of a sequence of tokens: that of the patch embedding, or a square; (0, 0) when there is none."""
    count = shape[1] - before
    stated = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if stated is not None and int(stated[0]) * int(stated[1]) == count:
        return int(stated[0]), int(stated[1])
    side = math.isqrt(max(0, count))
    return (side, side) if side * side == count and size[0] == size[1] else (0, 0)


def _fetch(parsed: TeacherName, config: Mapping[str, Any]) -> Path:
    from madkit.core.hub_files import hub_file

    give = f"give a file: --teacher {parsed.canonical} --weights PATH"
    repository = str(config.get("hf_hub_id") or f"timm/{parsed.rest}")
    return hub_file(
        repository,
        ["model.safetensors", "pytorch_model.bin"],
        wanted=f"The weights of '{parsed.canonical}'",
        hint=f"{give} (where there is a network: hf download {repository} model.safetensors)",
    )
