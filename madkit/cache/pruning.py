"""Removing stores: which ones nobody needs any more, and taking away what is madkit's and nothing beside it."""

from __future__ import annotations

import shutil
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from madkit.cache.layout import ABSENT_ITEMS, JOURNAL, LOCK, MANIFEST, PLAN
from madkit.cache.manage import StoreRow, describe, find_store, list_stores, marked
from madkit.cache.plan import PARTS
from madkit.cache.reader import Place
from madkit.cache.remote import JOURNAL_FOLDER, RemoteStore
from madkit.cache.remote_lock import RemoteLock
from madkit.core.console import warn
from madkit.core.errors import CacheError, CacheInUse
from madkit.core.files import FileLock, canonical_json
from madkit.core.workspace import Workspace

_USELESS = ("unfinished", "unreadable")
_OF_REVISION = ("revision", "long_texts")
_OWN_FILES = (MANIFEST, PLAN, JOURNAL, LOCK, ABSENT_ITEMS, "zarr.json")
_OWN_FOLDERS = (*PARTS, JOURNAL_FOLDER, ".fetch")
_OWN_BEGINNINGS = (".kept-", f"{LOCK}-", "journal-")


@dataclass(frozen=True, slots=True)
class Removal:
    """A store that ``prune`` would remove, and why."""

    row: StoreRow
    reason: str


def plan_prune(workspace: Workspace, store: str | None = None) -> list[Removal]:
    """Say what to remove: one store by name, else unfinished, unreadable and superseded stores.

    A store is superseded where there is a complete one that was made later of another revision of the same data, and
    of nothing else: weights, pixels, tokens, dtypes and splits are somebody's choice.

    Raises:
        NotFoundError: nothing has that name.
        CacheError: what has that name is no store of madkit.
    """
    if store is not None:
        rows = [describe(path) for path in find_store(workspace, store)]
        for row in rows:
            if row.state == "foreign":
                raise _not_ours(row.path)
        return [Removal(row, "asked for") for row in rows]
    rows = list_stores(workspace)
    newest: dict[str, StoreRow] = {}
    for row in rows:
        if row.state == "complete":
            group = _kind(row)
            if group not in newest or row.created > newest[group].created:
                newest[group] = row
    removals = []
    for row in rows:
        if row.state in _USELESS:
            removals.append(Removal(row, row.state))
        elif row.state == "complete" and _revision(newest[_kind(row)]) != _revision(row):
            removals.append(Removal(row, "superseded by a later one"))
    return removals


def _kind(row: StoreRow) -> str:
    """All that a store is of but the revision of its data, and that this had texts too long for the teacher."""
    return canonical_json({name: fact for name, fact in row.identity.items() if name not in _OF_REVISION})


def _revision(row: StoreRow) -> object:
    return row.identity.get("revision")


def prune(removals: list[Removal]) -> list[Removal]:
    """Remove stores, and return those that are removed: what a process is writing just now stays, with a warning."""
    removed = []
    for removal in removals:
        try:
            remove_store(removal.row.path)
        except CacheInUse as error:
            warn(f"{error.message} It stays.")
            continue
        removed.append(removal)
    return removed


def remove_store(path: Place) -> None:
    """Remove a store, of a remote one also the local mirror. What lies in its folder and is not madkit's stays.

    Killed on the way, it leaves an unfinished store, which can be removed again.

    Raises:
        CacheInUse: another process writes it.
        CacheError: it is no store of madkit.
    """
    if marked(path) == "none":
        raise _not_ours(path)
    if isinstance(path, RemoteStore):
        _remove_remote(path)
        path = path.mirror
        if not path.is_dir():
            return
    if path.is_symlink():  # the store lies elsewhere, and may be somebody else's
        path.unlink()
        return
    _remove_folder(path)


def _not_ours(path: Place) -> CacheError:
    return CacheError(
        f"{path} is no token cache of madkit: neither {MANIFEST} nor {PLAN} there says so. Nothing is removed.",
        hint="see what there is: madkit cache list",
    )


def _remove_folder(path: Path) -> None:
    with ExitStack() as held:
        for lock in (path / LOCK, *path.glob(f"{LOCK}-*")):  # of a job whose first process is gone others may live
            held.enter_context(FileLock(lock, error=CacheError, busy=CacheInUse, what=f"The cache {path.name}"))
        manifest, plan = path / MANIFEST, path / PLAN
        if manifest.is_file() and not plan.is_file():
            manifest.replace(plan)  # it says what a plan says: what is left is ours until the end
        manifest.unlink(missing_ok=True)  # first, so that a half-removed store cannot be opened
        for entry in path.iterdir():
            if entry.name in _OWN_FOLDERS and entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif _is_own(entry.name) and not entry.name.startswith(LOCK) and entry != plan:
                entry.unlink()
        plan.unlink(missing_ok=True)
    with suppress(OSError):  # a process that has come since keeps it, and so does what is not ours
        path.rmdir()
    if path.is_dir():
        _say_left(str(path))


def _remove_remote(store: RemoteStore) -> None:
    lock = RemoteLock(store.files)
    lock.acquire()
    try:
        sizes = store.files.sizes()
        if PLAN not in sizes and MANIFEST in sizes:
            store.files.write(PLAN, store.files.read(MANIFEST))
        store.files.remove([MANIFEST])
        store.files.remove([name for name in sizes if _is_own(name) and name not in (MANIFEST, PLAN, LOCK)])
        store.files.remove([PLAN])
    finally:
        lock.release()
    store.files.remove_folders()
    if store.files.sizes():
        _say_left(store.url)


def _is_own(name: str) -> bool:
    first, below, _ = name.partition("/")
    if below:
        return first in _OWN_FOLDERS
    return (
        first in (*_OWN_FILES, *_OWN_FOLDERS)
        or first.startswith(_OWN_BEGINNINGS)
        or (first[0] == "." and first.endswith(".tmp"))
    )


def _say_left(place: str) -> None:
    warn(f"{place} holds files that are no cache's; they are left there.")
