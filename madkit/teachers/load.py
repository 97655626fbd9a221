"""From a teacher's name to a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from madkit.core.errors import DataError, NotFoundError, UsageProblem
from madkit.core.files import read_json
from madkit.teachers.interface import Teacher
from madkit.teachers.known import TeacherName, parse_teacher_name
from madkit.teachers.open_clip_load import build_open_clip_model as build_open_clip_model
from madkit.teachers.open_clip_load import load_open_clip
from madkit.teachers.open_clip_load import open_clip_preprocessing as open_clip_preprocessing
from madkit.teachers.open_clip_load import open_clip_tag as open_clip_tag
from madkit.teachers.preprocess import Preprocessing

MINI_FOLDER = Path(__file__).parent / "mini"
CONFIG_KEYS = ("embed_dim", "vision_cfg", "text_cfg", "image_size", "mean", "std")


def load_teacher(
    name: str,
    *,
    weights: Path | str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    adapter: Path | str | None = None,
) -> Teacher:
    """Load a frozen teacher.

    Args:
        name: ``mini``, an alias such as ``clip-vit-l14`` or ``roberta-base``, ``open_clip:ARCH/TAG``,
            ``hf:ORG/NAME[@REV]`` or ``hf:PATH`` (a folder as ``save_pretrained`` writes it), ``timm:NAME``,
            ``local:PATH`` (a folder with ``config.json``, ``model.safetensors`` and ``tokenizer.json`` like that of
            ``mini``), or two of these joined as ``VISION+TEXT``.
        weights: a weight file, or a folder that holds one, in place of the hub's. safetensors, PyTorch files and
            TorchScript archives are read, with the tensor names of open_clip or of transformers' CLIP; for ``hf:`` a
            folder as ``save_pretrained`` writes it. For VISION+TEXT a folder that holds the weights of the two sides
            as ``vision`` and ``text`` (a missing one comes from its own place).
        device: a torch device.
        dtype: dtype to compute in; float32 on the CPU and float16 on a GPU when left out.
        adapter: folder of an adaptation run (``madkit adapt``), whose outcome is applied.

    Raises:
        UsageProblem: no such teacher, architecture or tag; the message suggests the nearest.
        NotFoundError: the weights are neither here nor at the hub.
        DataError: the weights are damaged or belong to another model.
        ConfigError: the model is of a kind that gives no readable tokens.
    """
    weights = None if weights is None else Path(weights).expanduser()
    device = str(device)
    if adapter is not None:
        from madkit.teachers.adapter import load_adapted

        return load_adapted(name, Path(adapter).expanduser(), weights=weights, device=device, dtype=dtype)
    parsed = parse_teacher_name(name)
    if dtype is None:
        dtype = torch.float16 if torch.device(device).type == "cuda" else torch.float32
    if parsed.scheme == "hf":
        from madkit.teachers.hf_load import load_hf

        return load_hf(parsed, weights, device, dtype)
    if parsed.scheme == "timm":
        from madkit.teachers.timm_vision import load_timm

        return load_timm(parsed, weights, device, dtype)
    if parsed.parts is not None:
        return _load_joined(parsed, parsed.parts, weights, device, dtype)
    if parsed.scheme == "open_clip":
        return load_open_clip(parsed, weights, device, dtype)
    folder = MINI_FOLDER if parsed.scheme == "mini" else Path(parsed.rest).expanduser()
    return _load_folder(parsed, folder, weights, device, dtype)


def _load_joined(
    parsed: TeacherName,
    parts: tuple[TeacherName, TeacherName],
    weights: Path | None,
    device: str,
    dtype: torch.dtype,
) -> Teacher:
    """Take the vision side of one teacher and the text side of another; their vectors have no common space."""
    places: list[Path | None] = [None, None]
    if weights is not None:
        places = [weights / side if (weights / side).exists() else None for side in ("vision", "text")]
        if places == [None, None]:
            raise NotFoundError(
                f"{weights} holds neither 'vision' nor 'text'.",
                hint=f"give a folder with the weights of both under these names, or name the folders themselves: "
                f"--teacher hf:PATH+hf:PATH (in place of {parsed.canonical})",
            )
    sides: dict[str, Any] = {}
    for side, part, place in zip(("vision", "text"), parts, places, strict=True):
        teacher = load_teacher(part.canonical, weights=place, device=device, dtype=dtype)
        sides[side] = getattr(teacher, side)
        if sides[side] is None:
            reads, wanted = ("texts", "images") if side == "vision" else ("images", "texts")
            raise UsageProblem(
                f"'{part.canonical}' reads {reads} only, and in '{parsed.canonical}' it is to read {wanted}.",
                hint="the vision side comes first: VISION+TEXT, such as dinov2-vit-l14+roberta-base",
            )
    vision, text = sides["vision"], sides["text"]
    return Teacher(parsed.canonical, vision, text, shared_space=False, logit_scale=1.0, device=device, dtype=dtype)


def _load_folder(parsed: TeacherName, folder: Path, weights: Path | None, device: str, dtype: torch.dtype) -> Teacher:
    from madkit.teachers.clip_pair import clip_pair
    from madkit.teachers.token_file import FileTokenizer
    from madkit.teachers.weights import load_clip_weights, read_weights, weights_file

    if not (folder / "config.json").is_file():
        raise NotFoundError(
            f"The teacher folder {folder} has no config.json.",
            hint="give a folder with config.json, model.safetensors and tokenizer.json: local:PATH",
        )
    config = read_folder_config(folder)
    model = build_folder_model(config, folder)
    tokenizer = FileTokenizer(folder / "tokenizer.json")
    path = weights_file(weights if weights is not None else folder)
    load_clip_weights(model, read_weights(path), path=path, name=parsed.canonical)
    preprocessing = Preprocessing.from_config({**config, "size": config["image_size"]})
    return clip_pair(parsed.canonical, model, tokenizer, preprocessing, device=device, dtype=dtype)


def read_folder_config(folder: Path) -> dict[str, Any]:
    """Read and check ``config.json`` of a teacher folder (DataError with the key that is missing)."""
    path = folder / "config.json"
    config = read_json(path)
    if not isinstance(config, dict):
        raise DataError(f"{path} holds no JSON object.")
    for key in CONFIG_KEYS:
        if key not in config:
            raise DataError(f"{path}: the key '{key}' is missing.")
    length = config.get("context_length")
    if length is not None and config["text_cfg"].get("context_length", length) != length:
        raise DataError(f"{path}: 'context_length' differs from the one in 'text_cfg'.")
    return config


def build_folder_model(config: Mapping[str, Any], folder: Path) -> nn.Module:
    """Build the untrained open_clip model that a teacher folder describes."""
    from open_clip.model import CLIP, CustomTextCLIP

    text = dict(config["text_cfg"])
    if config.get("context_length") is not None:
        text["context_length"] = config["context_length"]
    vision = {"image_size": config["image_size"], **config["vision_cfg"]}
    kind = CustomTextCLIP if config.get("custom_text") else CLIP
    try:
        model: nn.Module = kind(
            embed_dim=config["embed_dim"],
            vision_cfg=vision,
            text_cfg=text,
            quick_gelu=bool(config.get("quick_gelu", False)),
        )
    except (TypeError, ValueError, AssertionError) as error:
        raise DataError(f"{folder / 'config.json'} does not describe an open_clip model ({error}).") from None
    return model
