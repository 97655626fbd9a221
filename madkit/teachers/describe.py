"""Facts about teachers for ``madkit teachers``, without loading weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from madkit.core.errors import MadkitError, UsageProblem
from madkit.core.files import read_json
from madkit.core.registry import suggest
from madkit.teachers.known import KNOWN, TeacherName, parse_teacher_name


def known_rows() -> list[dict[str, Any]]:
    """Return the facts of every teacher that has a short name. Imports nothing heavy."""
    return [_mini_row() if name == "mini" else known.as_row() for name, known in KNOWN.items()]


MINI_FOLDER = Path(__file__).parent / "mini"


@lru_cache(maxsize=1)
def _mini_row() -> dict[str, Any]:
    row = KNOWN["mini"].as_row()
    try:
        config = read_json(MINI_FOLDER / "config.json")
        side = int(config["image_size"])
        tokens = (side // int(config["vision_cfg"]["patch_size"])) ** 2
    except (MadkitError, KeyError, TypeError, ValueError):
        return {**row, "bytes_per_image": 0}
    weights = MINI_FOLDER / "model.safetensors"
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


def _parameters(path: Path) -> float:
    """Count parameters from the header of a safetensors file: 8 bytes of length, then JSON with every shape."""
    import json
    import math

    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
    total: int = sum(math.prod(shape) for shape in shapes)
    return round(total / 1e6, 2)


def library_names(*, open_clip: bool = False, timm: bool = False) -> list[str]:
    """Return ``open_clip:ARCH/TAG`` and ``timm:NAME.TAG`` for all that these libraries know weights of."""
    names: list[str] = []
    if open_clip:
        import open_clip as library

        names += [f"open_clip:{arch}/{tag}" for arch, tag in library.list_pretrained()]
    if timm:
        from importlib import import_module

        models: Any = import_module("timm")  # its functions are not all annotated
        names += [f"timm:{name}" for name in models.list_models(pretrained=True)]
    return names


def matching(names: Sequence[str], part: str | None) -> list[str]:
    """Return the names that contain ``part``, whatever its case; all of them without one.

    Raises:
        UsageProblem: none does; the message suggests the nearest.
    """
    found = [name for name in names if part is None or part.casefold() in name.casefold()]
    if not found:
        raise UsageProblem(
            f"No teacher's name contains '{part}'.{suggest(str(part), names)}",
            hint="the libraries know more names: madkit teachers list --open-clip --timm",
        )
    return found


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
        facts = _describe_folder(TeacherName("mini", "local", str(MINI_FOLDER)))
        return {**_mini_row(), "gflops_image": facts["gflops_image"], "gflops_text": facts["gflops_text"]}
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
    import open_clip
    import torch

    from madkit.teachers.clip_pair import DEFAULT_CONTEXT
    from madkit.teachers.load import build_open_clip_model, open_clip_preprocessing, open_clip_tag
    from madkit.teachers.open_clip_tokenizer import tokenizer_source

    tag = open_clip_tag(parsed)
    with torch.device("meta"):
        model = build_open_clip_model(parsed, quick_gelu=bool(tag.get("quick_gelu", False)))
    known = KNOWN.get(parsed.canonical)
    text = open_clip.get_model_config(parsed.rest)["text_cfg"]
    source = tokenizer_source(text)
    preprocessing = open_clip_preprocessing(model, tag)
    return {
        "name": parsed.canonical,
        "target": f"open_clip:{parsed.rest}" + (f"/{parsed.tag}" if parsed.tag else ""),
        **_model_facts(model, preprocessing, int(text.get("context_length") or DEFAULT_CONTEXT)),
        "activation": "quick-gelu" if tag.get("quick_gelu") else "gelu",
        "preprocessing": {key: value for key, value in preprocessing.items() if key not in ("mode", "fill_color")},
        "tokenizer": source.repository if source is not None else "CLIP's own",
        "hub": tag.get("hf_hub") or None,
        "licence": known.licence if known else _tag_licence(parsed.tag),
        "note": known.note if known else "",
    }


# What publishers state for families of weights, by the beginning of open_clip's tags.
_LICENCES = {
    "openai": "MIT",
    "laion": "MIT",
    "datacomp_": "MIT",
    "commonpool_": "MIT",
    "webli": "Apache-2.0",
    "metaclip_": "CC-BY-NC-4.0",
}


def _tag_licence(tag: str | None) -> str | None:
    return next((licence for start, licence in _LICENCES.items() if tag and tag.startswith(start)), None)


def _describe_folder(parsed: TeacherName) -> dict[str, Any]:
    import torch

    from madkit.teachers.load import build_folder_model, read_folder_config

    folder = Path(parsed.rest).expanduser()
    config = read_folder_config(folder)
    with torch.device("meta"):
        model = build_folder_model(config, folder)
    facts = _model_facts(model, {**config, "size": config["image_size"]}, None)
    return {"name": parsed.canonical, "target": str(folder), **facts}


class _NoTokenizer:
    """Stands in for a tokenizer, which no fact depends on: one special token on each side."""

    prefix, suffix, pad_id, digest = (1,), (2,), 0, ""

    def tokenize(self, texts: Sequence[str]) -> list[Any]:
        raise NotImplementedError


def _model_facts(model: Any, preprocessing: Mapping[str, Any], context_length: int | None) -> dict[str, Any]:
    import torch

    from madkit.teachers.clip_pair import clip_sides
    from madkit.teachers.flops import gflops
    from madkit.teachers.hf_text import HfText
    from madkit.teachers.preprocess import Preprocessing

    model.eval().requires_grad_(False)  # the counter trips over parameters that a module is given as its input
    vision, text = clip_sides(
        "teacher",
        model,
        _NoTokenizer(),
        Preprocessing.from_config(preprocessing),
        vision_weights="",
        text_weights="",
        context_length=context_length,
    )
    tokens, size, length = vision.grid[0] * vision.grid[1], vision.image_size, text.context_length
    ids = torch.zeros(1, length, dtype=torch.long, device="meta")
    # A text encoder of transformers may look at values where open_clip calls it; called without a mask it does not.
    read = (lambda: text._encoder.forward(ids, None)) if isinstance(text, HfText) else (lambda: model.encode_text(ids))
    return {
        "dim": vision.dim,
        "image_size": list(size),
        "image_tokens": tokens,
        "context_length": length,
        "parameters_m": round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2),
        "gflops_image": gflops(lambda: model.encode_image(torch.zeros(1, 3, *size, device="meta"))),
        "gflops_text": gflops(read),
        "bytes_per_image": tokens * vision.dim * 2,
        "bytes_per_text_token": vision.dim * 2,
    }
