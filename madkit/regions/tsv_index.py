"""Random access to the rows of region TSVs of tens of GB, through an index of byte offsets that is built once.

The index lies beside the TSV as `<name>.madkit-index.npz`, or in a folder of the caller's where that place cannot be
written to. It belongs to one state of the file: size, time of the last change, and SHA-256 of the first MB. Arrays
(no pickles): `facts` (format version, columns, size, time in ns), `head` (the digest), `starts`, `lengths` (bytes, with
the line end left out) and `lines` (from 1) of every row, `ids` (UTF-8, a line feed after each).
"""

from __future__ import annotations

import codecs
import hashlib
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from madkit.core.archives import split
from madkit.core.console import progress, warn
from madkit.core.errors import DataError, NotFoundError
from madkit.core.files import write_bytes_atomic

Advance = Callable[[int], None]

_VERSION = 1
_HEAD_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 22
_LONGEST_ID = 1 << 14
_SHOWN_FROM_BYTES = 1 << 28  # smaller files are scanned before anyone wonders


@dataclass(frozen=True, slots=True)
class TsvIndex:
    """Where the rows of a TSV lie.

    ids: first column of every row.
    starts, lengths: int64 [rows], bytes of a row without its line end.
    lines: int64 [rows], line numbers from 1 (blank lines carry no row).
    columns: of every row.
    built: whether this call scanned the file; False when the index lay ready.
    path: the file of the index, None when it could be kept nowhere.
    """

    ids: tuple[str, ...]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    lines: NDArray[np.int64]
    columns: int
    built: bool
    path: Path | None


def index_path(path: Path, folder: Path | None = None) -> Path:
    """Where the index of a TSV is kept: beside it, or in a folder for indexes of TSVs from anywhere."""
    if folder is None:
        return path.with_name(f"{path.name}.madkit-index.npz")
    place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]  # two folders may hold files of one name
    return folder / f"{path.name}.{place}.madkit-index.npz"


def open_index(path: Path, *, folder: Path | None = None, advance: Advance | None = None) -> TsvIndex:
    """The index of a TSV: the one that lies ready, else a new one from a single pass in a few MB of memory.

    Args:
        path: the TSV.
        folder: where the index goes when it cannot lie beside the TSV.
        advance: called with the bytes of every piece scanned; without it, large files show a progress of their own.

    Raises:
        NotFoundError: no such file.
        DataError: naming the line: another number of columns than the first row has, an id twice, empty, or no text; no
            rows; a TSV inside a zip or compressed.
    """
    _check_plain_file(path)
    places = [index_path(path)] + ([] if folder is None else [index_path(path, folder)])
    stamp = _stamp(path)
    for place in places:
        found = _load(place, stamp)
        if found is not None:
            return found
    if advance is not None or stamp[0][0] < _SHOWN_FROM_BYTES:
        ids, rows, columns = _scan(path, stamp[0][0], advance or _nothing)
    else:
        with progress(f"Indexing {path.name}", -(-stamp[0][0] // 10**6), "MB") as bar:
            ids, rows, columns = _scan(path, stamp[0][0], _Megabytes(bar.advance))
    built = TsvIndex(ids, rows[0], rows[1], rows[2], columns, True, None)
    if _stamp(path)[0] != stamp[0]:
        raise DataError(f"{path} changed while it was read.", hint="run the command again when it is complete")
    return _save(built, places, stamp, path)


def _check_plain_file(path: Path) -> None:
    if not path.is_file():
        archive = split(path)
        if archive is not None:
            raise DataError(
                f"{path.name} lies inside the zip {archive[0]}, where rows cannot be reached one by one.",
                hint=f"unzip {archive[0]}",
            )
        if path.is_dir():
            raise DataError(f"{path} is a folder where a TSV is expected.", hint="name a file in it")
        raise NotFoundError(f"The region file {path} does not exist.", hint=f"look for it in {path.parent}")
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).", hint="check its permissions") from None
    if head.startswith((b"PK\x03\x04", b"\x1f\x8b", b"BZh", b"\xfd7zX")):
        tool = "unzip" if head.startswith(b"PK") else "gunzip" if head.startswith(b"\x1f") else "unpack"
        raise DataError(f"{path} is compressed, so its rows cannot be reached one by one.", hint=f"{tool} {path}")


Stamp = tuple[tuple[int, int], bytes]


def _stamp(path: Path) -> Stamp:
    """What tells one state of a file from another: ((size, change time in ns), digest of the first MB)."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        return (status.st_size, status.st_mtime_ns), hashlib.sha256(file.read(_HEAD_BYTES)).digest()


class _Megabytes:
    """Passes bytes on as whole megabytes, which people can read."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._rest = 0

    def __call__(self, count: int) -> None:
        whole, self._rest = divmod(self._rest + count, 10**6)
        self._advance(whole)


def _nothing(_: int) -> None:
    pass


def _scan(path: Path, size: int, advance: Advance) -> tuple[tuple[str, ...], NDArray[np.int64], int]:
    """(ids, [3, rows] starts, lengths and lines, number of columns) of the first `size` bytes of a file."""
    rows = _Rows(path)
    position = 0
    with path.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):  # not on macOS
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while chunk := file.read(min(_CHUNK_BYTES, size - position)):
            rows.feed(chunk, position)
            position += len(chunk)
            advance(len(chunk))
    rows.finish(position)
    return tuple(rows.first), np.array(rows.spans, dtype=np.int64).reshape(-1, 3).T, rows.columns


class _Rows:
    """Collects the rows of a file that comes in pieces, keeping of a row no more than its beginning."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.first: dict[str, int] = {}  # id -> its line
        self.spans: list[tuple[int, int, int]] = []
        self.columns = 0
        self._line = 1
        self._start = 0
        self._head = b""
        self._tabs = 0
        self._last = b""  # the last byte before the piece at hand: the \r of a \r\n may lie there

    def feed(self, chunk: bytes, position: int) -> None:
        """Take the bytes of the file from `position` on."""
        begin = 0
        if position == 0 and chunk.startswith(codecs.BOM_UTF8):
            begin = self._start = len(codecs.BOM_UTF8)
        while (end := chunk.find(b"\n", begin)) >= 0:
            self._extend(chunk, begin, end)
            self._end_row(position + end)
            begin = end + 1
            self._start = position + begin
            self._line += 1
        self._extend(chunk, begin, len(chunk))

    def finish(self, size: int) -> None:
        """Take what stands behind the last line feed as a row, and refuse a file without rows."""
        self._end_row(size)
        if not self.spans:
            raise DataError(f"{self._path} is empty.")

    def _extend(self, chunk: bytes, begin: int, end: int) -> None:
        if end > begin:
            self._head += chunk[begin : min(end, begin + _LONGEST_ID - len(self._head))]
            self._tabs += chunk.count(b"\t", begin, end)
            self._last = chunk[end - 1 : end]

    def _end_row(self, end: int) -> None:
        length = end - self._start - (self._last == b"\r")
        head, tabs = self._head, self._tabs
        self._head, self._tabs, self._last = b"", 0, b""
        if length <= 0 or not (tabs or head.strip() or length > len(head)):
            return
        image_id = self._id_of(head)
        if not self.spans:
            self.columns = tabs + 1
        elif tabs + 1 != self.columns:
            raise DataError(
                f"{self._path}, line {self._line}: {tabs + 1} columns where the rows before have {self.columns}.",
                hint="the file is damaged or was cut off; get it again",
            )
        if image_id in self.first:
            raise DataError(
                f"{self._path}, line {self._line}: the image {image_id!r} stood on line {self.first[image_id]} before.",
                hint="remove one of the two rows",
            )
        self.first[image_id] = self._line
        self.spans.append((self._start, length, self._line))

    def _id_of(self, head: bytes) -> str:
        name = head.partition(b"\t")[0]
        try:
            if 0 < len(name) < _LONGEST_ID:
                return name.decode()
        except UnicodeDecodeError:
            pass
        raise DataError(
            f"{self._path}, line {self._line}: the first column is no image id.",
            hint="region TSVs are text with tab-separated columns and no header",
        )


def _save(index: TsvIndex, places: list[Path], stamp: Stamp, path: Path) -> TsvIndex:
    """Keep the index at the first place that takes it."""
    buffer = io.BytesIO()
    np.savez(
        buffer,
        facts=np.array([_VERSION, index.columns, *stamp[0]], dtype=np.int64),
        head=np.frombuffer(stamp[1], dtype=np.uint8),
        starts=index.starts,
        lengths=index.lengths,
        lines=index.lines,
        ids=np.frombuffer("".join(f"{name}\n" for name in index.ids).encode(), dtype=np.uint8),
    )
    for place in places:
        try:
            write_bytes_atomic(place, buffer.getbuffer())
        except OSError:
            continue
        return TsvIndex(index.ids, index.starts, index.lengths, index.lines, index.columns, True, place)
    warn(f"The index of {path} could not be kept ({places[-1].parent} cannot be written to): it is built every time.")
    return index


def _load(place: Path, stamp: Stamp) -> TsvIndex | None:
    """The index at a place, None where there is none, it is damaged, or belongs to another state of the file."""
    try:
        with place.open("rb") as file, np.load(file, allow_pickle=False) as content:
            facts, head = content["facts"].tolist(), content["head"].tobytes()
            if [facts[0], *facts[2:]] != [_VERSION, *stamp[0]] or head != stamp[1]:
                return None
            arrays: list[NDArray[Any]] = [content[name] for name in ("starts", "lengths", "lines")]
            ids = tuple(content["ids"].tobytes().decode().split("\n")[:-1])
    except Exception:  # whatever a damaged zip makes of itself: the TSV is there, and the index can be built again
        return None
    if len({len(ids), *(array.size for array in arrays)}) != 1 or len(set(ids)) != len(ids):
        return None
    starts, lengths, lines = (array.astype(np.int64) for array in arrays)
    return TsvIndex(ids, starts, lengths, lines, int(facts[1]), False, place)


class RowFile:
    """Reads pieces of a file by their position, from any number of threads and forked processes at once."""

    def __init__(self, path: Path) -> None:
        """Open the file (OSError where that fails)."""
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, start: int, length: int) -> bytes:
        """So many bytes from `start` on; fewer where the file ends before (`pread`: no position is shared)."""
        pieces: list[bytes] = []
        while length > 0 and (piece := os.pread(self._descriptor, length, start)):
            pieces.append(piece)
            start, length = start + len(piece), length - len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def __del__(self) -> None:
        # Closed with the last reference: a thread in the middle of `read` keeps the file open, whoever else lets go.
        descriptor, self._descriptor = getattr(self, "_descriptor", -1), -1
        if descriptor >= 0:
            os.close(descriptor)
