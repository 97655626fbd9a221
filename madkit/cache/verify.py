"""Checking a store byte by byte: missing, truncated, damaged and foreign files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from madkit.cache.agreement import disagreements
from madkit.cache.layout import ABSENT_ITEMS, JOURNAL, LOCK, MANIFEST, PLAN, TEXT_EXTENTS, ArraySpec, store_key
from madkit.cache.reader import Place, read_manifest
from madkit.cache.remote import JOURNAL_FOLDER, RemoteStore
from madkit.cache.remote_files import CONCURRENT, RemoteError
from madkit.cache.rows import ShardedRows, read_spec
from madkit.cache.shards import ABSENT, file_crc32
from madkit.core.errors import MadkitError

ARRAYS = (
    "images/tokens",
    "images/globals",
    "texts/tokens",
    "texts/spans",
    "texts/globals",
    "images/positions",
    "images/scales",
    "texts/scales",
)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with one file.

    Attributes:
        file: its path in the store.
        kind: ``missing``, ``truncated``, ``damaged``, ``unreadable``, ``foreign``, ``manifest``, or ``layout`` where
            shards, metadata and manifest are not of one store.
        detail: a clause for people.
        rows: rows of the array that cannot be trusted, as [first, end), where they are known.
    """

    file: str
    kind: str
    detail: str
    rows: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What a verification found.

    Attributes:
        path: the store's folder or URL.
        files: how many files were read.
        bytes: how many bytes were read.
        problems: what is wrong; empty for a sound store.
    """

    path: Place
    files: int
    bytes: int
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def as_row(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "path": str(self.path),
            "ok": self.ok,
            "files": self.files,
            "bytes": self.bytes,
            "problems": [asdict(problem) for problem in self.problems],
        }


def verify_cache(place: Place, *, on_file: Callable[[int], None] | None = None) -> VerifyReport:
    """Read every byte of a store and compare it with its checksums. Of a remote store no mirror is read or filled.

    Args:
        place: the store's folder or URL.
        on_file: called with the bytes of each file once it has been read, for progress.

    Returns:
        The report. A store without a usable manifest gives one problem of kind ``manifest``.

    Raises:
        RemoteError: the URL cannot be read.
    """
    try:
        manifest = read_manifest(place)
        key_fits = store_key(manifest["identity"]) == manifest["key"]
    except RemoteError:
        raise
    except MadkitError as error:
        return VerifyReport(place, 0, 0, (Problem(MANIFEST, "manifest", error.message),))
    problems = [] if key_fits else [Problem(MANIFEST, "manifest", "the key is not the digest of the identity")]
    files = bytes_ = 0
    with TemporaryDirectory(prefix="madkit-verify-") as scratch:
        source = _Remote(place, Path(scratch)) if isinstance(place, RemoteStore) else _Local(place)
        specs = _specs(source.folder_of(tuple(f"{name}/zarr.json" for name in ARRAYS)), manifest["files"], problems)
        for name, found in _looks(source, tuple(manifest["files"])):
            entry = manifest["files"][name]
            if found is None:
                problems.append(Problem(name, "missing", "the file is missing", _rows_of(specs, name)))
                continue
            if isinstance(found, OSError):
                detail = f"the system cannot read it: {found.strerror}"
                problems.append(Problem(name, "unreadable", detail, _rows_of(specs, name)))
                continue
            size, crc32 = found
            files, bytes_ = files + 1, bytes_ + size
            if on_file is not None:
                on_file(size)
            if size != int(entry["bytes"]):
                detail = f"{size:,} bytes instead of {int(entry['bytes']):,}"
                problems.append(Problem(name, "truncated", detail, _rows_of(specs, name)))
            elif crc32 != entry["crc32"]:
                problems.extend(_locate(source.folder_of((name,)), specs, name))
        bad = {problem.file for problem in problems}
        told = source.folder_of((f"{TEXT_EXTENTS}/zarr.json", f"{TEXT_EXTENTS}/c/0/0"))
        problems.extend(Problem(name, "layout", detail) for name, detail in disagreements(manifest, specs, bad, told))
        problems.extend(_foreign(source.names(), set(manifest["files"])))
    return VerifyReport(place, files, bytes_, tuple(problems))


_Look = tuple[int, str] | OSError | None
"""Size and CRC-32 of a file; None where it is missing, and what a failing disk says of it."""


def _looks(source: _Local, names: Sequence[str]) -> Iterator[tuple[str, _Look]]:
    """Read files in threads, one at a time in each: the checksums of one thread are slower than a fast disk."""
    pool = ThreadPoolExecutor(source.threads, thread_name_prefix="madkit-verify")
    try:
        yield from zip(names, pool.map(source.look, names), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)


class _Local:
    """The files of a store in a folder."""

    threads = min(8, os.cpu_count() or 1)

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, name: str) -> bytes | None:
        """Return what a file holds; None for one that is missing."""
        try:
            return (self._path / name).read_bytes()
        except FileNotFoundError:
            return None

    def look(self, name: str) -> _Look:
        """Read a file."""
        try:
            data = self.read(name)
        except OSError as error:
            return error
        return None if data is None else (len(data), f"{file_crc32(data):08x}")

    def folder_of(self, names: Sequence[str]) -> Path:
        """Return a folder where these files are, as far as they exist."""
        return self._path

    def names(self) -> list[str]:
        """Return the names of all files."""
        return [file.relative_to(self._path).as_posix() for file in self._path.rglob("*") if file.is_file()]


class _Remote(_Local):
    """The objects of a store at a URL; few at a time are in memory."""

    threads = CONCURRENT

    def __init__(self, store: RemoteStore, scratch: Path) -> None:
        super().__init__(scratch)
        self._remote = store.files

    def read(self, name: str) -> bytes | None:
        return self._remote.read_or_none(name)

    def folder_of(self, names: Sequence[str]) -> Path:
        for name, data in zip(names, self._remote.each(self.read, names), strict=True):
            if data is not None:
                (self._path / name).parent.mkdir(parents=True, exist_ok=True)
                (self._path / name).write_bytes(data)
        return self._path

    def names(self) -> list[str]:
        return [name for name in self._remote.sizes() if not name.startswith(f"{JOURNAL_FOLDER}/")]


def _specs(path: Path, files: Mapping[str, Any], problems: list[Problem]) -> dict[str, ArraySpec]:
    specs = {}
    for name in ARRAYS:
        if f"{name}/zarr.json" not in files:
            continue
        try:
            specs[name] = read_spec(path, name)
        except MadkitError as error:
            problems.append(Problem(f"{name}/zarr.json", "damaged", error.message))
    return specs


def _array_and_shard(specs: dict[str, ArraySpec], file: str) -> tuple[ArraySpec, int] | None:
    name, found, rest = file.partition("/c/")
    if not found or name not in specs:
        return None
    return specs[name], int(rest.partition("/")[0])


def _rows_of(specs: dict[str, ArraySpec], file: str) -> tuple[int, int] | None:
    place = _array_and_shard(specs, file)
    if place is None:
        return None
    spec, shard = place
    return shard * spec.shard_rows, min(spec.rows, (shard + 1) * spec.shard_rows)


def _locate(path: Path, specs: dict[str, ArraySpec], file: str) -> list[Problem]:
    """Name the inner chunks of a damaged shard whose checksum is wrong."""
    place = _array_and_shard(specs, file)
    if place is None:
        return [Problem(file, "damaged", "its checksum is wrong")]
    spec, shard = place
    reader = ShardedRows(path, spec)
    found: list[Problem] = []
    try:
        index = reader.index(shard)
    except MadkitError:
        return [Problem(file, "damaged", "the checksum of its index is wrong", _rows_of(specs, file))]
    first = shard * spec.shard_rows
    for number in np.flatnonzero(index[:, 0] != np.uint64(ABSENT)).tolist():
        try:
            reader.read_chunk(shard, int(index[number, 0]), spec.inner_rows * spec.row_bytes)
        except MadkitError:
            start = first + number * spec.inner_rows
            rows = (start, min(spec.rows, start + spec.inner_rows))
            found.append(Problem(file, "damaged", f"wrong checksum in {_said(*rows)}", rows))
    reader.close()
    return found or [Problem(file, "damaged", "it is not the file that was written", _rows_of(specs, file))]


def _said(start: int, end: int) -> str:
    return f"row {start}" if end == start + 1 else f"rows {start} to {end - 1}"


def _foreign(names: Iterable[str], known: set[str]) -> list[Problem]:
    """Files that nobody of us wrote: Zarr readers would take a stray shard for data."""
    own = {MANIFEST, PLAN, JOURNAL, LOCK, ABSENT_ITEMS}
    return [
        Problem(name, "foreign", "the manifest does not know this file")
        for name in sorted(names)
        if name not in known and name not in own
    ]
