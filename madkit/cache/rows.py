"""Reading rows of a store's arrays: shard indices parsed once, rows copied out of memory maps of the shards.

Nothing here is decoded but checksums on request: a row lies in its file as it lies in memory. Checked reads go through
descriptors instead of maps. A row that the index does not hold is an error, never zeros.
"""

from __future__ import annotations

import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from madkit.cache.copying import Copier, Copy
from madkit.cache.layout import ArraySpec, verify_hint
from madkit.cache.mapped import MappedFile
from madkit.cache.shards import ABSENT, CRC_BYTES, crc32c, index_size, parse_index
from madkit.core.errors import CacheError
from madkit.core.files import read_json

Int64 = npt.NDArray[np.int64]
MAX_OPEN_FILES = 64
"""Descriptors that an array holds for checked reads; maps hold none."""
MAX_MAPS = 8192
"""Maps that an array holds; Linux lets a process have 65,530 unless told otherwise."""
_UNKNOWN, _NOWHERE = -2, -1  # in the table of offsets: index not read yet, inner chunk absent


class Fetch(Protocol):
    """Brings files of a store to where they are read; called before they are opened."""

    def __call__(self, *names: str) -> bool:
        """Bring files, named relative to the store's root. True where one had to be brought; others may have gone."""


class _OpenFile:
    """A file descriptor that closes when the last reader has let go of it."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def announce_end(self, size: int) -> None:
        """Have the last ``size`` bytes read into memory without waiting for them."""
        if hasattr(os, "posix_fadvise"):  # not on macOS
            os.posix_fadvise(self.fd, max(0, os.fstat(self.fd).st_size - size), size, os.POSIX_FADV_WILLNEED)

    def __del__(self) -> None:
        fd = getattr(self, "fd", -1)
        if fd >= 0:
            os.close(fd)


@dataclass(frozen=True, slots=True)
class _Pieces:
    """Ranges of rows cut at inner chunks; each column [pieces].

    Attributes:
        chunk: number of the inner chunk.
        skip: first row within the chunk.
        rows: number of rows.
        target: first row in the output.
    """

    chunk: Int64
    skip: Int64
    rows: Int64
    target: Int64


class ShardedRows:
    """Rows of one sharded array. Safe to use from several threads, and after a fork.

    Args:
        root: the store's folder.
        spec: the array.
        check: whether every read verifies the CRC-32C of the inner chunks that it touches; such reads go through
            descriptors, so that a file that shrinks meanwhile, or a failing disk, is an error too (see `mapped`).
        fetch: called with the names of shards before the files are opened, such as to bring them from a remote store;
            it may be called again for the same file, and from several threads.
    """

    def __init__(self, root: Path, spec: ArraySpec, *, check: bool = False, fetch: Fetch | None = None) -> None:
        self.root = root
        self.spec = spec
        self.check = check
        self._fetch = fetch
        self._offsets = np.full(spec.shards * spec.inner_per_shard, _UNKNOWN, dtype=np.int64)
        self._files: OrderedDict[int, _OpenFile] = OrderedDict()
        self._maps: OrderedDict[int, MappedFile] = OrderedDict()
        self._lock = threading.Lock()
        self._copy = Copier()

    def close(self) -> None:
        """Let go of files and maps. Reads in progress end normally."""
        with self._lock:
            self._files.clear()
            self._maps.clear()

    def take(self, rows: npt.ArrayLike) -> npt.NDArray[Any]:
        """Read single rows, in the order given and with repeats: [n, *item].

        Raises:
            IndexError: a row outside the array.
            CacheError: a file is missing, truncated or (with ``check``) damaged.
        """
        starts = np.asarray(rows, dtype=np.int64).reshape(-1)
        return self.take_ranges(starts, starts + 1)

    def take_ranges(self, starts: Int64, stops: Int64) -> npt.NDArray[Any]:
        """Read the ranges [start, stop), one after the other: [sum of lengths, *item]. Errors as for :meth:`take`."""
        spec = self.spec
        lengths = stops - starts
        if len(starts) and (int(starts.min()) < 0 or int(stops.max()) > spec.rows or int(lengths.min()) < 0):
            asked = f"{int(starts.min())} to {int(stops.max())}"
            raise IndexError(f"{spec.name} has {spec.rows} rows, asked for {asked}")
        out = np.empty((int(lengths.sum()), *spec.item), dtype=spec.dtype)
        if out.nbytes == 0:
            return out
        flat = out.reshape(-1).view(np.uint8)
        pieces = self._pieces(starts, lengths)
        if self.check:
            self._read_checked(pieces, flat)
        else:
            self._copy(self._copies(pieces), flat)
        return out

    def _pieces(self, starts: Int64, lengths: Int64) -> _Pieces:
        inner = self.spec.inner_rows
        filled = lengths > 0
        starts, lengths, targets = starts[filled], lengths[filled], (np.cumsum(lengths) - lengths)[filled]
        first = starts // inner
        counts = (starts + lengths - 1) // inner - first + 1
        if int(counts.max()) == 1:
            return _Pieces(first, starts - first * inner, lengths, targets)
        owner = np.repeat(np.arange(len(starts)), counts)
        chunk = first[owner] + np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        begin = np.maximum(starts[owner], chunk * inner)
        end = np.minimum((starts + lengths)[owner], (chunk + 1) * inner)
        return _Pieces(chunk, begin - chunk * inner, end - begin, targets[owner] + begin - starts[owner])

    def _copies(self, pieces: _Pieces) -> list[Copy]:
        """Say which bytes of which files the pieces are."""
        size = self.spec.row_bytes
        shards: list[int] = (pieces.chunk // self.spec.inner_per_shard).tolist()
        known: Mapping[int, MappedFile] = (
            self._maps
        )  # no lock: look-ups are atomic, and a fork may copy a lock that is held
        try:
            files = [known[shard] for shard in shards]
        except KeyError:
            known = self._mapped(set(shards))
            files = [known[shard] for shard in shards]
        begin, target, length = self._where(pieces), pieces.target * size, pieces.rows * size
        places = (begin.tolist(), (begin + length).tolist(), target.tolist(), (target + length).tolist())
        return list(zip(files, *places, strict=True))

    def _where(self, pieces: _Pieces) -> Int64:
        """Look up where pieces start in their files, whose indices have been read; an absent one is an error."""
        offsets = self._offsets[pieces.chunk]
        if int(offsets.min()) < 0:
            shard = int(pieces.chunk[int(offsets.argmin())]) // self.spec.inner_per_shard
            raise CacheError(
                f"{self.root / self.spec.file(shard)} does not hold rows that the store should have.",
                hint=verify_hint(self.root),
            )
        offsets += pieces.skip * self.spec.row_bytes
        return offsets

    def _read_checked(self, pieces: _Pieces, flat: npt.NDArray[np.uint8]) -> None:
        """Read whole inner chunks through descriptors, each once, and verify them."""
        spec = self.spec
        size = spec.inner_rows * spec.row_bytes
        shards = pieces.chunk // spec.inner_per_shard
        wanted = set(shards.tolist())
        with self._lock:
            unopened = wanted - self._files.keys()
        self._bring(unopened)
        for shard in wanted:
            self._remember(shard, self.index(shard))
        order = np.argsort(pieces.chunk, kind="stable")
        starts = self._where(pieces) - pieces.skip * spec.row_bytes
        columns = (
            pieces.chunk,
            shards,
            starts,
            *(part * spec.row_bytes for part in (pieces.skip, pieces.rows, pieces.target)),
        )
        data, loaded = np.zeros(0, np.uint8), -1
        for chunk, shard, start, skip, length, target in zip(
            *(column[order].tolist() for column in columns), strict=True
        ):
            if chunk != loaded:
                data = np.frombuffer(self.read_chunk(shard, start, size), np.uint8)
                loaded = chunk
            flat[target : target + length] = data[skip : skip + length]

    def read_chunk(self, shard: int, offset: int, size: int) -> bytes:
        """Read and verify one inner chunk of ``size`` bytes (CacheError when damaged)."""
        raw = self._pread(shard, self._file(shard), size + CRC_BYTES, offset)
        if len(raw) != size + CRC_BYTES:
            raise self._truncated(shard)
        if crc32c(raw[:size]) != struct.unpack("<I", raw[size:])[0]:
            raise CacheError(
                f"{self.root / self.spec.file(shard)} is damaged: a checksum at byte {offset} is wrong.",
                hint=verify_hint(self.root),
            )
        return raw[:size]

    def index(self, shard: int) -> npt.NDArray[np.uint64]:
        """Return a shard's index, [inner chunks, 2] offsets and lengths (CacheError when damaged)."""
        return self._read_index(shard, self._file(shard))

    def _read_index(self, shard: int, file: _OpenFile) -> npt.NDArray[np.uint64]:
        size, want = os.fstat(file.fd).st_size, index_size(self.spec)
        if size < want:
            raise self._truncated(shard)
        path = f"{self.root}/{self.spec.file(shard)}"
        index = parse_index(self.spec, self._pread(shard, file, want, size - want), path, self.root)
        held = index[index[:, 0] != np.uint64(ABSENT)]
        chunk = self.spec.inner_rows * self.spec.row_bytes + CRC_BYTES
        if len(held) and (
            int(held.max()) > size or int(held.sum(axis=1).max()) > size - want or np.any(held[:, 1] != chunk)
        ):
            raise CacheError(f"{path} is damaged: its index does not fit the file.", hint=verify_hint(self.root))
        return index

    def _pread(self, shard: int, file: _OpenFile, size: int, offset: int) -> bytes:
        try:
            return os.pread(file.fd, size, offset)
        except OSError as error:  # such as a failing disk, or a folder in the place of the file
            path = self.root / self.spec.file(shard)
            raise CacheError(f"{path} cannot be read: {error.strerror}.", hint=verify_hint(self.root)) from None

    def _remember(self, shard: int, index: npt.NDArray[np.uint64]) -> None:
        """Note where a shard's inner chunks start. Once known they stay: rows are looked up without a lock."""
        there = index[:, 0] != np.uint64(ABSENT)
        starts = np.where(there, index[:, 0].astype(np.int64), _NOWHERE)
        first = shard * len(index)
        with self._lock:
            known = self._offsets[first : first + len(index)]
            if known[0] != _UNKNOWN and not np.array_equal(known, starts):
                raise CacheError(
                    f"{self.root / self.spec.file(shard)} was replaced by another file while the store was open.",
                    hint="open the store again",
                )
            known[:] = starts

    def _truncated(self, shard: int) -> CacheError:
        return CacheError(f"{self.root / self.spec.file(shard)} is truncated.", hint=verify_hint(self.root))

    def _mapped(self, shards: set[int]) -> dict[int, MappedFile]:
        """Return the maps of shards, made where there are none yet, and know their indices."""
        found = {shard: there for shard in shards if (there := self._maps.get(shard)) is not None}
        missing = shards - found.keys()
        self._bring(missing)
        order = sorted(missing)
        for first in range(0, len(order), MAX_OPEN_FILES):
            files = {shard: self._open_shard(shard) for shard in order[first : first + MAX_OPEN_FILES]}
            for file in files.values():
                file.announce_end(index_size(self.spec))
            for shard, file in reversed(files.items()):  # once the last is there, the others mostly are: one wait
                found[shard] = self._map(shard, file)
        return found

    def _map(self, shard: int, file: _OpenFile) -> MappedFile:
        self._remember(shard, self._read_index(shard, file))
        try:
            mapped = MappedFile(file.fd)
        except OSError as error:
            path = self.root / self.spec.file(shard)
            raise CacheError(f"{path} cannot be mapped: {error.strerror}.", hint="see: ulimit -v") from None
        with self._lock:
            self._maps[shard] = mapped
            while len(self._maps) > MAX_MAPS:
                del self._maps[next(iter(self._maps))]
        return mapped

    def _file(self, shard: int) -> _OpenFile:
        with self._lock:
            file = self._files.get(shard)
            if file is not None:
                self._files.move_to_end(shard)
                return file
        file = self._open_shard(shard)
        with self._lock:
            self._files[shard] = file
            while len(self._files) > MAX_OPEN_FILES:
                self._files.popitem(last=False)
        return file

    def _let_go_of_removed(self) -> None:
        """Close files that were removed to make room for others: until then they take up their space."""
        with self._lock:
            for held in (self._maps, self._files):
                for shard in [shard for shard in held if not (self.root / self.spec.file(shard)).exists()]:
                    del held[shard]

    def _bring(self, shards: set[int]) -> None:
        """Fetch the shards of a batch together, which can be many times as fast as one after the other."""
        if shards and self._fetch is not None and self._fetch(*(self.spec.file(shard) for shard in sorted(shards))):
            self._let_go_of_removed()

    def _open_shard(self, shard: int) -> _OpenFile:
        name = self.spec.file(shard)
        for last in (False, False, True):
            if self._fetch is not None:
                self._fetch(name)
            try:
                return _OpenFile(f"{self.root}/{name}")
            except FileNotFoundError:
                if self._fetch is None or last:  # else another process has just removed it to make room
                    raise CacheError(f"{self.root / name} is missing.", hint=verify_hint(self.root)) from None
            except OSError as error:
                raise CacheError(f"{self.root / name} cannot be read: {error.strerror}.") from None
        raise AssertionError


def read_spec(root: Path, name: str) -> ArraySpec:
    """Read the metadata of the array ``name`` (CacheError or DataError when it cannot be)."""
    path = root / name / "zarr.json"
    metadata = read_json(path)
    if not isinstance(metadata, dict):
        raise CacheError(f"{path} is not the metadata of an array.", hint=verify_hint(root))
    return ArraySpec.from_metadata(name, metadata, path)
