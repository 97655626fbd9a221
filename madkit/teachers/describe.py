"""Facts about teachers for ``madkit teachers``, without loading weights."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from madkit.core.errors import MadkitError
from madkit.core.files import read_json
from madkit.teachers.known import KNOWN, TeacherName, parse_teacher_name


def known_rows() -> list[dict[str, Any]]:
    """Return the facts of every teacher that has a short name. Imports nothing heavy."""
    return [_mini_row() if name == "mini" else known.as_row() for name, known in KNOWN.items()]


@lru_cache(maxsize=1)
def _mini_row() -> dict[str, Any]:
    from pathlib import Path

    row = KNOWN["mini"].as_row()
    folder = Path(__file__).parent / "mini"
    try:
        config = read_json(folder / "config.json")
        side = int(config["image_size"])
        tokens = (side // int(config["vision_cfg"]["patch_size"])) ** 2
    except (MadkitError, KeyError, TypeError, ValueError):
        return {**row, "bytes_per_image": 0}
    weights = folder / "model.safetensors"
    return {
        **row,
        "dim": config["embed_dim"],
        "image_size": side,
        "image_tokens": tokens,
        "context_length": config.get("context_length", config["text_cfg"].get("context_length")),
        "parameters_m": _parameters(weights) if weights.is_file() else None,
        "bytes_per_image": tokens * int(config["embed_dim"]) * 2,
        "bytes_per_text_token": int(config["embed_dim"]) * 2,
    }


def _parameters(path: Any) -> float:
    """Count parameters from the header of a safetensors file: 8 bytes of length, then JSON with every shape."""
    import json
    import math

    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
    total: int = sum(math.prod(shape) for shape in shapes)
    return round(total / 1e6, 2)


def open_clip_names() -> list[str]:
    """Return ``open_clip:ARCH/TAG`` for everything that open_clip lists."""
    import open_clip

    return [f"open_clip:{arch}/{tag}" for arch, tag in open_clip.list_pretrained()]


def describe_teacher(name: str) -> dict[str, Any]:
    """Describe one teacher from its configuration; the model is built without memory (on torch's meta device).

    Raises:
        UsageProblem: no such teacher, architecture or tag.
        ConfigError: a model that gives no readable tokens.
    """
    parsed = parse_teacher_name(name)
    if parsed.scheme == "open_clip":
        return _describe_open_clip(parsed)
    if parsed.scheme == "mini":
        return _mini_row()
    if parsed.scheme in ("hf", "timm"):
        from madkit.teachers.describe_encoders import describe_hf, describe_timm

        return describe_hf(parsed) if parsed.scheme == "hf" else describe_timm(parsed)
    if parsed.parts is not None:
        return _describe_joined(parsed, *parsed.parts)
    return _describe_folder(parsed)


def _describe_joined(parsed: TeacherName, vision: TeacherName, text: TeacherName) -> dict[str, Any]:
    """Put the vision facts of one teacher and the text facts of another together."""
    seeing, reading = describe_teacher(vision.canonical), describe_teacher(text.canonical)
    return {
        "name": parsed.canonical,
        "shared_space": False,
        "vision": vision.canonical,
        "vision_dim": seeing["dim"],
        **{key: seeing.get(key) for key in ("image_size", "image_tokens", "gflops_image", "bytes_per_image")},
        "vision_licence": seeing.get("licence"),
        "text": text.canonical,
        "text_dim": reading["dim"],
        **{key: reading.get(key) for key in ("context_length", "gflops_text", "bytes_per_text_token")},
        "text_licence": reading.get("licence"),
    }


def _describe_open_clip(parsed: TeacherName) -> dict[str, Any]:
    import torch

    from madkit.teachers.load import build_open_clip_model, open_clip_preprocessing, open_clip_tag

    tag = open_clip_tag(parsed)
    with torch.device("meta"):
        model = build_open_clip_model(parsed, quick_gelu=bool(tag.get("quick_gelu", False)))
    known = KNOWN.get(parsed.canonical)
    return {
        "name": parsed.canonical,
        "target": f"open_clip:{parsed.rest}" + (f"/{parsed.tag}" if parsed.tag else ""),
        **_model_facts(model),
        "activation": "quick-gelu" if tag.get("quick_gelu") else "gelu",
        "preprocessing": {key: value for key, value in open_clip_preprocessing(model, tag).items() if key != "mode"},
        "hub": tag.get("hf_hub") or None,
        "licence": known.licence if known else None,
        "note": known.note if known else "",
    }


def _describe_folder(parsed: TeacherName) -> dict[str, Any]:
    from pathlib import Path

    import torch

    from madkit.teachers.load import build_folder_model, read_folder_config

    folder = Path(parsed.rest).expanduser()
    config = read_folder_config(folder)
    with torch.device("meta"):
        model = build_folder_model(config, folder)
    return {"name": parsed.canonical, "target": str(folder), **_model_facts(model)}


def _model_facts(model: Any) -> dict[str, Any]:
    import torch

    from madkit.teachers.flops import gflops

    grid = getattr(model.visual, "grid_size", None)
    tokens = grid[0] * grid[1] if grid is not None else None
    dim, size, length = model.visual.output_dim, list(model.visual.image_size), model.context_length
    return {
        "dim": dim,
        "image_size": size,
        "image_tokens": tokens,
        "context_length": length,
        "parameters_m": round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2),
        "gflops_image": gflops(lambda: model.encode_image(torch.zeros(1, 3, *size, device="meta"))),
        "gflops_text": gflops(lambda: model.encode_text(torch.zeros(1, length, dtype=torch.long, device="meta"))),
        "bytes_per_image": tokens * dim * 2 if tokens is not None else None,
        "bytes_per_text_token": dim * 2,
    }
