"""From an image file to the uint8 pixels that a vision teacher reads.

The steps are those of CLIP's evaluation transform (decode, RGB, resize with an antialiased filter, centre crop); pixels
stay uint8, because resizing ends in uint8 anyway: normalising later, on the device, changes nothing and moves a quarter
of the bytes.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from madkit.core import archives
from madkit.core.errors import ConfigError, DataError, MadkitError, NotFoundError
from madkit.teachers.torchvision_decode import decode_like_pillow

View = tuple[float, float, float, float]
"""Corners (x1, y1, x2, y2) of a part of an image, in shares of its width and height."""
WHOLE: View = (0.0, 0.0, 1.0, 1.0)
DECODERS = ("torchvision", "pillow")
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
        decoder: who decodes and resizes: ``pillow``, or ``torchvision`` with torch's resizing of uint8.
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
        if self.decoder not in DECODERS:
            raise ConfigError(f"The decoder {self.decoder!r} is not one of {', '.join(DECODERS)}.")

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

    @property
    def cuts(self) -> bool:
        """Whether a part of an image may be cut off, so that the grid of tokens covers less than the whole."""
        return self.resize_mode == "shortest" or self.resize_edge is not None

    def view(self, width: int, height: int) -> View:
        """Return the part of an image of ``width`` x ``height`` pixels that is left after resizing and cropping."""
        across, down = self._target(width, height)
        left, top, right, bottom = self._box(across, down)
        return left / across, top / down, right / across, bottom / down

    def load(self, path: Path) -> Tensor:
        """Read an image file as uint8 [3, height, width] (DataError as for :meth:`look`)."""
        return self.look(path)[0]

    def look(self, path: Path) -> tuple[Tensor, View]:
        """Read an image file as uint8 [3, height, width], and say which part of the image that is.

        Raises:
            DataError: the file is missing, no image, or damaged.
        """
        try:
            data = archives.read_bytes(path)
            pixels = decode_like_pillow(data) if self.decoder == "torchvision" else None
            if pixels is not None:
                return self.fit_pixels(pixels), self.view(int(pixels.shape[2]), int(pixels.shape[1]))
            with Image.open(io.BytesIO(data)) as opened:
                image = opened.convert("RGB")
            view = self.view(*image.size)
            if self.decoder == "torchvision":
                return self.fit_pixels(torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1)), view
            image = self.fit(image)
        except NotFoundError:
            raise DataError(f"The image {path} does not exist.") from None
        except UnidentifiedImageError:
            raise DataError(f"The image {path} cannot be read (no format that Pillow knows).") from None
        except (MadkitError, MemoryError):
            raise
        except Exception as error:  # decoders raise what they like for damage: that of AVIF a RuntimeError
            raise DataError(f"The image {path} cannot be read ({error or type(error).__name__}).") from None
        return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous(), view

    def fit(self, image: Image.Image) -> Image.Image:
        """Resize and crop an RGB image to ``size``, with Pillow."""
        target = self._target(image.width, image.height)
        if image.size != target:
            image = image.resize(target, _FILTERS[self.interpolation])
        left, top, right, bottom = self._box(*target)
        if (left, top) == (0, 0) and image.size == (right, bottom):
            return image
        return image.crop((left, top, right, bottom))

    def fit_pixels(self, pixels: Tensor) -> Tensor:
        """Resize and crop uint8 [3, h, w] to ``size``, with torch. Fastest where the channels lie together."""
        height, width = int(pixels.shape[1]), int(pixels.shape[2])
        target = self._target(width, height)
        if (width, height) != target:
            resized = F.interpolate(
                pixels[None], (target[1], target[0]), mode=self.interpolation, align_corners=False, antialias=True
            )
            pixels = resized[0]
        left, top, right, bottom = self._box(*target)
        if left < 0 or top < 0 or right > target[0] or bottom > target[1]:  # as Pillow's crop: black around it
            pixels = F.pad(pixels, (max(0, -left), max(0, right - target[0]), max(0, -top), max(0, bottom - target[1])))
            left, right, top, bottom = max(0, left), right - min(0, left), max(0, top), bottom - min(0, top)
        return pixels[:, top:bottom, left:right].contiguous()

    def _target(self, width: int, height: int) -> tuple[int, int]:
        """Return the (width, height) that an image is resized to."""
        wanted_height, wanted_width = self.size
        edge = self.resize_edge
        if self.resize_mode == "squash":
            return (wanted_width, wanted_height) if edge is None else (edge, edge)
        if wanted_height == wanted_width or edge is not None:
            # Shorter edge to size, the longer one truncated: the rounding of torchvision's Resize.
            edge = wanted_height if edge is None else edge
            other = int(edge * max(width, height) / min(width, height))
            return (edge, other) if width <= height else (other, edge)
        scale = max(wanted_height / height, wanted_width / width)
        return max(wanted_width, round(width * scale)), max(wanted_height, round(height * scale))

    def _box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return (left, top, right, bottom) of the centre of an image that has been resized."""
        whole = math.floor if self.crop == "floor" else round
        left, top = whole((width - self.size[1]) / 2.0), whole((height - self.size[0]) / 2.0)
        return left, top, left + self.size[1], top + self.size[0]

    def normalise(self, images: Tensor, dtype: torch.dtype) -> Tensor:
        """Turn uint8 [B, 3, H, W] into (pixel / 255 - mean) / std of ``dtype``, computed in float32."""
        mean, std = (_channels(values, images.device) for values in (self.mean, self.std))
        return ((images.float() / 255.0 - mean) / std).to(dtype)


@lru_cache(maxsize=64)
def _channels(values: tuple[float, float, float], device: torch.device) -> Tensor:
    """Values per channel on a device, copied there once: a copy per batch would make the device wait for the host."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device).view(1, 3, 1, 1)
