"""From an image file to the uint8 pixels that a vision teacher reads.

The steps are those of CLIP's evaluation transform (decode, RGB, resize with Pillow's antialiased filter, centre crop);
pixels stay uint8, because resizing with Pillow ends in uint8 anyway: normalising later, on the device, changes nothing
and moves a quarter of the bytes.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from madkit.core import archives
from madkit.core.errors import ConfigError, DataError, NotFoundError

RESIZE_MODES = ("shortest", "squash")
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How images become pixels; part of a cache's identity, since it changes every token.

    Attributes:
        size: (height, width) in pixels.
        mean: per channel, of pixels scaled to 0..1.
        std: per channel, of pixels scaled to 0..1.
        interpolation: ``bicubic`` or ``bilinear``, both antialiased.
        resize_mode: ``shortest`` (shorter edge to size, then centre crop) or ``squash`` (both edges to size).
        decoder: library that decodes and resizes.
        resize_edge: length that edges are resized to where it is not ``size``, of which the centre is then cut out.
        crop: where a centre between two pixels goes: ``round`` (torchvision, half to even) or ``floor`` (transformers).
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    decoder: str = "pillow"
    resize_edge: int | None = None
    crop: str = "round"

    def __post_init__(self) -> None:
        if self.interpolation not in _FILTERS or self.resize_mode not in RESIZE_MODES:
            raise ConfigError(
                f"The preprocessing interpolation={self.interpolation!r}, resize_mode={self.resize_mode!r} is not "
                f"supported (interpolation: {', '.join(_FILTERS)}; resize_mode: {', '.join(RESIZE_MODES)})."
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Preprocessing:
        """Build from a mapping with size, mean, std and optionally interpolation and resize_mode (open_clip's keys)."""
        size = config["size"]
        height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        mean, std = ([float(value) for value in config[key]] for key in ("mean", "std"))
        return cls(
            size=(height, width),
            mean=(mean[0], mean[1], mean[2]),
            std=(std[0], std[1], std[2]),
            interpolation=config.get("interpolation") or "bicubic",
            resize_mode=config.get("resize_mode") or "shortest",
        )

    def identity(self) -> dict[str, Any]:
        """Return plain JSON values for manifests and digests; the last two fields only where they say something."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        if self.resize_edge is None:
            del plain["resize_edge"]
        if self.crop == "round":
            del plain["crop"]
        return plain

    def load(self, path: Path) -> Tensor:
        """Read an image file as uint8 [3, height, width].

        Raises:
            DataError: the file is missing, no image, or damaged.
        """
        try:
            with Image.open(io.BytesIO(archives.read_bytes(path))) as opened:
                image = self.fit(opened.convert("RGB"))
        except NotFoundError:
            raise DataError(f"The image {path} does not exist.") from None
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"The image {path} cannot be read ({error or type(error).__name__}).") from None
        return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()

    def fit(self, image: Image.Image) -> Image.Image:
        """Resize and crop an RGB image to ``size``."""
        height, width = self.size
        edge = self.resize_edge
        if self.resize_mode == "squash":
            target = (width, height) if edge is None else (edge, edge)
        elif height == width or edge is not None:
            # Shorter edge to size, the longer one truncated: the rounding of torchvision's Resize.
            edge = height if edge is None else edge
            short, long = min(image.size), max(image.size)
            other = int(edge * long / short)
            target = (edge, other) if image.width <= image.height else (other, edge)
        else:
            scale = max(height / image.height, width / image.width)
            target = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
        if image.size != target:
            image = image.resize(target, _FILTERS[self.interpolation])
        whole = math.floor if self.crop == "floor" else round
        left, top = whole((image.width - width) / 2.0), whole((image.height - height) / 2.0)
        if (left, top) == (0, 0) and image.size == (width, height):
            return image
        return image.crop((left, top, left + width, top + height))

    def normalise(self, images: Tensor, dtype: torch.dtype) -> Tensor:
        """Turn uint8 [B, 3, H, W] into (pixel / 255 - mean) / std of ``dtype``, computed in float32."""
        mean = torch.tensor(self.mean, device=images.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(1, 3, 1, 1)
        return ((images.float() / 255.0 - mean) / std).to(dtype)
