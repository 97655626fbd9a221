"""A vision teacher around any model that turns pixels into a grid of tokens and a global vector."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from madkit.core.errors import ConfigError
from madkit.teachers.interface import VisionOutput
from madkit.teachers.preprocess import Preprocessing

Forward = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Normalised pixels [B, 3, H, W] -> (tokens [B, P, D] in row-major order of the grid, global vectors [B, D])."""


class GridVision:
    """See :class:`madkit.teachers.interface.VisionTeacher`.

    Args:
        name: canonical name.
        model: holds the weights.
        forward: the way through it.
        preprocessing: from an image file to pixels.
        grid: (rows, columns) of tokens.
        dim: width of tokens and global vectors.
        facts: what else decides the output, for the identity: library, digest of the weights, layer, global vector.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        forward: Forward,
        preprocessing: Preprocessing,
        grid: tuple[int, int],
        dim: int,
        facts: dict[str, Any],
    ) -> None:
        self.name = name
        self.dim = dim
        self.grid = grid
        self.preprocessing = preprocessing
        self.image_size = preprocessing.size
        self._model = model
        self._forward = forward
        self.identity: dict[str, Any] = {
            **facts,
            "preprocessing": preprocessing.identity(),
            "dim": dim,
            "grid": list(grid),
        }

    def load_image(self, path: Path) -> Tensor:
        """Read an image file as uint8 [3, H, W] (DataError when it cannot be)."""
        return self.preprocessing.load(path)

    @torch.inference_mode()
    def encode(self, images: Tensor) -> VisionOutput:
        """Encode uint8 [B, 3, H, W] into tokens [B, P, D] and global vectors [B, D] on the device of the weights."""
        weight = next(self._model.parameters())
        pixels = self.preprocessing.normalise(images.to(weight.device, non_blocking=True), weight.dtype)
        tokens, global_ = self._forward(pixels)
        expected = (len(images), self.grid[0] * self.grid[1], self.dim)
        if tuple(tokens.shape) != expected or tuple(global_.shape) != (len(images), self.dim):
            raise ConfigError(
                f"The vision encoder of '{self.name}' gave tokens {tuple(tokens.shape)} and global vectors "
                f"{tuple(global_.shape)} where {expected} and {(len(images), self.dim)} were expected."
            )
        return VisionOutput(tokens, global_, self.grid)
