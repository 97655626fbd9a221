"""Which stores a workspace has: finding, choosing and describing them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from madkit.cache.layout import MANIFEST, PLAN, SCHEMA
from madkit.cache.mark import Mark, is_marked, mark_of
from madkit.cache.reader import Place, TokenCache, adapter_name, checked_manifest, read_document
from madkit.cache.remote import RemoteStore, stores_below
from madkit.cache.remote_files import CONCURRENT, RemoteError
from madkit.core.errors import CacheError, MadkitError, NotFoundError, UsageProblem
from madkit.core.registry import suggest
from madkit.core.workspace import Workspace
from madkit.teachers.known import KNOWN, parse_teacher_name


class DataOfTask(Protocol):
    """What choosing a store needs to know of a task's data (see :class:`madkit.tasks.data.TaskData`)."""

    @property
    def spec(self) -> Any:
        """The task, with a ``name``."""

    source: str
    revision: str


@dataclass(frozen=True, slots=True)
class StoreRow:
    """One store of a workspace.

    Attributes:
        path: its folder, or the store at its URL.
        state: ``complete``, ``unfinished``, ``unreadable``, ``another version`` of madkit's, or ``foreign``: no store.
        identity: what it is of; empty where it cannot be read.
        images: number of images.
        texts: number of texts.
        bytes: bytes of its files.
        created: when it was completed, ISO 8601; empty where it was not.
        absent: images and texts of these that have no values.
    """

    path: Place
    state: str
    identity: Mapping[str, Any]
    images: int
    texts: int
    bytes: int
    created: str
    absent: int = 0

    def as_row(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        facts = {key: self.identity.get(key) for key in ("teacher", "task", "source", "revision", "selection", "dtype")}
        return {
            "path": str(self.path),
            "name": self.path.name,
            "state": self.state,
            **facts,
            "adapter": adapter_name(self.identity),
            "images": self.images,
            "texts": self.texts,
            "absent": self.absent,
            "bytes": self.bytes,
            "created": self.created,
        }


def find_caches(workspace: Workspace) -> list[Place]:
    """Return the folders, or URLs, of the complete stores of a workspace, by name."""
    return [row.path for row in list_stores(workspace) if row.state == "complete"]


def list_stores(workspace: Workspace) -> list[StoreRow]:
    """Describe every store of a workspace, complete or not, by name; what else lies there is left out."""
    places = _places(workspace)
    if workspace.cache_url is not None:
        with ThreadPoolExecutor(CONCURRENT) as pool:  # each costs a few round trips
            rows = list(pool.map(describe, places))
    else:
        rows = [describe(path) for path in places]
    return [row for row in rows if row.state != "foreign"]


def _places(workspace: Workspace) -> list[Place]:
    """Where stores may lie, by name; nothing is read of them, for a manifest may have a megabyte."""
    if workspace.cache_url is not None:
        return list(stores_below(workspace.cache_url))
    if not workspace.cache.is_dir():
        return []
    folders = sorted(workspace.cache.iterdir())
    return [path for path in folders if any((path / name).is_file() for name in (MANIFEST, PLAN))]


def describe(path: Place) -> StoreRow:
    """Describe one folder below ``cache/``, or one store at a URL, whatever state it is in.

    Raises:
        RemoteError: the URL cannot be read.
    """
    try:
        manifest = read_document(path, MANIFEST)
        complete = manifest is not None
        document = checked_manifest(path, manifest) if complete else _checked_plan(path)
        images, texts = (int(document[part]["n"]) if part in document else 0 for part in ("images", "texts"))
        return StoreRow(
            path,
            "complete" if complete else "unfinished",
            document["identity"],
            images,
            texts,
            int(document["bytes"]) if complete else _folder_bytes(path),
            str(document.get("created", "")),
            sum(len(items) for items in document.get("absent", {}).values()),
        )
    except RemoteError:
        raise
    except (MadkitError, KeyError, TypeError, ValueError):
        mark = marked(path)
        if mark == "none":
            return StoreRow(path, "foreign", {}, 0, 0, 0, "")
        return StoreRow(path, "unreadable" if mark == "ours" else mark, {}, 0, 0, _folder_bytes(path), "")


def _checked_plan(path: Place) -> dict[str, Any]:
    plan: dict[str, Any] = read_document(path, PLAN)
    if not is_marked(plan) or plan["schema"] != SCHEMA or not isinstance(plan["identity"], dict):
        raise CacheError(f"{path}/{PLAN} is not the plan of a token cache that this version of madkit reads.")
    return plan


def marked(path: Place) -> Mark:
    """Say whether a folder, or what lies at a URL, is a store of madkit (see :mod:`madkit.cache.mark`)."""
    if isinstance(path, RemoteStore):
        return path.mark()
    return mark_of(path.name, lambda name: (path / name).read_bytes() if (path / name).is_file() else None)


def _folder_bytes(path: Place) -> int:
    if isinstance(path, RemoteStore):
        return sum(path.files.sizes().values())
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def choose_cache(workspace: Workspace, task_data: DataOfTask, teacher: str | None) -> TokenCache:
    """Open the workspace's store for a task's data.

    Args:
        workspace: where stores lie.
        task_data: the data that will be trained on.
        teacher: a teacher's canonical name, or a store's folder name or key; None for the only store there is.

    Raises:
        UsageProblem: the name is neither a teacher's nor a store's.
        NotFoundError: there is no such store; the message says what there is instead.
        CacheError: several fit.
    """
    rows = [row for row in list_stores(workspace) if row.state == "complete"]
    task, source, revision = task_data.spec.name, task_data.source, task_data.revision
    of_source = [row for row in rows if row.identity.get("source") == source]
    of_data = [row for row in of_source if row.identity.get("revision") == revision]
    if teacher is not None:
        of_data = [row for row in of_data if teacher in _names(row)]
    else:  # who asks for any store needs both parts, so those of images or texts alone come last
        of_data = [row for row in of_data if row.identity.get("vision") and row.identity.get("text")] or of_data
    if len(of_data) == 1:
        return TokenCache.open(of_data[0].path)
    if of_data:
        names = ", ".join(row.path.name for row in of_data)
        seeing, reading = (
            [str(row.identity["teacher"]) for row in of_data if row.identity.get(side)] for side in ("vision", "text")
        )
        if teacher is None and seeing and reading and not set(seeing) & set(reading):
            raise CacheError(
                f"The workspace has {len(of_data)} caches of one side alone for {source}: {names}.",
                hint=f"let one of them teach, or several: --teacher {seeing[0]} --teacher {reading[0]}; or make a "
                f"teacher of both: madkit extract --teacher {seeing[0]}+{reading[0]} --task {task}",
            )
        raise CacheError(
            f"The workspace has {len(of_data)} caches for {source}: {names}.",
            hint=f"choose one by its name: --teacher {of_data[0].path.name}",
        )
    adapted = teacher is not None and teacher not in KNOWN and (workspace.adapters / teacher / MANIFEST).is_file()
    if teacher is not None and not adapted:
        _check_means_something(teacher, rows)
    raise _nothing_fits(task, source, teacher, of_source, adapted=adapted)


def _check_means_something(teacher: str, rows: Sequence[StoreRow]) -> None:
    """Raise UsageProblem for a name that is neither a teacher's nor, whatever its data, a store's."""
    stores = {name for row in rows for name in _names(row)}
    if teacher in stores:
        return
    try:
        parse_teacher_name(teacher)
    except UsageProblem:
        raise UsageProblem(
            f"There is no teacher and no token cache named '{teacher}'.{suggest(teacher, [*KNOWN, *sorted(stores)])}",
            hint="see what there is: madkit teachers list, madkit cache list",
        ) from None


def _nothing_fits(
    task: str, source: str, teacher: str | None, of_source: list[StoreRow], *, adapted: bool
) -> NotFoundError:
    have = sorted({_name(row) for row in of_source})
    bases = sorted({str(row.identity["teacher"]) for row in of_source})
    option = "--adapter" if adapted else "--teacher"
    command = f"madkit extract {option} {teacher or (bases[0] if bases else 'mini')} --task {task}"
    if not of_source:
        return NotFoundError(f"The workspace has no token cache for {source}.", hint=f"make one: {command}")
    if teacher is not None and teacher not in have:
        return NotFoundError(
            f"The workspace has no token cache of '{teacher}' for {source}, only of {', '.join(have)}."
            f"{suggest(teacher, have)}",
            hint=f"make one: {command}",
        )
    return NotFoundError(
        f"The token caches for {source} belong to another revision of the data ({', '.join(have)}).",
        hint=f"extract again: {command}",
    )


def _name(row: StoreRow) -> str:
    """The shortest of the names that a store of a teacher may be called (`_names`)."""
    adapted = adapter_name(row.identity)
    if adapted is None:
        return str(row.identity["teacher"])
    return row.path.name if adapted in KNOWN else adapted


def _names(row: StoreRow) -> set[str]:
    """What a store may be called: an adapted teacher goes by its adaptation's name, for its base is another teacher.

    An adaptation that is called like a teacher, which older versions let it be, does not answer to that name.
    """
    names = {row.path.name, row.path.name.rpartition("-")[2]}
    adapted = adapter_name(row.identity)
    if adapted is None:
        return {*names, str(row.identity.get("teacher"))}
    return names if adapted in KNOWN else {*names, adapted}


def _is_called(place: Place, name: str) -> bool:
    if name.rstrip("/") in (place.name, place.name.rpartition("-")[2], str(place)):
        return True
    return isinstance(place, Path) and Path(name).expanduser().resolve() == place.resolve()


def find_store(workspace: Workspace, name: str | None) -> list[Place]:
    """Return the folder, or URL, of the store called ``name`` (folder name, key or place), or of all stores for None.

    Raises:
        NotFoundError: there is none; the message suggests the nearest.
    """
    if name is None:
        places: list[Place] = [row.path for row in list_stores(workspace)]
        if not places:
            raise NotFoundError(
                f"There are no token caches at {workspace.cache_at}."
                if workspace.cache_at
                else f"The workspace {workspace.root} has no token caches.",
                hint="make one: madkit extract --teacher mini",
            )
        return places
    places = _places(workspace)
    found = [place for place in places if _is_called(place, name)]
    if not found:
        raise NotFoundError(
            f"There is no token cache named '{name}'.{suggest(name, [place.name for place in places])}",
            hint="see what there is: madkit cache list",
        )
    return found
