"""From a teacher's name to a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from madkit.core.errors import ConfigError, DataError, NotFoundError, UsageProblem
from madkit.core.files import read_json
from madkit.core.registry import suggest
from madkit.teachers.interface import Teacher
from madkit.teachers.known import TeacherName, parse_teacher_name
from madkit.teachers.preprocess import Preprocessing

MINI_FOLDER = Path(__file__).parent / "mini"
CONFIG_KEYS = ("embed_dim", "vision_cfg", "text_cfg", "image_size", "mean", "std")


def load_teacher(
    name: str,
    *,
    weights: Path | None = None,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    adapter: Path | None = None,
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
    if adapter is not None:
        from madkit.teachers.adapter import load_adapted

        return load_adapted(name, adapter, weights=weights, device=device, dtype=dtype)
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
        return _load_open_clip(parsed, weights, device, dtype)
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


def _load_open_clip(parsed: TeacherName, weights: Path | None, device: str, dtype: torch.dtype) -> Teacher:
    from madkit.teachers.clip_bpe import ClipTokenizer
    from madkit.teachers.clip_pair import clip_pair
    from madkit.teachers.weights import load_clip_weights, read_weights, weights_file

    pretrained = open_clip_tag(parsed)
    path = weights_file(weights) if weights is not None else _fetch(parsed, pretrained)
    tensors = read_weights(path)
    model = build_open_clip_model(parsed, quick_gelu=bool(pretrained.get("quick_gelu", False)))
    load_clip_weights(model, tensors, path=path, name=parsed.canonical)
    del tensors
    preprocessing = Preprocessing.from_config(open_clip_preprocessing(model, pretrained))
    return clip_pair(parsed.canonical, model, ClipTokenizer(), preprocessing, device=device, dtype=dtype)


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
    """Build an untrained model of one of open_clip's architectures.

    ``quick_gelu`` is a property of the weights, not of the architecture: OpenAI's were trained with it, and open_clip
    only warns when an architecture without it meets them. Here the tag decides.

    Raises:
        ConfigError: an architecture whose encoders are not open_clip's own transformers.
    """
    import open_clip
    from open_clip.model import CLIP, CustomTextCLIP

    config = open_clip.get_model_config(parsed.rest)
    vision, text = config["vision_cfg"], config["text_cfg"]
    foreign = next((key for key in ("timm_model_name", "attentional_pool") if vision.get(key)), None) or next(
        (key for key in ("hf_model_name", "hf_tokenizer_name", "tokenizer_kwargs") if text.get(key)), None
    )
    if foreign is not None or "multimodal_cfg" in config or isinstance(vision.get("layers"), list):
        kind = foreign or ("multimodal_cfg" if "multimodal_cfg" in config else "a convolutional vision encoder")
        raise ConfigError(
            f"The architecture {parsed.rest} is of a kind that madkit cannot read tokens from yet ({kind}).",
            hint="use a model with open_clip's own transformers, such as clip-vit-b32 or clip-vit-l14",
        )
    custom = config.pop("custom_text", False)
    if quick_gelu:
        config["quick_gelu"] = True
    model: nn.Module = (CustomTextCLIP if custom else CLIP)(**config)
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

    from madkit.teachers.hub import hub_file

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
