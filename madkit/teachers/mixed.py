"""Mixed arithmetic on processors with matrix units: float32, but the feed-forward layers multiply in bfloat16.

Two thirds of a transformer's operations are the two products of its feed-forward layers, and these bear rounding well:
what they give is added to the residual stream, which stays in float32, as do the norms and all of attention. Attention
does not bear it: its scores stand in an exponent. So a feed-forward layer gets its input rounded to bfloat16, its
weights once, its activation in bfloat16, and what comes out is float32 again.

The operations are changed layer by layer and not by a setting of the process, so that several threads may encode at a
time and every one of them gives the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from madkit.core.errors import ConfigError
from madkit.teachers.interface import Teacher
from madkit.teachers.load import load_teacher
from madkit.teachers.side_modules import text_module, vision_module

MIXED = "mixed"
# Smaller products are over before the matrix units are of use (256 to 1,024 is MiniLM's width).
LEAST_WEIGHTS = 256 * 1024
_ATTENTION = ("attn", "attention", "qkv")


def has_matrix_units() -> bool:
    """Whether this processor multiplies matrices of bfloat16 in units of their own (AMX), and PyTorch says so."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16")) and torch.backends.mkldnn.is_available()


def load_computing(
    name: str, arithmetic: str, *, weights: Path | None = None, device: str = "cpu", adapter: Path | None = None
) -> Teacher:
    """Load a teacher that computes in a dtype, or ``mixed``.

    Args:
        name: see :func:`madkit.teachers.load.load_teacher`, whose errors this raises, too.
        arithmetic: the name of a floating dtype of PyTorch's, or :data:`MIXED`.
        weights: weight file or folder.
        device: a torch device.
        adapter: folder of an adaptation run whose outcome is applied.

    Raises:
        ConfigError: the teacher has no feed-forward layers that ``mixed`` would change.
    """
    dtype: torch.dtype = torch.float32 if arithmetic == MIXED else getattr(torch, arithmetic)
    teacher = load_teacher(name, weights=weights, device=device, dtype=dtype, adapter=adapter)
    if arithmetic != MIXED:
        return teacher
    changed = as_mixed(teacher)
    if changed is None:
        raise ConfigError(
            f"The teacher '{name}' has no feed-forward layers of a size that mixed arithmetic is for.",
            hint="float32, or bfloat16 for all of it",
        )
    return changed


def arithmetic_of(teacher: Teacher) -> str:
    """Name of what a teacher computes in, as :func:`load_computing` takes it."""
    return MIXED if teacher.feed_forward is not None else str(teacher.dtype).removeprefix("torch.")


def can_be_mixed(teacher: Teacher) -> bool:
    """Whether a teacher computes in float32 and has feed-forward layers of a size that pays."""
    return teacher.dtype is torch.float32 and any(any(feed_forward_layers(module)) for module in _modules(teacher))


def as_mixed(teacher: Teacher) -> Teacher | None:
    """Change a float32 teacher's feed-forward layers in place; None for one without any of a size that pays.

    The weights themselves stay as they are: rounded copies lie beside them, half their size.
    """
    if not can_be_mixed(teacher):
        return None
    layers = [pair for module in _modules(teacher) for pair in feed_forward_layers(module)]
    for widening, narrowing in layers:
        for layer in widening:
            _multiply_in_bfloat16(layer, _Widening)
        _multiply_in_bfloat16(narrowing, _Narrowing)
    return replace(teacher, feed_forward=torch.bfloat16)


def as_float32(teacher: Teacher) -> Teacher:
    """Undo :func:`as_mixed`."""
    for module in _modules(teacher):
        for layer in module.modules():
            if isinstance(vars(layer).get("forward"), _Product):
                del layer.forward
    return replace(teacher, feed_forward=None)


def feed_forward_layers(module: nn.Module) -> Iterator[tuple[list[nn.Linear], nn.Linear]]:
    """Yield the (widening layers, narrowing layer) of each feed-forward layer within a module.

    They are told by their shapes, since every library names them otherwise: a linear layer to a width at least twice
    its own (two of them, or one of twice that width, where they are gated), and one from there back, under one parent
    or grandparent, no part of attention.
    """
    linear = {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
        and layer.in_features * layer.out_features >= LEAST_WEIGHTS
        and not any(word in name.lower() for word in _ATTENTION)
    }
    for name, narrowing in linear.items():
        width, inner = narrowing.out_features, narrowing.in_features
        if inner < 2 * width:
            continue
        for levels in (1, 2):
            parent = ".".join(name.split(".")[:-levels])
            widening = [
                layer
                for other, layer in linear.items()
                if other.startswith(f"{parent}." if parent else "")
                and layer.in_features == width
                and layer.out_features in (inner, 2 * inner)
            ]
            if 1 <= len(widening) <= 2:
                yield widening, narrowing
                break


class _Product:
    """A linear layer's forward pass on rounded weights."""

    def __init__(self, layer: nn.Linear) -> None:
        self.weight = layer.weight.detach().to(torch.bfloat16)
        self.bias = None if layer.bias is None else layer.bias.detach().to(torch.bfloat16)

    def product(self, x: Tensor) -> Tensor:
        return F.linear(x.to(torch.bfloat16), self.weight, self.bias)


class _Widening(_Product):
    def __call__(self, x: Tensor) -> Tensor:
        return self.product(x)


class _Narrowing(_Product):
    def __call__(self, x: Tensor) -> Tensor:
        return self.product(x).float()


def _multiply_in_bfloat16(layer: nn.Linear, product: type[_Product]) -> None:
    if not isinstance(vars(layer).get("forward"), _Product):  # two sides may share a module
        layer.forward = product(layer)  # type: ignore[method-assign,assignment]


def _modules(teacher: Teacher) -> list[nn.Module]:
    """The modules of both sides; none for a side whose weights cannot be reached."""
    found: list[nn.Module] = []
    if teacher.vision is not None:
        with suppress(ConfigError):
            found.append(vision_module(teacher.vision))
    if teacher.text is not None:
        with suppress(ConfigError):
            found.append(text_module(teacher.text))
    return found
