"""The image side of the engine: uint8 batches through a frozen encoder, to what a store keeps of them.

On a GPU the choice of tokens and the rounding to float16 happen before anything is copied back, batches have one shape
(the last is filled up with zeros, whose results are cut off), and attention tries cuDNN's kernels first on the devices
where they are the fastest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from madkit.extract.choices import Choice
from madkit.extract.selection import select_patches
from madkit.teachers.interface import VisionTeacher
from madkit.teachers.side_modules import modules_of_side

CUDNN_FIRST = ((9, 0),)
"""Compute capabilities on which cuDNN's attention is faster than the default order of kernels (Hopper)."""


@dataclass(frozen=True, slots=True)
class EncodedImages:
    """What is kept of a batch, on the device.

    Attributes:
        tokens: [B, T, D] float16.
        globals: [B, D] float16.
        positions: [B, T] int32 places of the tokens in the grid, ascending; None where all are kept.
        finite: bool, whether every value is finite.
    """

    tokens: Tensor
    globals: Tensor
    positions: Tensor | None
    finite: Tensor


class ImageEncoder:
    """Encodes batches of images.

    Args:
        teacher: the frozen encoder.
        batch: images per forward pass.
        kept: tokens to keep of each image (:func:`madkit.extract.selection.select_patches`); None for all.
        compile: compile the encoder's repeated blocks (:func:`repeated_blocks`) with ``torch.compile``; they stay so.

    Attributes:
        choices: what this object chose by itself.
    """

    def __init__(self, teacher: VisionTeacher, *, batch: int, kept: int | None = None, compile: bool = False) -> None:
        self.teacher = teacher
        self.batch = batch
        self.cells = teacher.grid[0] * teacher.grid[1]
        self.kept = self.cells if kept is None else min(kept, self.cells)
        self.device = device_of(teacher)
        self.choices: list[Choice] = []
        self._one_shape = self.device.type == "cuda" or compile
        self._blocks = repeated_blocks(teacher) if compile else []
        if compile:
            blocks = self._blocks
            for block in blocks:
                block.compile(dynamic=False)
            why = f"{len(blocks)} equal blocks, compiled as one" if blocks else "the encoder has no repeated blocks"
            self.choices.append(Choice("compiled blocks", str(len(blocks)), why))
        self._cudnn = self.device.type == "cuda" and torch.cuda.get_device_capability(self.device) in CUDNN_FIRST
        if self._cudnn:
            self.choices.append(Choice("attention", "cuDNN first", "the fastest kernels on this GPU's generation"))

    @torch.inference_mode()
    def encode(self, images: Tensor) -> EncodedImages:
        """Encode uint8 [B, 3, H, W], B at most ``batch``, on the host or on the device."""
        count = len(images)
        if self._one_shape and count < self.batch:
            filler = images.new_zeros((self.batch - count, *images.shape[1:]))
            images = torch.cat([images, filler])
        with _cudnn_first() if self._cudnn else nullcontext():
            output = self.teacher.encode(images)
        tokens, globals_, places = output.tokens, output.global_, None
        if self.kept == 0:
            tokens = tokens[:, :0]
        elif self.kept < self.cells:
            places = select_patches(tokens, globals_, self.teacher.grid, self.kept)
            tokens = tokens.gather(1, places.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
            places = places[:count].to(torch.int32)
        tokens, globals_ = tokens[:count].to(torch.float16), globals_[:count].to(torch.float16)
        finite = torch.isfinite(tokens).all() & torch.isfinite(globals_).all()
        return EncodedImages(tokens, globals_, places, finite)

    def warm_up(self) -> None:
        """Encode one batch of zeros: compilers, kernel plans and memory pools are ready afterwards."""
        self.encode(torch.zeros((self.batch, 3, *self.teacher.image_size), dtype=torch.uint8))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def undo_compile(self) -> None:
        """Let the blocks run as they were."""
        for block in self._blocks:
            block._compiled_call_impl = None  # torch has no public way back
        self._blocks = []


@contextmanager
def _cudnn_first() -> Iterator[None]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    order = [
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ]
    with sdpa_kernel(order, set_priority=True):
        yield


def modules_of(side: object) -> list[nn.Module]:
    """Return the modules that a teacher's side holds, directly or in a record of its own; the side itself if it is one.

    Raises:
        ValueError: it holds none.
    """
    found: list[nn.Module] = []
    todo: list[Any] = [side]
    for depth in range(3):
        inner: list[Any] = []
        for owner in todo:
            if isinstance(owner, nn.Module):
                if all(owner is not known for known in found):
                    found.append(owner)
            elif type(owner).__module__.startswith("madkit.") or depth == 0:
                names = [*getattr(owner, "__dict__", {}), *getattr(type(owner), "__slots__", ())]
                inner.extend(getattr(owner, name, None) for name in names)
        todo = inner
    if not found:
        raise ValueError(f"{type(side).__name__} holds no module")
    return found


def device_of(side: object) -> torch.device:
    """Return the device of a teacher's side: that of its first weight, the CPU where it has none."""
    try:
        modules = modules_of(side)
    except ValueError:
        return torch.device("cpu")
    weight = next((weight for module in modules for weight in module.parameters()), None)
    return torch.device("cpu") if weight is None else weight.device


def repeated_blocks(side: object) -> list[nn.Module]:
    """Return the layers of an image encoder's longest list of equal blocks; none if it has none.

    Compiling one compiles all: they share their code, and their weights are inputs of it. A module may hold the text
    half of a pair, too, whose blocks are as many and no image ever reaches.
    """
    best: list[nn.Module] = []
    for module in modules_of(side):
        for child in modules_of_side(module, "vision"):
            if isinstance(child, (nn.ModuleList, nn.Sequential)) and len(child) > max(1, len(best)):
                blocks = list(child)
                alike = all(type(block) is type(blocks[0]) for block in blocks)
                if alike and any(True for _ in blocks[0].parameters()) and not isinstance(blocks[0], nn.Linear):
                    best = blocks
    return best
