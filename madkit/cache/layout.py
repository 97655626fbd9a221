"""The layout of a token store on disk: names, Zarr v3 metadata, and the shape of shards.

``docs/cache.md`` specifies the format. Metadata follows the Zarr v3 core specification with its ``sharding_indexed``,
``bytes`` and ``crc32c`` codecs, written as plain JSON, so that nothing of the writer depends on a Zarr library and any
Zarr library can read the result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from madkit.core.errors import CacheError
from madkit.core.files import digest_of

SCHEMA = 1
FORMAT = "madkit-token-store"
MANIFEST = "manifest.json"
PLAN = "plan.json"
JOURNAL = "journal.jsonl"
LOCK = ".lock"
ABSENT_ITEMS = "absent.json"
IMAGE_IDS = "images/ids.json"
TEXTS = "texts/texts.json"
TEXT_EXTENTS = "texts/extents"

TEXT_CHUNK_TOKENS = 128
"""Token rows per inner chunk of text arrays: a text is read by byte range, a checked read costs one chunk or two."""
GLOBAL_CHUNK_ROWS = 64
MAX_SHARD_ITEMS = 4096
DEFAULT_SHARD_MB = 32.0


def verify_hint(store: Path) -> str:
    """What to type next where a store's files are not what they should be."""
    return f"see: madkit cache verify {store.name}"


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array of a store.

    Attributes:
        name: path of the array in the store, such as ``images/tokens``.
        rows: length of the first axis.
        item: shape of one row; empty for a one-dimensional array.
        dtype: NumPy name, also Zarr's: ``float16``, ``float32``, ``float64``, ``int8``, ``int32``, ``int64``.
        shard_rows: rows per file.
        inner_rows: rows per inner chunk of a sharded array; 0 for an array that is not sharded.
        dimensions: a name for each axis.
    """

    name: str
    rows: int
    item: tuple[int, ...]
    dtype: str
    shard_rows: int
    inner_rows: int
    dimensions: tuple[str, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.item) * np.dtype(self.dtype).itemsize

    @property
    def shards(self) -> int:
        """Number of files."""
        return -(-self.rows // self.shard_rows)

    @property
    def inner_per_shard(self) -> int:
        """Inner chunks per file of a sharded array."""
        return self.shard_rows // self.inner_rows

    def file(self, shard: int) -> str:
        """Return the path of a file relative to the store (Zarr's default chunk key encoding)."""
        return f"{self.name}/c/{shard}" + "/0" * len(self.item)

    def little_endian(self) -> np.dtype[Any]:
        """Return the dtype as it lies on disk."""
        return np.dtype(self.dtype).newbyteorder("<")

    def metadata(self) -> dict[str, Any]:
        """Return the content of the array's ``zarr.json``."""
        index: list[dict[str, Any]] = [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "crc32c"},
        ]
        # single bytes have no order, and Zarr libraries differ in whether they bear one in the metadata
        little = [{"name": "bytes"}, {"name": "crc32c"}] if self.dtype == "int8" else index
        codecs = little
        if self.inner_rows:
            codecs = [
                {
                    "name": "sharding_indexed",
                    "configuration": {
                        "chunk_shape": [self.inner_rows, *self.item],
                        "codecs": little,
                        "index_codecs": index,
                        "index_location": "end",
                    },
                }
            ]
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [self.rows, *self.item],
            "data_type": self.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [self.shard_rows, *self.item]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0 if self.dtype.startswith("int") else 0.0,
            "codecs": codecs,
            "attributes": {},
            "dimension_names": list(self.dimensions),
        }

    @classmethod
    def from_metadata(cls, name: str, metadata: Mapping[str, Any], path: Path) -> ArraySpec:
        """Read an array's ``zarr.json``.

        Raises:
            CacheError: the array is not laid out in the way that this reader knows.
        """
        try:
            rows, *item = metadata["shape"]
            shard_rows, *chunk_item = metadata["chunk_grid"]["configuration"]["chunk_shape"]
            spec = cls(
                name=name,
                rows=int(rows),
                item=tuple(item),
                dtype=metadata["data_type"],
                shard_rows=int(shard_rows),
                inner_rows=_inner_rows(metadata["codecs"]),
                dimensions=tuple(metadata.get("dimension_names") or ()),
            )
            same = _essence(spec.metadata()) == _essence(metadata)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise CacheError(f"{path} is not the metadata of an array that madkit can read ({error!r}).") from None
        if not same or list(chunk_item) != list(item):
            raise CacheError(
                f"{path} describes an array in another layout than madkit's own reader knows.",
                hint="read it with a Zarr library, or extract it again",
            )
        return spec


def same_array(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two arrays' metadata describe the same shape, type, shards and codecs."""
    return _essence(one) == _essence(other)


def _essence(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return an array's metadata without what does not matter here, or says what is so anyway."""
    kept = {name: value for name, value in metadata.items() if name not in ("attributes", "dimension_names")}
    if not kept.get("storage_transformers"):
        kept.pop("storage_transformers", None)
    return kept


def _inner_rows(codecs: list[dict[str, Any]]) -> int:
    if codecs[0]["name"] != "sharding_indexed":
        return 0
    return int(codecs[0]["configuration"]["chunk_shape"][0])


def group_metadata(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a group's ``zarr.json``."""
    return {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}


@dataclass(frozen=True, slots=True)
class ImageLayout:
    """Sizes of the image part: ``n`` images, ``unit`` of them per shard, each ``tokens`` x ``dim``.

    ``tokens`` is smaller than the grid where a selection is kept, and 0 where global vectors alone are. ``dtype`` is
    that of tokens: ``float16`` or ``int8``. ``views``: whether the part of each image that its patches cover is kept,
    as for teachers whose preprocessing cuts the centre out.
    """

    n: int
    unit: int
    tokens: int
    dim: int
    grid: tuple[int, int]
    dtype: str = "float16"
    views: bool = False

    @property
    def units(self) -> int:
        """Number of units of work, each one shard of tokens, one of global vectors and one row of statistics."""
        return -(-self.n // self.unit)

    def arrays(self) -> dict[str, ArraySpec]:
        """Return the arrays of the part by their last name."""
        arrays = _common_arrays("images", self.n, self.unit, self.units, self.dim, "image")
        if not self.tokens:
            return arrays
        n, unit, item = self.n, self.unit, (self.tokens, self.dim)
        inner = math.gcd(GLOBAL_CHUNK_ROWS, unit)
        one = {"tokens": ArraySpec("images/tokens", n, item, self.dtype, unit, 1, ("image", "patch", "channel"))}
        each = item[:1]
        if self.views:
            one["views"] = ArraySpec("images/views", n, (4,), "float32", unit, inner, ("image", "corner"))
        if self.tokens < self.grid[0] * self.grid[1]:
            one["positions"] = ArraySpec("images/positions", n, each, "int32", unit, inner, ("image", "patch"))
        if self.dtype == "int8":
            one["scales"] = ArraySpec("images/scales", n, each, "float16", unit, inner, ("image", "patch"))
            one |= _int8_arrays("images", self.units, self.dim)
        return {**one, **arrays}


@dataclass(frozen=True, slots=True)
class TextLayout:
    """Sizes of the text part: ``n`` texts, ``unit`` of them per shard, a shard having room for ``capacity`` tokens.

    ``capacity`` is 0 where global vectors alone are kept. ``dtype`` is that of tokens: ``float16`` or ``int8``.
    """

    n: int
    unit: int
    capacity: int
    rows: int
    dim: int
    dtype: str = "float16"

    @property
    def units(self) -> int:
        """Number of units of work."""
        return -(-self.n // self.unit)

    def arrays(self) -> dict[str, ArraySpec]:
        """Return the arrays of the part by their last name."""
        inner, capacity = TEXT_CHUNK_TOKENS, self.capacity
        common = _common_arrays("texts", self.n, self.unit, self.units, self.dim, "text")
        if not capacity:
            return common
        extra = {}
        if self.dtype == "int8":
            extra["scales"] = ArraySpec("texts/scales", self.rows, (), "float16", capacity, inner, ("token",))
            extra |= _int8_arrays("texts", self.units, self.dim)
        return {
            "tokens": ArraySpec(
                "texts/tokens", self.rows, (self.dim,), self.dtype, capacity, inner, ("token", "channel")
            ),
            **extra,
            "spans": ArraySpec("texts/spans", self.rows, (2,), "int32", capacity, inner, ("token", "bound")),
            "extents": ArraySpec(TEXT_EXTENTS, self.n, (2,), "int64", max(self.n, 1), 0, ("text", "bound")),
            **common,
        }


def _int8_arrays(part: str, units: int, dim: int) -> dict[str, ArraySpec]:
    return {
        "channel_scales": ArraySpec(f"{part}/channel_scales", units, (dim,), "float32", 1, 0, ("shard", "channel")),
        "unit_cosines": ArraySpec(f"{part}/unit_cosines", units, (3,), "float64", 1, 0, ("shard", "fact")),
    }


def _common_arrays(part: str, n: int, unit: int, units: int, dim: int, axis: str) -> dict[str, ArraySpec]:
    inner = math.gcd(GLOBAL_CHUNK_ROWS, unit)  # Zarr wants shards of whole inner chunks
    return {
        "globals": ArraySpec(f"{part}/globals", n, (dim,), "float16", unit, inner, (axis, "channel")),
        "unit_statistics": ArraySpec(
            f"{part}/unit_statistics", units, (4, dim), "float64", 1, 0, ("shard", "statistic", "channel")
        ),
        "statistics": ArraySpec(f"{part}/statistics", 4, (dim,), "float32", 4, 0, ("statistic", "channel")),
    }


def image_layout(
    n: int,
    grid: tuple[int, int],
    dim: int,
    shard_mb: float,
    *,
    tokens: int | None = None,
    dtype: str = "float16",
    views: bool = False,
) -> ImageLayout:
    """Choose shards of about ``shard_mb`` MB (10^6 bytes) and at most 4,096 images.

    ``tokens`` an image keeps; None for all, 0 for its global vector alone. ``views`` as for :class:`ImageLayout`.
    """
    tokens = grid[0] * grid[1] if tokens is None else tokens
    unit = shard_items(max(1, tokens) * dim * np.dtype(dtype).itemsize, shard_mb)
    return ImageLayout(n, unit, tokens, dim, grid, dtype, views)


def text_layout(
    lengths: npt.NDArray[np.int64], dim: int, shard_mb: float, *, tokens: bool = True, dtype: str = "float16"
) -> TextLayout:
    """Choose shards of about ``shard_mb`` MB and at most 4,096 texts for texts of ``lengths`` tokens.

    A shard holds whole texts, always ``unit`` of them; all shards have room for as many tokens as the fullest one
    needs, since Zarr's grid is regular. Room that is not used is absent from the file and takes no space.
    """
    mean = float(lengths.mean()) if len(lengths) and tokens else 1.0
    unit = shard_items(max(1.0, mean) * dim * np.dtype(dtype).itemsize, shard_mb)
    if not tokens:
        return TextLayout(len(lengths), unit, 0, 0, dim, dtype)
    used = [int(lengths[first : first + unit].sum()) for first in range(0, len(lengths), unit)]
    capacity = -(-max([1, *used]) // TEXT_CHUNK_TOKENS) * TEXT_CHUNK_TOKENS
    rows = (len(used) - 1) * capacity + used[-1] if used else 0
    return TextLayout(len(lengths), unit, capacity, rows, dim, dtype)


def text_extents(lengths: npt.NDArray[np.int64], layout: TextLayout) -> npt.NDArray[np.int64]:
    """Return [n, 2]: first row and end of each text in the token arrays; every shard starts at its own room."""
    extents = np.zeros((len(lengths), 2), dtype=np.int64)
    for number, first in enumerate(range(0, len(lengths), layout.unit)):
        part = lengths[first : first + layout.unit]
        ends = np.cumsum(part) + number * layout.capacity
        extents[first : first + layout.unit] = np.stack([ends - part, ends], axis=1)
    return extents


def shard_items(item_bytes: float, shard_mb: float) -> int:
    """Return how many items of ``item_bytes`` a shard of ``shard_mb`` holds: 1 to 4,096, in sixty-fours if it can."""
    items = max(1, min(MAX_SHARD_ITEMS, int(shard_mb * 1e6 / item_bytes)))
    return items if items < GLOBAL_CHUNK_ROWS else items // GLOBAL_CHUNK_ROWS * GLOBAL_CHUNK_ROWS


def store_key(identity: Mapping[str, Any]) -> str:
    """Return the 12 hex digits that name a store: teachers, preprocessing, layer, dtype, data, schema."""
    return digest_of({"schema": SCHEMA, "format": FORMAT, "identity": dict(identity)})[:12]


def store_folder(cache: Path, slug: str, source: str, identity: Mapping[str, Any]) -> Path:
    """Return the folder of a store below a workspace's cache folder."""
    return cache / f"{slug}-{source}-{store_key(identity)}"
