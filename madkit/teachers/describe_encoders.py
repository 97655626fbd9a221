"""Facts about the teachers of transformers and timm, from configurations alone; models are built without memory."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from madkit.core.errors import MadkitError
from madkit.teachers.flops import gflops
from madkit.teachers.hf_files import build_skeleton, is_path, read_config
from madkit.teachers.hf_load import ALWAYS_MASKED, context_length, hf_tokenizer, sides_of
from madkit.teachers.hf_vision import image_preprocessing, vision_forward, vision_layout
from madkit.teachers.known import KNOWN, TeacherName


def describe_hf(parsed: TeacherName) -> dict[str, Any]:
    """Describe a model of transformers: a short name from what is stated, others from their configuration.

    Raises:
        NotFoundError: the configuration is neither here nor at the hub.
        ConfigError: a kind of model that gives no readable tokens.
    """
    known = KNOWN.get(parsed.canonical)
    if known is not None:
        return known.as_row()
    folder = Path(parsed.rest).expanduser() if is_path(parsed.rest) else _fetched(parsed)
    config = read_config(folder)
    sides, skeleton = sides_of(config), build_skeleton(config)
    facts: dict[str, Any] = {
        "name": parsed.canonical,
        "target": f"hf:{parsed.rest}" + (f"@{parsed.tag}" if parsed.tag else ""),
        "kind": config.model_type,
        "shared_space": sides == "pair",
        "dim": None,
        "parameters_m": _millions(skeleton),
    }
    pair = sides == "pair"
    if sides != "text":
        facts |= _vision_facts(parsed, skeleton, folder, _width(config) if pair else None)
    if sides != "vision":
        facts |= _text_facts(parsed, skeleton, folder, _width(config))
    return facts


def _width(config: Any) -> int:
    if config.model_type == "clip":
        return int(config.projection_dim)
    return int(getattr(config, "hidden_size", None) or config.vision_config.hidden_size)


def _vision_facts(parsed: TeacherName, skeleton: nn.Module, folder: Path, dim: int | None) -> dict[str, Any]:
    vision: Any = getattr(skeleton, "vision_model", skeleton)
    try:
        size = image_preprocessing(folder, name=parsed.canonical).size
    except MadkitError:  # only the configuration was fetched
        size = (int(vision.config.image_size),) * 2
    layout = vision_layout(vision, size, name=parsed.canonical)
    tokens, dim = layout.grid[0] * layout.grid[1], dim or layout.dim
    forward, _, _ = vision_forward(vision, layout, pooled=False)
    return {
        "dim": dim,
        "image_size": list(size),
        "image_tokens": tokens,
        "gflops_image": gflops(lambda: forward(torch.zeros(1, 3, *size, device="meta"))),
        "bytes_per_image": tokens * dim * 2,
    }


def _text_facts(parsed: TeacherName, skeleton: nn.Module, folder: Path, dim: int) -> dict[str, Any]:
    text: Any = getattr(skeleton, "text_model", skeleton)
    length = context_length(text, folder)
    with suppress(MadkitError):  # where only the configuration was fetched, its limit stands
        _, length = hf_tokenizer(parsed.canonical, folder, length)
    return {
        "dim": dim,
        "context_length": length,
        "gflops_text": text_gflops(text, length),
        "bytes_per_text_token": dim * 2,
    }


def text_gflops(text: Any, length: int) -> float | None:
    """Count the operations of a text encoder of transformers on one text of ``length`` tokens."""
    ids = torch.zeros(1, length, dtype=torch.long, device="meta")
    masked = text.config.model_type in ALWAYS_MASKED
    return gflops(lambda: text(input_ids=ids, attention_mask=torch.ones_like(ids) if masked else None))


def describe_timm(parsed: TeacherName) -> dict[str, Any]:
    """Describe a model of timm (UsageProblem for an unknown name, ConfigError for one without a grid)."""
    from madkit.teachers.timm_vision import build_timm_model, timm_config, timm_forward, timm_preprocessing

    stated = timm_config(parsed)
    skeleton = build_timm_model(parsed)
    size = timm_preprocessing(skeleton, name=parsed.canonical).size
    grid, _, _ = timm_forward(skeleton, skeleton, size, name=parsed.canonical)
    dim = int(skeleton.num_features)
    return {
        "name": parsed.canonical,
        "target": parsed.canonical,
        "shared_space": False,
        "dim": dim,
        "parameters_m": _millions(skeleton),
        "image_size": list(size),
        "image_tokens": grid[0] * grid[1],
        "gflops_image": gflops(lambda: skeleton(torch.zeros(1, 3, *size, device="meta"))),
        "bytes_per_image": grid[0] * grid[1] * dim * 2,
        "hub": stated.get("hf_hub_id"),
        "licence": stated.get("license"),
    }


def _millions(model: nn.Module) -> float:
    return round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2)


def _fetched(parsed: TeacherName) -> Path:
    from madkit.core.hub_files import hub_file

    path = hub_file(
        parsed.rest,
        ["config.json"],
        wanted=f"The facts of '{parsed.canonical}'",
        hint=f"this folder is meant? then madkit teachers show hf:./{parsed.rest}"
        if Path(parsed.rest).is_dir()
        else "give a folder as save_pretrained writes it: madkit teachers show hf:PATH",
        revision=parsed.tag,
    )
    return path.parent
