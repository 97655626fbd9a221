"""Digests of weights: two files with the same tensors are the same teacher, whatever the file format."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 24


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return 64 hex digits: SHA-256 over name, dtype, shape and little-endian bytes of each tensor in order of names.

    Tensors are read in pieces, so nothing the size of the model is copied.
    """
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        sha.update(f"{name}\0{str(tensor.dtype).removeprefix('torch.')}\0{list(tensor.shape)}\0".encode())
        flat = tensor.reshape(-1)
        for start in range(0, flat.numel(), CHUNK_ELEMENTS):
            piece = flat[start : start + CHUNK_ELEMENTS].cpu().contiguous()
            sha.update(piece.view(torch.uint8).numpy().data)
    return sha.hexdigest()
