"""The weights behind the two sides of a loaded teacher, by name, and their forward passes with gradients.

Teachers are frozen and encode in inference mode; whoever adapts them needs the same computation with gradients, and
whoever applies an adaptation needs the weights by the names under which it was written.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from madkit.core.errors import ConfigError
from madkit.teachers.clip_pair import ClipText, ClipVision
from madkit.teachers.grid_vision import GridVision
from madkit.teachers.hf_text import HfText
from madkit.teachers.interface import TextOutput, TextTeacher, TokenizedText, VisionOutput, VisionTeacher

# How pairs name what belongs to seeing, and what belongs to neither side.
_SEEING = ("visual.", "vision_model.", "visual_projection.")
_NEITHER = ("logit_scale", "logit_bias")
# The projection layers: what stands between an encoder's own width and the common space.
_HEADS = (
    *("proj", "text_projection"),  # open_clip's own encoders, and its wrapper of transformers' text encoders
    *("head.", "attnpool.c_proj."),  # open_clip's wrapper of timm, its ResNets
    *("visual_projection.", "vision_model.head.", "text_model.head."),  # transformers
)


def vision_module(teacher: VisionTeacher) -> nn.Module:
    """The module that holds a vision teacher's weights; of some pairs it holds the text side's, too."""
    if isinstance(teacher, ClipVision):
        visual: nn.Module = teacher.visual
        return visual
    if isinstance(teacher, GridVision):
        return teacher._model
    raise ConfigError(f"The weights of '{teacher.name}' ({type(teacher).__name__}) cannot be reached.")


def text_module(teacher: TextTeacher) -> nn.Module:
    """The module that holds a text teacher's weights; of some pairs it holds the vision side's, too.

    open_clip keeps the parts of a text encoder in two ways; they are gathered here under the names of its ``CLIP``.
    """
    if isinstance(teacher, ClipText):
        parts = teacher._parts
        module = nn.Module()
        module.token_embedding = parts.token_embedding
        module.register_parameter("positional_embedding", _parameter(parts.positional_embedding))
        module.transformer = parts.transformer
        module.ln_final = parts.ln_final
        if parts.projection is not None:
            module.text_projection = parts.projection
        return module
    if isinstance(teacher, HfText):
        return teacher._encoder.model
    raise ConfigError(f"The weights of '{teacher.name}' ({type(teacher).__name__}) cannot be reached.")


def _parameter(tensor: Tensor) -> nn.Parameter:
    if not isinstance(tensor, nn.Parameter):
        raise ConfigError("The position embeddings of this text encoder are no weights.")
    return tensor


def side_parameters(module: nn.Module, side: str) -> dict[str, nn.Parameter]:
    """The weights of one side of a teacher by name.

    Args:
        module: of :func:`vision_module` or :func:`text_module`.
        side: ``vision`` or ``text``.
    """
    named = {name: value for name, value in module.named_parameters() if not name.startswith(_NEITHER)}
    seeing = {name for name in named if name.startswith(_SEEING)}
    if not seeing:
        return named
    return {name: value for name, value in named.items() if (name in seeing) == (side == "vision")}


def modules_of_side(module: nn.Module, side: str) -> list[nn.Module]:
    """The modules within one that holds both sides of a pair that belong to a side; all where it holds one side.

    Args:
        module: of :func:`vision_module` or :func:`text_module`.
        side: ``vision`` or ``text``.
    """
    named = dict(module.named_modules())
    seeing = {name for name in named if f"{name}.".startswith(_SEEING)}
    return [child for name, child in named.items() if not seeing or (name in seeing) == (side == "vision")]


def head_names(parameters: dict[str, nn.Parameter]) -> list[str]:
    """The names of the projection layers among the weights of one side; none for encoders without a common space."""
    return [name for name in parameters if any(_is_head(name, head) for head in _HEADS)]


def _is_head(name: str, head: str) -> bool:
    return name.startswith(head) if head.endswith(".") else name == head or name.startswith(f"{head}.")


def see(teacher: VisionTeacher, images: Tensor) -> VisionOutput:
    """What ``teacher.encode`` computes, with gradients."""
    kind: Any = type(teacher)
    output: VisionOutput = inspect.unwrap(kind.encode)(teacher, images)
    return output


def read(teacher: TextTeacher, texts: Sequence[TokenizedText]) -> TextOutput:
    """What ``teacher.encode_tokenized`` computes, with gradients."""
    kind: Any = type(teacher)
    output: TextOutput = inspect.unwrap(kind.encode_tokenized)(teacher, texts)
    return output
