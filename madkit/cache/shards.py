"""The bytes of shard and chunk files.

A shard of Zarr's ``sharding_indexed`` codec is inner chunks followed by an index: for each inner chunk its offset and
length as little-endian uint64 (both 2^64-1 where the chunk is absent), then the CRC-32C of the index. Inner chunks, and
files that are not sharded, are raw little-endian values followed by their own CRC-32C (RFC 3720, appendix B.4).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection
from pathlib import Path

import google_crc32c
import numpy as np
import numpy.typing as npt

from madkit.cache.layout import ArraySpec, verify_hint
from madkit.core.errors import CacheError

ABSENT = 2**64 - 1
CRC_BYTES = 4


def crc32c(data: bytes | bytearray | memoryview) -> int:
    """Return the CRC-32C of some bytes."""
    return int(google_crc32c.value(data if isinstance(data, bytes) else bytes(data)))


def file_crc32(data: bytes) -> int:
    """Return the CRC-32 of a whole file (ISO 3309, as in zlib).

    Not CRC-32C: the CRC-32C of data that ends in its own CRC-32C is a constant, so every sound shard would have the
    same one, whatever it holds.
    """
    return zlib.crc32(data)


def pack_shard(spec: ArraySpec, rows: npt.NDArray[np.generic], absent: Collection[int] = ()) -> bytes:
    """Build a shard file from the first ``len(rows)`` rows of its range; the rest of the range is absent.

    Args:
        spec: the sharded array.
        rows: [n, *item] with n at most ``spec.shard_rows``.
        absent: rows of these without a value. Where a row is an inner chunk of its own, the file does not hold it.
    """
    n, inner = len(rows), spec.inner_rows
    if n > spec.shard_rows or rows.shape[1:] != spec.item:
        raise ValueError(f"{spec.name}: cannot put rows of shape {rows.shape} into a shard of {spec.shard_rows}")
    chunks, size = -(-n // inner), inner * spec.row_bytes
    body = np.zeros((chunks, size + CRC_BYTES), dtype=np.uint8)
    raw = np.ascontiguousarray(rows, dtype=spec.little_endian()).reshape(n, -1).view(np.uint8)
    whole = n // inner
    body[:whole, :size] = raw[: whole * inner].reshape(whole, size)
    if whole < chunks:
        tail = raw[whole * inner :].reshape(-1)
        body[whole, : len(tail)] = tail
    for chunk in body:
        chunk[size:] = np.frombuffer(struct.pack("<I", crc32c(chunk[:size].tobytes())), dtype=np.uint8)
    index = np.full((spec.inner_per_shard, 2), ABSENT, dtype="<u8")
    there = np.ones(chunks, dtype=bool)
    if inner == 1:
        there[list(absent)] = False
        body = body[there]
    index[:chunks][there, 0] = np.arange(len(body), dtype=np.uint64) * np.uint64(size + CRC_BYTES)
    index[:chunks][there, 1] = size + CRC_BYTES
    index_bytes = index.tobytes()
    return body.tobytes() + index_bytes + struct.pack("<I", crc32c(index_bytes))


def index_size(spec: ArraySpec) -> int:
    """Return the bytes of a shard's index with its checksum."""
    return spec.inner_per_shard * 16 + CRC_BYTES


def parse_index(spec: ArraySpec, data: bytes, what: Path | str, store: Path) -> npt.NDArray[np.uint64]:
    """Check and decode the index at the end of a shard.

    Returns:
        [inner chunks, 2] offsets and lengths.

    Raises:
        CacheError: its checksum is wrong.
    """
    body, checksum = data[:-CRC_BYTES], struct.unpack("<I", data[-CRC_BYTES:])[0]
    if len(data) != index_size(spec) or crc32c(body) != checksum:
        raise CacheError(f"{what} is damaged: the checksum of its index is wrong.", hint=verify_hint(store))
    return np.frombuffer(body, dtype="<u8").reshape(-1, 2).astype(np.uint64)


def pack_chunk(spec: ArraySpec, rows: npt.NDArray[np.generic]) -> bytes:
    """Build a file of an array that is not sharded; it is padded to ``spec.shard_rows`` rows as Zarr demands."""
    padded = np.zeros((spec.shard_rows, *spec.item), dtype=spec.little_endian())
    padded[: len(rows)] = rows
    body = padded.tobytes()
    return body + struct.pack("<I", crc32c(body))


def unpack_chunk(spec: ArraySpec, data: bytes, what: Path | str, store: Path) -> npt.NDArray[np.generic]:
    """Check and decode a file that :func:`pack_chunk` built, into [shard_rows, *item].

    Raises:
        CacheError: it has another size, or its checksum is wrong.
    """
    body = data[:-CRC_BYTES]
    if len(body) != spec.shard_rows * spec.row_bytes:
        raise CacheError(f"{what} is damaged: it has {len(data)} bytes.", hint=verify_hint(store))
    if crc32c(body) != struct.unpack("<I", data[-CRC_BYTES:])[0]:
        raise CacheError(f"{what} is damaged: its checksum is wrong.", hint=verify_hint(store))
    decoded: npt.NDArray[np.generic] = np.frombuffer(body, dtype=spec.little_endian()).reshape(-1, *spec.item)
    return decoded.astype(spec.dtype)
