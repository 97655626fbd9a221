"""From an ``open_clip:`` name to a teacher: architectures, tags, and where their weights are."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from madkit.core.errors import ConfigError, NotFoundError, UsageProblem
from madkit.core.registry import suggest
from madkit.teachers.interface import Teacher
from madkit.teachers.known import TeacherName
from madkit.teachers.preprocess import Preprocessing


def load_open_clip(parsed: TeacherName, weights: Path | None, device: str, dtype: torch.dtype) -> Teacher:
    """Load one of open_clip's models.

    Raises:
        UsageProblem: open_clip knows no such architecture or tag.
        NotFoundError: weights or tokenizer are neither here nor at the hub.
        DataError: the weights are damaged or of another model.
        ConfigError: an encoder whose tokens cannot be read.
    """
    import open_clip

    from madkit.teachers.clip_pair import DEFAULT_CONTEXT, clip_pair
    from madkit.teachers.open_clip_tokenizer import open_clip_tokenizer
    from madkit.teachers.weights import load_clip_weights, read_weights, weights_file

    pretrained = open_clip_tag(parsed)
    text_config = open_clip.get_model_config(parsed.rest)["text_cfg"]
    path = weights_file(weights) if weights is not None else _fetch(parsed, pretrained)
    tokenizer = open_clip_tokenizer(text_config, weights if weights is not None else path, name=parsed.canonical)
    tensors = read_weights(path)
    model = build_open_clip_model(parsed, quick_gelu=bool(pretrained.get("quick_gelu", False)))
    load_clip_weights(model, tensors, path=path, name=parsed.canonical)
    del tensors
    return clip_pair(
        parsed.canonical,
        model,
        tokenizer,
        Preprocessing.from_config(open_clip_preprocessing(model, pretrained)),
        context_length=int(text_config.get("context_length") or DEFAULT_CONTEXT),
        device=device,
        dtype=dtype,
    )


def open_clip_tag(parsed: TeacherName) -> dict[str, Any]:
    """Return open_clip's facts about a pretrained tag: where it is, its preprocessing, its activation.

    Raises:
        UsageProblem: open_clip knows no such architecture or tag.
    """
    import open_clip

    architectures = open_clip.list_models()
    if parsed.rest not in architectures:
        raise UsageProblem(
            f"open_clip knows no architecture '{parsed.rest}'.{suggest(parsed.rest, architectures)}",
            hint="use one of the names that `madkit teachers list --open-clip` prints",
        )
    if parsed.tag is None:
        return {}
    tags = open_clip.list_pretrained_tags_by_model(parsed.rest)
    if parsed.tag not in tags:
        raise UsageProblem(
            f"open_clip knows no weights '{parsed.tag}' of {parsed.rest}.{suggest(parsed.tag, tags)}",
            hint=f"use one of: {', '.join(tags)}" if tags else "give a file: --weights PATH",
        )
    found: dict[str, Any] = open_clip.get_pretrained_cfg(parsed.rest, parsed.tag)
    return found


def build_open_clip_model(parsed: TeacherName, *, quick_gelu: bool) -> nn.Module:
    """Build an untrained model of one of open_clip's architectures. Nothing is asked of the hub.

    ``quick_gelu`` is a property of the weights, not of the architecture: OpenAI's were trained with it, and open_clip
    only warns when an architecture without it meets them. Here the tag decides.

    Raises:
        ConfigError: an architecture with a text encoder that madkit does not know.
    """
    import open_clip
    from open_clip.coca_model import CoCa
    from open_clip.model import CLIP, CustomTextCLIP

    from madkit.teachers.hf_towers import tower_folder

    config: dict[str, Any] = open_clip.get_model_config(parsed.rest)
    text: dict[str, Any] = config["text_cfg"]
    tower = text.get("hf_model_name")
    custom = bool(config.pop("custom_text", False)) or bool(tower)
    if quick_gelu:
        config["quick_gelu"] = True
    kind: Any = CLIP if not custom else CoCa if "multimodal_cfg" in config else CustomTextCLIP
    with ExitStack() as stack:
        if tower:
            text |= {"hf_model_name": stack.enter_context(tower_folder(tower)), "hf_model_pretrained": False}
        try:
            model: nn.Module = kind(**config)
        except (AssertionError, TypeError, ValueError) as error:
            raise ConfigError(f"open_clip cannot build the architecture {parsed.rest} ({error}).") from None
    return model


def open_clip_preprocessing(model: nn.Module, pretrained: Mapping[str, Any]) -> dict[str, Any]:
    """Return size, mean, std, interpolation and resize mode: open_clip's defaults, then those of the weights' tag."""
    from dataclasses import asdict

    from open_clip.transform import PreprocessCfg

    config: dict[str, Any] = asdict(PreprocessCfg())
    config.update({key: value for key, value in pretrained.items() if key in config and value is not None})
    visual: Any = model.visual
    config["size"] = visual.image_size
    return config


def _fetch(parsed: TeacherName, pretrained: Mapping[str, Any]) -> Path:
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    from madkit.core.hub_files import hub_file

    give = f"give a file: --teacher {parsed.canonical} --weights PATH"
    if parsed.tag is None:
        raise UsageProblem(f"'{parsed.canonical}' names an architecture without weights.", hint=give)
    repository, _, name = str(pretrained.get("hf_hub", "")).rpartition("/")
    if not repository:
        raise NotFoundError(f"The weights of '{parsed.canonical}' are not at the hub.", hint=give)
    if name:
        stem, dot, kind = name.rpartition(".")
        names = [f"{stem}.safetensors", name] if dot and kind in ("bin", "pth", "pt") else [name]
    else:
        names = [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
    return hub_file(
        repository,
        names,
        wanted=f"The weights of '{parsed.canonical}' (open_clip {parsed.rest}/{parsed.tag})",
        hint=f"{give} (where there is a network: hf download {repository} {names[0]})",
    )
