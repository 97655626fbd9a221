"""Which image tokens an extraction keeps: all, a selection of K per image, or none beside the global vector.

What a question asks about is not known when tokens are extracted, so a selection can only follow the image itself:
half of its places go to coverage and half to relevance. The grid is cut into as many equal cells as K // 2 allows, and
of each cell the patch nearest to the image's global vector (by cosine) is kept, so that every part of the picture, and
with it most boxes, keeps a token; the other places go to the patches nearest to the global vector wherever they lie.
The positions are stored beside the tokens, in ascending order.
"""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor

from madkit.core.errors import UsageProblem
from madkit.core.registry import suggest

TOKEN_CHOICES = ("all", "selected:K", "global")
STORE_DTYPES = ("float16", "int8")
HINT = "--tokens all, --tokens selected:32 or --tokens global"


def selected_count(tokens: str) -> int | None:
    """Return K of ``selected:K``, None for ``all`` and ``global``.

    Raises:
        UsageProblem: it is none of the three.
    """
    if tokens in ("all", "global"):
        return None
    found = re.fullmatch(r"selected:([1-9]\d{0,5})", tokens)
    if found is None:
        if tokens.partition(":")[0] == "selected":
            raise UsageProblem(f"--tokens {tokens} has no number of tokens from 1 on.", hint=HINT)
        near = suggest(tokens.partition(":")[0], TOKEN_CHOICES)
        raise UsageProblem(f"There is no choice of tokens '{tokens}'.{near}", hint=HINT)
    return int(found[1])


def check_dtype(name: str) -> str:
    """Return a storage dtype's name (UsageProblem for one that does not exist)."""
    if name not in STORE_DTYPES:
        raise UsageProblem(
            f"Tokens cannot be stored as '{name}'.{suggest(name, STORE_DTYPES)}", hint="--store-dtype float16 or int8"
        )
    return name


def stored_tokens(tokens: str, grid: tuple[int, int]) -> int:
    """Return how many tokens an image keeps.

    Raises:
        UsageProblem: more are asked for than the teacher gives.
    """
    if tokens == "global":
        return 0
    count, cells = selected_count(tokens), grid[0] * grid[1]
    if count is None:
        return cells
    if count >= cells:
        raise UsageProblem(f"The teacher gives {cells} tokens an image, so {count} cannot be selected.", hint=HINT)
    return count


def coverage_cells(grid: tuple[int, int], most: int) -> tuple[int, int]:
    """Return the finest division (rows, columns) of a grid into at most ``most`` cells as square as can be."""
    best = (1, 1) if most >= 1 else (0, 0)
    for rows in range(1, grid[0] + 1):
        columns = min(grid[1], round(rows * grid[1] / grid[0]) or 1)
        if rows * columns <= most and rows * columns > best[0] * best[1]:
            best = (rows, columns)
    return best


def select_patches(tokens: Tensor, global_: Tensor, grid: tuple[int, int], count: int) -> Tensor:
    """Choose the patches of each image.

    Args:
        tokens: [B, P, D], patches in row-major order of ``grid``.
        global_: [B, D].
        grid: (rows, columns).
        count: K, at most P.

    Returns:
        [B, K] int64 positions, ascending.
    """
    relevance = F.cosine_similarity(tokens.float(), global_.float().unsqueeze(1), dim=-1)
    rows, columns = coverage_cells(grid, count // 2)
    if rows:
        down = torch.arange(grid[0], device=tokens.device) * rows // grid[0]
        across = torch.arange(grid[1], device=tokens.device) * columns // grid[1]
        cell = (down[:, None] * columns + across[None, :]).flatten()
        of_cell = cell == torch.arange(rows * columns, device=tokens.device)[:, None]  # [C, P]
        best = relevance.unsqueeze(1).masked_fill(~of_cell, -torch.inf).argmax(-1)
        relevance = relevance.scatter(1, best, torch.inf)
    order = relevance.argsort(dim=1, descending=True, stable=True)
    return order[:, :count].sort(dim=1).values
