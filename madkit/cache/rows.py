"""Reading rows of a store's arrays: shard indices parsed once, byte ranges read in threads.

Nothing here is decoded but checksums on request: a row lies in its file as it lies in memory. ``preadv`` reads many
ranges of a file in one call, releases the interpreter, and, unlike a plain memory map, does not fault page by page when
the file is cold. A row that the index does not hold is an error, never zeros.
"""

from __future__ import annotations

import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from madkit.cache.layout import ArraySpec
from madkit.cache.shards import ABSENT, CRC_BYTES, crc32c, index_size, parse_index
from madkit.core.errors import CacheError
from madkit.core.files import read_json

Int64 = npt.NDArray[np.int64]
Fetch = Callable[[str], None]
"""Brings a file of a store, named relative to the store's root, to where it is read; called before it is opened."""
MAX_OPEN_FILES = 256
THREADS = 4
THREAD_BYTES = 1 << 20
"""Batches below this size are read by the caller's own thread: handing over costs more than reading."""
_IOV_MAX = 1024
_SCRAP = CRC_BYTES  # what lies between neighbouring inner chunks

_pool: ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()


def _threads() -> ThreadPoolExecutor:
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(THREADS, thread_name_prefix="madkit-read")
        return _pool


def _forget_pool() -> None:
    global _pool
    _pool = None  # threads do not survive a fork; the child makes its own


os.register_at_fork(after_in_child=_forget_pool)


class _OpenFile:
    """A file descriptor that closes when the last reader has let go of it."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        fd = getattr(self, "fd", -1)
        if fd >= 0:
            os.close(fd)


@dataclass(frozen=True, slots=True)
class _Run:
    """Byte ranges of one file that follow each other, at most a checksum apart, and where they go."""

    shard: int
    offset: int
    targets: list[tuple[int, int]]  # (byte position in the output, bytes); a position of -1 is scrap


class ShardedRows:
    """Rows of one sharded array. Safe to use from several threads.

    Args:
        root: the store's folder.
        spec: the array.
        check: whether every read verifies the CRC-32C of the inner chunks that it touches.
        fetch: called with a shard's name before the file is opened, such as to bring it from a remote store; it may
            be called again for the same file, and from several threads.
    """

    def __init__(self, root: Path, spec: ArraySpec, *, check: bool = False, fetch: Fetch | None = None) -> None:
        self.root = root
        self.spec = spec
        self.check = check
        self._fetch = fetch
        self._indices: dict[int, npt.NDArray[np.uint64]] = {}
        self._files: OrderedDict[int, _OpenFile] = OrderedDict()
        self._lock = threading.Lock()

    def close(self) -> None:
        """Let go of open files. Reads in progress end normally."""
        with self._lock:
            self._files.clear()

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
        buffer = out.reshape(-1).view(np.uint8).data
        if self.check:
            self._read_checked(starts, lengths, buffer)
        else:
            self._read_runs(self._runs(starts, lengths), buffer)
        return out

    def _pieces(self, starts: Int64, lengths: Int64) -> tuple[Int64, Int64, Int64, Int64]:
        """Cut ranges at inner chunks.

        Returns:
            Of each piece: chunk number, first row within the chunk, number of rows, first row in the output.
        """
        inner = self.spec.inner_rows
        filled = lengths > 0
        starts, lengths, targets = starts[filled], lengths[filled], (np.cumsum(lengths) - lengths)[filled]
        if inner == 1 and int(lengths.max()) == 1:
            return starts, np.zeros_like(starts), lengths, targets
        first, last = starts // inner, (starts + lengths - 1) // inner
        counts = last - first + 1
        owner = np.repeat(np.arange(len(starts)), counts)
        chunk = first[owner] + np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        begin = np.maximum(starts[owner], chunk * inner)
        end = np.minimum((starts + lengths)[owner], (chunk + 1) * inner)
        return chunk, begin - chunk * inner, end - begin, targets[owner] + begin - starts[owner]

    def _runs(self, starts: Int64, lengths: Int64) -> list[_Run]:
        spec = self.spec
        chunk, skip, rows, target = self._pieces(starts, lengths)
        order = np.lexsort((skip, chunk))
        chunk, skip, rows, target = chunk[order], skip[order], rows[order], target[order]
        shard, local = np.divmod(chunk, spec.inner_per_shard)
        offsets = self._offsets(shard, local) + skip * spec.row_bytes
        runs: list[_Run] = []
        previous_shard, previous_end = -1, 0
        for number, offset, position, size in zip(
            shard.tolist(),
            offsets.tolist(),
            (target * spec.row_bytes).tolist(),
            (rows * spec.row_bytes).tolist(),
            strict=True,
        ):
            gap = offset - previous_end
            if number == previous_shard and gap in (0, _SCRAP) and len(runs[-1].targets) < _IOV_MAX - 1:
                if gap:
                    runs[-1].targets.append((-1, gap))
                runs[-1].targets.append((position, size))
            else:
                runs.append(_Run(number, offset, [(position, size)]))
            previous_shard, previous_end = number, offset + size
        return runs

    def _offsets(self, shard: Int64, local: Int64) -> Int64:
        """Look up where inner chunks start; an absent one is an error."""
        offsets = np.empty(len(shard), dtype=np.int64)
        edges = np.flatnonzero(np.diff(shard, prepend=-1, append=-1))
        for first, last in pairwise(edges.tolist()):
            number = int(shard[first])
            found = self._index(number)[local[first:last], 0]
            if np.any(found == np.uint64(ABSENT)):
                raise CacheError(
                    f"{self.root / self.spec.file(number)} does not hold rows that the store should have.",
                    hint="see: madkit cache verify",
                )
            offsets[first:last] = found.astype(np.int64)
        return offsets

    def _read_runs(self, runs: Sequence[_Run], buffer: memoryview) -> None:
        if len(runs) < 2 or len(buffer) < THREAD_BYTES:
            for run in runs:
                self._read(run, buffer)
            return
        step = -(-len(runs) // THREADS)
        parts = [runs[start : start + step] for start in range(0, len(runs), step)]
        futures = [_threads().submit(self._read_all, part, buffer) for part in parts[1:]]
        try:
            self._read_all(parts[0], buffer)
        finally:
            errors = [future.exception() for future in futures]
        for error in errors:
            if error is not None:
                raise error

    def _read_all(self, runs: Sequence[_Run], buffer: memoryview) -> None:
        for run in runs:
            self._read(run, buffer)

    def _read(self, run: _Run, buffer: memoryview) -> None:
        file = self._file(run.shard)
        if len(run.targets) == 1:
            position, size = run.targets[0]
            targets, wanted = [buffer[position : position + size]], size
        else:
            scrap = memoryview(bytearray(_SCRAP))
            targets = [scrap[:n] if at < 0 else buffer[at : at + n] for at, n in run.targets]
            wanted = sum(n for _, n in run.targets)
        if os.preadv(file.fd, targets, run.offset) != wanted:
            raise self._truncated(run.shard)

    def _read_checked(self, starts: Int64, lengths: Int64, buffer: memoryview) -> None:
        spec = self.spec
        size = spec.inner_rows * spec.row_bytes
        pieces = self._pieces(starts, lengths)
        shard, local = np.divmod(pieces[0], spec.inner_per_shard)
        order = np.argsort(pieces[0], kind="stable")
        offsets = self._offsets(shard[order], local[order])
        data, loaded = b"", -1
        for chunk, number, offset, skip, rows, target in zip(
            pieces[0][order].tolist(),
            shard[order].tolist(),
            offsets.tolist(),
            *(column[order].tolist() for column in pieces[1:]),
            strict=True,
        ):
            if chunk != loaded:
                data = self.read_chunk(number, offset, size)
                loaded = chunk
            begin, bytes_ = skip * spec.row_bytes, rows * spec.row_bytes
            at = target * spec.row_bytes
            buffer[at : at + bytes_] = data[begin : begin + bytes_]

    def read_chunk(self, shard: int, offset: int, size: int) -> bytes:
        """Read and verify one inner chunk of ``size`` bytes (CacheError when damaged)."""
        raw = os.pread(self._file(shard).fd, size + CRC_BYTES, offset)
        if len(raw) != size + CRC_BYTES:
            raise self._truncated(shard)
        if crc32c(raw[:size]) != struct.unpack("<I", raw[size:])[0]:
            raise CacheError(
                f"{self.root / self.spec.file(shard)} is damaged: a checksum at byte {offset} is wrong.",
                hint="see: madkit cache verify",
            )
        return raw[:size]

    def _truncated(self, shard: int) -> CacheError:
        return CacheError(f"{self.root / self.spec.file(shard)} is truncated.", hint="see: madkit cache verify")

    def _index(self, shard: int) -> npt.NDArray[np.uint64]:
        index = self._indices.get(shard)
        if index is None:
            file = self._file(shard)
            size = os.fstat(file.fd).st_size
            want = index_size(self.spec)
            if size < want:
                raise self._truncated(shard)
            path = self.root / self.spec.file(shard)
            index = parse_index(self.spec, os.pread(file.fd, want, size - want), str(path))
            self._indices[shard] = index
        return index

    def index(self, shard: int) -> npt.NDArray[np.uint64]:
        """Return a shard's index, [inner chunks, 2] offsets and lengths (CacheError when damaged)."""
        return self._index(shard)

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

    def _open_shard(self, shard: int) -> _OpenFile:
        name = self.spec.file(shard)
        if self._fetch is not None:
            self._fetch(name)
        try:
            return _OpenFile(self.root / name)
        except FileNotFoundError:
            raise CacheError(f"{self.root / name} is missing.", hint="see: madkit cache verify") from None


def read_spec(root: Path, name: str) -> ArraySpec:
    """Read the metadata of the array ``name`` (CacheError or DataError when it cannot be)."""
    path = root / name / "zarr.json"
    metadata = read_json(path)
    if not isinstance(metadata, dict):
        raise CacheError(f"{path} is not the metadata of an array.", hint="see: madkit cache verify")
    return ArraySpec.from_metadata(name, metadata, path)
