"""Who reads image files: Pillow, or torchvision's decoders with torch's own antialiased resizing.

Both give uint8 [3, H, W], resized and cropped as the teacher wants it. torchvision's JPEG and PNG decoders give exactly
Pillow's pixels; torch's resizing of uint8 differs from Pillow's by one level in a few of a thousand pixels. What
torchvision does not read like Pillow (CMYK, palettes, transparency, 16 bits, other formats) is decoded by Pillow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from torch import Tensor

from madkit.core.errors import UsageProblem
from madkit.core.registry import suggest
from madkit.teachers.preprocess import DECODERS, Preprocessing

DECODER_CHOICES = ("auto", *DECODERS)


class Decoder(Protocol):
    """Reads image files. Safe to call from threads."""

    def load(self, path: Path) -> Tensor:
        """Return uint8 [3, height, width] of a file or a member of a zip.

        Raises:
            DataError: the file is missing, no image, or damaged.
        """


@dataclass(frozen=True, slots=True)
class FileDecoder:
    """A decoder with its way of preprocessing."""

    preprocessing: Preprocessing

    def load(self, path: Path) -> Tensor:
        """See :class:`Decoder`."""
        return self.preprocessing.load(path)


def check_decoder(name: str) -> str:
    """Return a decoder's name (UsageProblem for one that does not exist)."""
    if name not in DECODER_CHOICES:
        raise UsageProblem(
            f"There is no decoder '{name}'.{suggest(name, DECODER_CHOICES)}",
            hint=f"--decoder {', '.join(DECODER_CHOICES[:-1])} or {DECODER_CHOICES[-1]}",
        )
    return name


def choose_decoder(name: str, teacher: str = "") -> tuple[str, str]:
    """Return the decoder for ``--decoder`` and the reason for it.

    Args:
        name: ``auto``, ``torchvision`` or ``pillow``.
        teacher: name of the vision teacher. The embedded one stays with Pillow, which its caches were made with.
    """
    if check_decoder(name) != "auto":
        return name, "as asked for"
    if teacher == "mini":
        return "pillow", "the embedded teacher's caches are made with it"
    return "torchvision", "half the time per image; within 1/255 of Pillow"


def make_decoder(name: str, preprocessing: Preprocessing) -> tuple[Decoder, str]:
    """Return a decoder and the reason for it.

    Args:
        name: ``auto``, ``torchvision`` or ``pillow``.
        preprocessing: what becomes of the decoded image.
    """
    chosen, reason = choose_decoder(name)
    return FileDecoder(replace(preprocessing, decoder=chosen)), reason
