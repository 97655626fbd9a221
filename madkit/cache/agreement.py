"""Whether a manifest's sizes, the metadata of the arrays and the number of shards are those of one store.

Every file can be what the manifest says and the store be unreadable all the same: where shards of one size lie under
metadata that tell another.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from madkit.cache.layout import TEXT_EXTENTS, ArraySpec, ImageLayout, TextLayout
from madkit.cache.plan import StorePlan, unit_of_file
from madkit.cache.rows import read_spec
from madkit.cache.shards import unpack_chunk
from madkit.core.errors import CacheError, MadkitError

_RAGGED = ("tokens", "spans", "scales")


def disagreements(
    manifest: Mapping[str, Any], specs: Mapping[str, ArraySpec], bad: Collection[str], folder: Path
) -> Iterator[tuple[str, str]]:
    """Yield a file and a clause for each array that is not what the manifest's sizes imply.

    Args:
        manifest: the store's.
        specs: the arrays that a reader reads, by name, from their metadata.
        bad: files that are missing or damaged; nothing is concluded from these.
        folder: where metadata and extents of the texts are.
    """
    files = manifest["files"]
    try:
        layouts = _layouts(manifest)
    except (KeyError, TypeError, ValueError) as error:
        yield "manifest.json", f"its sizes cannot be read ({error!r})"
        return
    for part, layout in layouts.items():
        for last, wanted in layout.arrays().items():
            metadata = f"{wanted.name}/zarr.json"
            spec = specs.get(wanted.name)
            if last not in ("tokens", "spans", "scales", "positions", "globals") or metadata in bad:
                continue
            if spec is None:
                if metadata not in files:
                    yield metadata, "the manifest tells the sizes of this array, and does not list its files"
                continue
            if _sizes(spec) != _sizes(wanted):
                yield metadata, f"it tells {_said(spec)}, and the manifest's sizes are {_said(wanted)}"
                continue
            units = _units_with_tokens(folder, layout, bad) if part == "texts" and last in _RAGGED else None
            if part == "texts" and last in _RAGGED and units is None:
                continue
            shards = range(spec.shards) if units is None else units
            wrong = {spec.file(shard) for shard in shards} ^ {name for name in files if _is_of(spec, name)}
            if wrong:
                yield min(wrong), f"by its sizes {spec.name} has {len(shards)} shards, and the manifest lists others"


def refuse_other_shards(plan: StorePlan, files: Collection[str], folder: Path) -> None:
    """Raise CacheError unless these are the shards that a plan's sizes imply, which a manifest must never vouch for."""
    places = [(part, unit) for part in plan.parts for unit in range(plan.units(part))]
    wanted = {name for place in places for name in plan.unit_files(*place)}
    wrong = wanted ^ {name for name in files if unit_of_file(name) is not None}
    if wrong:
        raise CacheError(
            f"The cache {folder.name} has other shards than its sizes imply: {min(wrong)}.",
            hint=f"remove it and extract again: madkit cache prune --store {folder.name} --yes",
        )


def _layouts(manifest: Mapping[str, Any]) -> dict[str, ImageLayout | TextLayout]:
    found: dict[str, ImageLayout | TextLayout] = {}
    if "images" in manifest:
        sizes = manifest["images"]
        n, unit, tokens, dim = (int(sizes[name]) for name in ("n", "unit", "tokens", "dim"))
        rows, columns = sizes["grid"]
        dtype, views = str(sizes.get("dtype", "float16")), bool(sizes.get("views", False))
        found["images"] = ImageLayout(n, _positive(unit), tokens, dim, (int(rows), int(columns)), dtype, views)
    if "texts" in manifest:
        sizes = manifest["texts"]
        n, unit, capacity, rows, dim = (int(sizes[name]) for name in ("n", "unit", "capacity", "rows", "dim"))
        found["texts"] = TextLayout(n, _positive(unit), capacity, rows, dim, str(sizes.get("dtype", "float16")))
    return found


def _positive(unit: int) -> int:
    if unit < 1:
        raise ValueError(f"a shard of {unit} items")
    return unit


def _sizes(spec: ArraySpec) -> tuple[int, tuple[int, ...], str, int]:
    return spec.rows, spec.item, spec.dtype, spec.shard_rows


def _said(spec: ArraySpec) -> str:
    return f"{spec.dtype} {[spec.rows, *spec.item]} in shards of {spec.shard_rows:,}"


def _is_of(spec: ArraySpec, name: str) -> bool:
    return name.startswith(f"{spec.name}/c/")


def _units_with_tokens(folder: Path, layout: ImageLayout | TextLayout, bad: Collection[str]) -> list[int] | None:
    """Return the units of texts that have any token, and so shards of them; None where the extents do not tell."""
    if not layout.n:
        return []
    try:
        spec = read_spec(folder, TEXT_EXTENTS)
        name = spec.file(0)
        if name in bad or spec.shards != 1:
            return None
        found: npt.NDArray[np.generic] = unpack_chunk(spec, (folder / name).read_bytes(), name, folder)
    except (MadkitError, OSError):
        return None
    extents = found[: layout.n].astype(np.int64)
    lengths = extents[:, 1] - extents[:, 0]
    return [unit for unit in range(layout.units) if lengths[unit * layout.unit : (unit + 1) * layout.unit].sum()]
