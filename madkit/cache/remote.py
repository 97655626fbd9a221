"""A token store at a URL: what it is, and its local mirror, brought up to date when the store is opened.

The remote store is the truth. The mirror is below ``MADKIT_CACHE_DIR``: manifest, plan, ids, texts, extents and
statistics are fetched when a store is opened, payload files when they are first read. What the mirror holds of another
manifest is removed.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from madkit.cache.journal import journal_rows
from madkit.cache.layout import MANIFEST
from madkit.cache.mark import Mark, mark_of
from madkit.cache.plan import unit_of_file
from madkit.cache.remote_files import RemoteError, RemoteFolder
from madkit.cache.remote_mirror import LIMIT_VARIABLE, Fetcher, make_room, share, size_limit
from madkit.core.console import warn
from madkit.core.errors import DataError
from madkit.core.files import write_bytes_atomic
from madkit.core.workspace import Workspace, mirror_folder

JOURNAL_FOLDER = "journal"
"""Below it lies one small object per finished unit: object storage cannot append a line to a file."""


@dataclass(frozen=True)
class RemoteStore:
    """A store at a URL. It prints as its URL.

    Attributes:
        url: its URL, without a slash at the end.
    """

    url: str

    @classmethod
    def at(cls, url: str) -> RemoteStore:
        """Return the store at ``url``."""
        return cls(url.rstrip("/"))

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """Last part of the URL, as the folder's name of a local store."""
        return self.url.rpartition("/")[2]

    @property
    def files(self) -> RemoteFolder:
        """Its objects."""
        return RemoteFolder(self.url)

    @property
    def mirror(self) -> Path:
        """Its folder on this machine."""
        return mirror_folder(self.url.rpartition("/")[0]) / self.name

    def document(self, name: str) -> Any:
        """Return a JSON object of the store; None where there is none (DataError for one that is not JSON)."""
        data = self.files.read_or_none(name)
        return None if data is None else parse_json(data, f"{self.url}/{name}")

    def mark(self) -> Mark:
        """Say whether there is a store of madkit at the URL (see :mod:`madkit.cache.mark`)."""
        return mark_of(self.name, self.files.read_or_none)

    def open_mirror(self, manifest: Mapping[str, Any]) -> Fetcher:
        """Bring the mirror in line with the manifest, fetch everything but the payload, and return what fetches that.

        Raises:
            CacheError: a file is not what the manifest says, or cannot be had.
        """
        files: Mapping[str, Any] = manifest["files"]
        limit = size_limit()
        if limit is not None and int(manifest["bytes"]) > limit:
            warn(
                f"{self.url} has {int(manifest['bytes']) / 1e9:,.1f} GB, more than {LIMIT_VARIABLE} lets it keep here: "
                "shards may be fetched again and again."
            )
        fetch = Fetcher(self.files, self.mirror, files)
        with hold(self.mirror / ".fetch" / "open"):
            data = to_json(manifest)
            path = self.mirror / MANIFEST
            if not path.is_file() or path.read_bytes() != data:
                forget_other(self.mirror, files)
                write_bytes_atomic(path, data)
            fixed = [name for name in files if unit_of_file(name) is None]
            make_room(sum(int(files[name]["bytes"]) for name in fixed))
            fetch(*fixed)
        return fetch


def remote_store(workspace: Workspace, name: str) -> RemoteStore | None:
    """Return the store of this name where the caches of a workspace lie at a URL, else None."""
    return None if workspace.cache_url is None else RemoteStore.at(f"{workspace.cache_url}/{name}")


def stores_below(url: str) -> list[RemoteStore]:
    """Return where stores may lie directly below a URL; the URL itself where that is a store.

    Raises:
        NotFoundError: the URL cannot be listed and is no store (web servers often list nothing).
    """
    here = RemoteStore.at(url)
    try:
        names = here.files.folders()
    except RemoteError as unlisted:
        try:
            there = here.mark() != "none"
        except RemoteError:
            there = False
        if not there:
            raise unlisted from None
        return [here]
    if here.mark() != "none":
        return [here]
    return [RemoteStore.at(f"{here.url}/{name}") for name in names]


def to_json(document: object) -> bytes:
    """Return the bytes of a JSON document, as it is written to disk."""
    return (json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def parse_json(data: bytes, place: str) -> Any:
    """Parse JSON (DataError, naming its place)."""
    try:
        return json.loads(data)
    except ValueError as error:
        raise DataError(f"{place} is not valid JSON ({error}).", hint="see: madkit cache verify --cache URL") from None


def known_files(mirror: Path) -> dict[str, Any]:
    """Return size and CRC-32 of the files that a mirror may hold, by its own manifest, else by its journal."""
    known: dict[str, Any] = {}
    try:
        for row in journal_rows(mirror):
            known.update(row["files"] or {})
        path = mirror / MANIFEST
        if path.is_file():
            known.update(json.loads(path.read_bytes())["files"])
    except (DataError, ValueError, KeyError, TypeError):  # a mirror can be fetched again
        return {}
    return known


def forget_other(mirror: Path, files: Mapping[str, Any]) -> None:
    """Remove files of a mirror that another manifest described; what is left is as ``files`` say."""
    known = known_files(mirror)
    for name in {*known, *files}:
        if known.get(name) != files.get(name):
            (mirror / name).unlink(missing_ok=True)
        else:
            share(mirror, name)


@contextmanager
def hold(path: Path) -> Iterator[None]:
    """Wait for a lock between the processes of this machine, and hold it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
