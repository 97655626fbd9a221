"""One set of weights in three programs: open_clip, the transformers library, and madkit's teachers."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from madkit.core.errors import ConfigError, UsageProblem
from madkit.teachers.clip_bpe import ClipTokenizer
from madkit.teachers.clip_pair import clip_pair
from madkit.teachers.interface import Teacher
from madkit.teachers.known import parse_teacher_name
from madkit.teachers.load import build_open_clip_model, open_clip_preprocessing, open_clip_tag
from madkit.teachers.preprocess import Preprocessing

TINY = "tiny"
SEED = 0
_TINY_MODEL: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"layers": 2, "width": 64, "head_width": 16, "patch_size": 8, "image_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
_OF_A_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


@dataclass(frozen=True, slots=True)
class Source:
    """The weights that every side gets a copy of.

    Attributes:
        name: the architecture as madkit names it: ``open_clip:ARCH[/TAG]``.
        model: open_clip's ``CLIP`` or ``CustomTextCLIP``, float32, on the CPU.
        preprocessing: open_clip's settings: size, mean, std, interpolation, resize mode.
        weights: where the values come from, for the output.
    """

    name: str
    model: nn.Module
    preprocessing: Mapping[str, Any]
    weights: str

    @property
    def visual(self) -> nn.Module:
        """The image encoder."""
        owner: Any = self.model
        visual: nn.Module = owner.visual
        return visual

    def gflop_image(self) -> float:
        """Billions of floating point operations per image, a multiplication with addition counting two."""
        size = self.preprocessing["size"]
        height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        return _gflop(self.visual, torch.zeros(1, 3, height, width, device="meta"))


def source(name: str, weights: Path | None = None) -> Source:
    """Build an architecture of open_clip (or ``tiny``), with random weights of a fixed seed or those of a file.

    Args:
        name: ``ARCH``, or ``ARCH/TAG`` for the activation and the preprocessing of published weights.
        weights: a weight file or folder (see :func:`madkit.teachers.weights.read_weights`).

    Raises:
        UsageProblem: open_clip knows no such architecture or tag.
        ConfigError: an architecture that the peers' loops are not written for.
        NotFoundError: no such file.
        DataError: the weights are damaged or belong to another model.
    """
    tag: Mapping[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        if name == TINY:
            from open_clip.model import CLIP

            model: nn.Module = CLIP(**copy.deepcopy(_TINY_MODEL))
        else:
            parsed = parse_teacher_name(f"open_clip:{name}")
            tag = open_clip_tag(parsed)
            model = build_open_clip_model(parsed, quick_gelu=bool(tag.get("quick_gelu", False)))
    if weights is not None:
        from madkit.teachers.weights import load_clip_weights, read_weights, weights_file

        if name == TINY:
            raise UsageProblem("The tiny model has no weights but its own.", hint="leave out --weights or --tiny")
        path = weights_file(weights)
        load_clip_weights(model, read_weights(path), path=path, name=name)
    _must_be_plain(name, model)
    model.eval().requires_grad_(False)
    said = f"random, seed {SEED}" if weights is None else str(weights)
    return Source(f"open_clip:{name}", model, open_clip_preprocessing(model, tag), said)


def _must_be_plain(name: str, model: Any) -> None:
    from open_clip.model import CLIP
    from open_clip.transformer import VisionTransformer

    visual = model.visual
    plain = isinstance(visual, VisionTransformer) and visual.attn_pool is None and not visual.final_ln_after_pool
    if not isinstance(model, CLIP) or not plain:
        raise ConfigError(
            f"The loops that madkit is measured against are written for open_clip's plain CLIP, and '{name}' is "
            f"{type(model).__name__} with {type(visual).__name__}.",
            hint="measure one of its shape: --model ViT-B-32, ViT-B-16, ViT-L-14, ViT-H-14 or one with -quickgelu",
        )


def as_teacher(found: Source, *, device: str, dtype: torch.dtype) -> Teacher:
    """Return a copy as madkit's teacher, images and texts (ConfigError where madkit reads no tokens from it)."""
    return clip_pair(
        found.name,
        copy.deepcopy(found.model),
        ClipTokenizer(),
        Preprocessing.from_config(found.preprocessing),
        device=device,
        dtype=dtype,
    )


def as_open_clip(found: Source, *, device: str, dtype: torch.dtype) -> Any:
    """Return a copy of the image encoder that gives (pooled, tokens), open_clip's own option."""
    visual: Any = copy.deepcopy(found.visual)
    visual.output_tokens = True
    return visual.to(device=device, dtype=dtype)


def as_transformers(found: Source, *, device: str, dtype: torch.dtype) -> Any:
    """Return the image encoder as a ``CLIPVisionModelWithProjection`` of the transformers library.

    Raises:
        ConfigError: the encoder has parts that this model has not.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    from madkit.teachers.hf_files import quiet

    visual: Any = found.visual
    width, heads = visual.conv1.out_channels, visual.transformer.resblocks[0].attn.num_heads
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=visual.transformer.resblocks[0].mlp.c_fc.out_features,
        num_hidden_layers=len(visual.transformer.resblocks),
        num_attention_heads=heads,
        image_size=int(visual.image_size[0]),
        patch_size=int(visual.patch_size[0]),
        projection_dim=int(visual.output_dim),
        hidden_act="quick_gelu" if "QuickGELU" in str(visual.transformer.resblocks[0].mlp) else "gelu",
    )
    try:
        with quiet():
            model: Any = CLIPVisionModelWithProjection(config)
            model.load_state_dict(_renamed(visual.state_dict()))
    except (RuntimeError, ValueError) as error:
        first = str(error).splitlines()[0].rstrip(".:")
        raise ConfigError(
            f"The transformers library has no image encoder like that of {found.name} ({first})."
        ) from None
    return model.eval().requires_grad_(False).to(device=device, dtype=dtype)


def image_processor(found: Source) -> Any:
    """Return the transformers library's own preprocessing with Pillow, with the model's settings."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    settings = json.loads(json.dumps(dict(found.preprocessing)))
    size = settings["size"]
    height, width = (size, size) if isinstance(size, int) else (size[0], size[1])
    return CLIPImageProcessorPil(
        size={"shortest_edge": min(height, width)},
        crop_size={"height": height, "width": width},
        image_mean=settings["mean"],
        image_std=settings["std"],
        resample={"bilinear": 2, "bicubic": 3}[settings["interpolation"]],
    )


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's names of an image encoder as those of the transformers library."""
    named: dict[str, Tensor] = {}
    plain = {
        "class_embedding": "vision_model.embeddings.class_embedding",
        "positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    }
    for key, value in state.items():
        if key in plain:
            named[plain[key]] = value
        elif key == "proj":
            named["visual_projection.weight"] = value.T.contiguous()
        elif key.startswith("transformer.resblocks."):
            _, _, number, rest = key.split(".", 3)
            block = f"vision_model.encoder.layers.{number}"
            if rest.startswith("attn.in_proj_"):
                kind = rest.removeprefix("attn.in_proj_")
                for letter, part in zip("qkv", value.chunk(3), strict=True):
                    named[f"{block}.self_attn.{letter}_proj.{kind}"] = part.clone()
            else:
                module, _, kind = rest.rpartition(".")
                named[f"{block}.{_OF_A_BLOCK.get(module, module)}.{kind}"] = value
        else:
            module, _, kind = key.rpartition(".")
            renamed = {"ln_pre": "pre_layrnorm", "ln_post": "post_layernorm"}.get(module, module)
            named[f"vision_model.{renamed}.{kind}"] = value
    return named


def _gflop(module: nn.Module, example: Tensor) -> float:
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        copy.deepcopy(module).to("meta")(example)
    return float(counter.get_total_flops()) / 1e9
