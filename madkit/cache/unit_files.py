"""The files of one unit of work, as bytes: shards of its arrays, its moments, and its tokens rounded to int8."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from madkit.cache.layout import ArraySpec
from madkit.cache.plan import Part, StorePlan
from madkit.cache.quantise import quantise
from madkit.cache.shards import pack_chunk, pack_shard
from madkit.cache.statistics import moments


def pack_unit(
    plan: StorePlan, part: Part, unit: int, arrays: Mapping[str, npt.NDArray[np.generic]], absent: Collection[int]
) -> dict[str, bytes]:
    """Build a unit's files.

    Args:
        plan: the store's plan.
        part: ``images`` or ``texts``.
        unit: its number.
        arrays: as for :meth:`madkit.cache.writer.StoreWriter.write_unit`.
        absent: rows of the store that have no values; what ``arrays`` has for them is not looked at.

    Returns:
        The content of each file, by its name in the store.

    Raises:
        ValueError: an array has other rows than the unit, or is missing.
    """
    specs = plan.arrays(part)
    rows = plan.items(part, unit)
    _check_rows(plan, part, unit, arrays)
    gone = sorted(row - rows.start for row in absent)
    dim = specs["globals"].item[0]
    tokens = np.asarray(arrays.get("tokens", np.zeros((len(rows), 0, dim))), dtype=np.float16)
    globals_ = np.asarray(arrays["globals"], dtype=np.float16)
    if gone:
        globals_ = globals_.copy()
        globals_[gone] = 0
    values = {**{name: found for name, found in arrays.items() if name in specs}, "globals": globals_}
    if "scales" in specs:
        values.pop("tokens", None)  # rounded below
    packed = {
        specs[name].file(unit): pack_shard(specs[name], given, gone) for name, given in values.items() if len(given)
    }
    there = np.delete(np.arange(len(rows)), gone)
    if "scales" in specs:
        packed |= _rounded(specs, part, unit, tokens, there, gone)
    if gone:
        tokens, globals_ = tokens[there] if part == "images" else tokens, globals_[there]
    both = np.concatenate([moments(tokens.reshape(-1, dim)), moments(globals_)])
    statistics = specs["unit_statistics"]
    packed[statistics.file(unit)] = pack_chunk(statistics, both[None])
    if packed.keys() != plan.unit_files(part, unit):
        raise ValueError(f"{part}, unit {unit}: lacks {sorted(plan.unit_files(part, unit) - packed.keys())}")
    return packed


def _check_rows(plan: StorePlan, part: Part, unit: int, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
    """A unit of other items, or of other shard sizes, would fit into its files and speak for the wrong images."""
    items, tokens = len(plan.items(part, unit)), plan.token_count(part, unit)
    for name, found in arrays.items():
        if name in plan.arrays(part):
            wanted = tokens if part == "texts" and name in ("tokens", "spans") else items
            if len(found) != wanted or not items:
                raise ValueError(f"{part}, unit {unit}: {name} has {len(found)} rows, and the unit has {wanted}")


def _rounded(
    specs: Mapping[str, ArraySpec],
    part: Part,
    unit: int,
    tokens: npt.NDArray[np.float16],
    there: npt.NDArray[np.int64],
    gone: Sequence[int],
) -> dict[str, bytes]:
    """Round a unit's tokens to int8, and measure what that costs."""
    kept = tokens[there] if part == "images" else tokens
    rounded = quantise(kept.reshape(-1, tokens.shape[-1]))
    values, scales = np.zeros(tokens.shape, np.int8), np.zeros(tokens.shape[:-1], np.float16)
    place = there if part == "images" else slice(None)
    values[place] = rounded.values.reshape(kept.shape)
    scales[place] = rounded.scales.reshape(kept.shape[:-1])
    packed = {}
    if len(values):
        packed[specs["tokens"].file(unit)] = pack_shard(specs["tokens"], values, gone)
        packed[specs["scales"].file(unit)] = pack_shard(specs["scales"], scales, gone)
    facts = {"channel_scales": rounded.channels, "unit_cosines": np.array(rounded.cosines)}
    return packed | {specs[name].file(unit): pack_chunk(specs[name], fact[None]) for name, fact in facts.items()}
