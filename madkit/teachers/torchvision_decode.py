"""Decoding JPEG with torchvision where that gives exactly the pixels that Pillow gives.

Both libraries hand JPEGs to libjpeg-turbo with the same settings, so 8-bit grey and colour come out equal, and so do
damaged files. Everything else is left to Pillow: four-component JPEGs, which torchvision converts in its own way, and
all other formats. torchvision's PNG decoder is not used because some damaged files end the whole process in it (0.29).
Like Pillow, this does not turn an image by its EXIF orientation.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from PIL import Image
from torch import Tensor

_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""JPEG markers that begin a frame (ITU-T T.81, table B.1)."""
_HUFFMAN_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
_RGB = 3
"""``torchvision.io.ImageReadMode.RGB``."""


def decode_like_pillow(data: bytes) -> Tensor | None:
    """Return uint8 [3, h, w] with the channels of a pixel together in memory; None for what Pillow is to read."""
    decode = _operator() if data.startswith(b"\xff\xd8\xff") and _plain_jpeg(data) else None
    if decode is None:
        return None
    try:
        pixels: Tensor = decode(torch.frombuffer(bytearray(data), dtype=torch.uint8), _RGB, False)
    except RuntimeError:  # damaged: Pillow reads it anyway, or says what is wrong with it
        return None
    return pixels


@lru_cache(maxsize=1)
def _operator() -> Any:
    """Return torchvision's operator for JPEG; None where this torchvision has none.

    Its Python function around it says with every call that it will go one day, which warnings can only be kept from
    doing for all threads at once. Where it is gone Pillow decodes, and the pixels are the same.
    """
    try:
        import_module("torchvision.io")
        return torch.ops.image.decode_jpeg
    except (ImportError, AttributeError, RuntimeError):
        return None


def _plain_jpeg(data: bytes) -> bool:
    """Whether a JPEG has one Huffman-coded frame of 8 bits and one or three components, of harmless size."""
    place = 2
    while place + 4 <= len(data):
        if data[place] != 0xFF:
            return False
        marker = data[place + 1]
        if marker == 0xFF:  # fill byte
            place += 1
            continue
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        if marker in _FRAMES:
            frame = data[place + 4 : place + 10]
            if marker not in _HUFFMAN_FRAMES or len(frame) < 6 or frame[0] != 8:
                return False
            height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
            return frame[5] in (1, 3) and _harmless(width, height)
        if marker in (0xD9, 0xDA) or length < 2:
            return False
        place += 2 + length
    return False


def _harmless(width: int, height: int) -> bool:
    """Whether Pillow would decode an image of that size without a word about its size."""
    limit = Image.MAX_IMAGE_PIXELS
    return width > 0 and height > 0 and (limit is None or width * height <= limit)
