"""What a store knows only when all its units are there: mean and variance, and what rounding to int8 did to tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from madkit.cache.layout import ArraySpec
from madkit.cache.plan import PARTS, Part, StorePlan
from madkit.cache.shards import unpack_chunk
from madkit.cache.statistics import merge_moments


def store_statistics(
    plan: StorePlan, part: Part, folder: Path, absent: Callable[[int], int]
) -> npt.NDArray[np.float32]:
    """Merge the moments of a part's units into [4, D]: mean and variance of tokens, then of global vectors.

    Args:
        plan: the store's plan.
        part: ``images`` or ``texts``.
        folder: the store's.
        absent: says how many items of a unit have no values.
    """
    specs = plan.arrays(part)
    units = range(plan.units(part))
    if not units:
        return np.zeros((4, *specs["statistics"].item), dtype=np.float32)
    values = [_chunk(specs["unit_statistics"], unit, folder) for unit in units]
    gone = [absent(unit) for unit in units]
    each = plan.images.tokens if part == "images" else 0  # an absent text has no tokens anyway
    counts = [plan.token_count(part, unit) - each * less for unit, less in zip(units, gone, strict=True)]
    tokens = merge_moments(counts, [value[:2] for value in values])
    counts = [len(plan.items(part, unit)) - less for unit, less in zip(units, gone, strict=True)]
    globals_ = merge_moments(counts, [value[2:] for value in values])
    return np.concatenate([tokens, globals_]).astype(np.float32)


def rounding_facts(plan: StorePlan, folder: Path) -> dict[str, dict[str, Any]]:
    """Return, for each part in int8, its tokens and the mean and worst cosine that rounding left them."""
    found: dict[str, dict[str, Any]] = {}
    for part in PARTS:
        specs = plan.arrays(part)
        if "scales" not in specs:
            continue
        units = range(plan.units(part))
        facts = [_chunk(specs["unit_cosines"], unit, folder) for unit in units]
        channels = [_chunk(specs["channel_scales"], unit, folder) for unit in units]
        n = sum(fact[0] for fact in facts)
        found[part] = {
            "tokens": int(n),
            "mean_cosine": float(sum(fact[0] * fact[1] for fact in facts) / n) if n else 1.0,
            "worst_cosine": float(min((fact[2] for fact in facts), default=1.0)),
            "outlier_channels": int(np.any(np.stack(channels) > 1, axis=0).sum()) if channels else 0,
        }
    return found


def _chunk(spec: ArraySpec, unit: int, folder: Path) -> npt.NDArray[np.float64]:
    name = spec.file(unit)
    return np.asarray(unpack_chunk(spec, (folder / name).read_bytes(), name, folder)[0], np.float64)
