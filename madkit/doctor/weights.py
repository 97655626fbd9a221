"""Weights that are no numbers, found in a student's file without loading it: in a few places, or in all of it.

A training that went astray leaves NaN in every tensor, for the clipped gradient of all of them is NaN at once; so a few
places tell, and cost a few reads of a file of any size.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

PLACES = 8
SAMPLE_BYTES = 4096
PIECE_BYTES = 16 * 2**20
# The exponent's bits of each kind of float: all of them set means NaN or infinite (IEEE 754; bfloat16 is float32's
# first half).
_EXPONENTS = {"F64": ("<u8", 0x7FF0 << 48), "F32": ("<u4", 0x7F800000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}


def not_finite(path: Path, *, whole: bool = False) -> str | None:
    """The first tensor of a safetensors file that holds NaN or infinities; None where none does.

    Args:
        path: the file, whose header is sound.
        whole: read every value; otherwise the first 4 KiB of eight tensors, first and last among them.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
        tensors = [(one["data_offsets"], name, one["dtype"]) for name, one in header.items() if name != "__metadata__"]
        for (start, end), name, kind in _some(sorted(tensors), whole):
            file.seek(8 + length + start)
            dtype, bits = np.dtype(_EXPONENTS[kind][0]), _EXPONENTS[kind][1]
            left = end - start if whole else min(end - start, SAMPLE_BYTES)
            while left >= dtype.itemsize:
                piece = file.read(min(left, PIECE_BYTES) // dtype.itemsize * dtype.itemsize)
                if not piece:  # cut short since its size was looked at
                    break
                values = np.frombuffer(piece, dtype)
                if bool(((values & dtype.type(bits)) == bits).any()):
                    return str(name)
                left -= len(piece)
    return None


def _some(tensors: list[Any], whole: bool) -> Iterator[Any]:
    floats = [one for one in tensors if one[2] in _EXPONENTS]
    if whole or len(floats) <= PLACES:
        yield from floats
        return
    yield from (floats[round(place * (len(floats) - 1) / (PLACES - 1))] for place in range(PLACES))
