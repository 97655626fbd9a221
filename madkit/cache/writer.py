"""Writing a token store so that nothing is lost whatever kills the process.

A unit of work is one shard of tokens with its global vectors, spans and statistics. Its files are assembled in memory,
written to temporary names, fsynced and renamed; then one line in the journal says that the unit is done. What has no
line is done again. The manifest, with size and checksum of every file, is written last and makes the store readable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from madkit.cache.agreement import refuse_other_shards
from madkit.cache.attributes import part_attributes
from madkit.cache.fixed_files import fixed_files, says_the_same
from madkit.cache.journal import append_unit, journal_files, journal_rows, journalled_units, merge_journals
from madkit.cache.kept import forget_unit, kept_units
from madkit.cache.layout import ABSENT_ITEMS, LOCK, MANIFEST, PLAN, group_metadata
from madkit.cache.plan import PARTS, Part, StorePlan, compact_json, layout_digest, unit_of_file
from madkit.cache.remote_copy import RemoteCopy
from madkit.cache.resuming import begun_with, has_plan, manifest_for_journal, resumed_plan, usable_manifest
from madkit.cache.shards import file_crc32, pack_chunk
from madkit.cache.totals import rounding_facts, store_statistics
from madkit.cache.unit_files import pack_unit
from madkit.core.console import info
from madkit.core.environment import environment
from madkit.core.errors import CacheError
from madkit.core.files import FileLock, write_bytes_atomic, write_json_atomic


class StoreWriter:
    """Writes one store. Use as a context manager: it holds the store's lock.

    Several processes of one job may fill a store, each with units of its own (:meth:`take`) and a journal of its own.
    The first of them prepares it before the others enter, and completes it after they have left.

    Args:
        folder: the store's folder.
        plan: what to write. Where the folder holds a plan of the same items in other shard sizes, that one is kept,
            and :attr:`plan` is it.
        known: the store's manifest, where it is complete; what it says of units is taken instead of the journal.
        process: number of this process in its job; all but 0 need a store that process 0 has prepared.
        remote: keeps the store at a URL equal to the folder, which is its mirror then.

    Raises:
        CacheError: another process writes the store, or the folder holds something else.
    """

    def __init__(
        self,
        folder: Path,
        plan: StorePlan,
        *,
        known: Mapping[str, Any] | None = None,
        process: int = 0,
        remote: RemoteCopy | None = None,
    ) -> None:
        self.folder = folder
        self._remote = remote
        self._known = known
        self.plan = plan
        self.process = process
        self._lock = self._lock_of(folder / (LOCK if process == 0 else f"{LOCK}-{process}"))
        self._files: dict[str, dict[str, Any]] = {}
        self._done: set[tuple[Part, int]] = set()
        self._lines: set[tuple[Part, int]] = set()  # units whose last line says that they are done
        self._mine: set[tuple[Part, int]] | None = None
        self._absent: dict[tuple[Part, int], dict[int, str]] = {}
        self._document: tuple[StorePlan, dict[str, Any]] | None = None
        self._otherwise = ""  # what another program has laid out as we do not

    def _lock_of(self, path: Path) -> FileLock:
        return FileLock(path, error=CacheError, what=f"The cache {self.folder.name}")

    def __enter__(self) -> StoreWriter:
        self._lock.acquire()
        try:
            if self._remote is not None:
                self._remote.begin()
            try:
                if self.process == 0:
                    self._prepare()
                else:
                    begun = begun_with(self.folder)
                    assert begun is not None
                    self.plan = resumed_plan(self.plan, begun, self.folder)
                    self._read_journal()
            except BaseException:
                if self._remote is not None:
                    self._remote.end(failed=True)
                raise
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if self._remote is not None:
                self._remote.end(failed=error is not None)
        finally:
            self._lock.release()

    def missing(self, part: Part) -> list[int]:
        """Return the units that are still to be done, whoever does them."""
        return [unit for unit in range(self.plan.units(part)) if (part, unit) not in self._done]

    def pending(self, part: Part) -> list[int]:
        """Return the units that are still to be done here: those of :meth:`take`, or all."""
        return [unit for unit in self.missing(part) if self._mine is None or (part, unit) in self._mine]

    def take(self, units: Mapping[Part, Sequence[int]]) -> None:
        """Do these units alone, whether they are there or not; other processes do the others."""
        self._mine = {(part, unit) for part, numbers in units.items() for unit in numbers}
        self._done -= self._mine

    def gather(self) -> None:
        """Learn what other processes of the job have done, once all of them have left; to be called by process 0."""
        if self._remote is not None:
            self._remote.refresh()
        merge_journals(self.folder)
        self._mine = None
        self._read_journal()

    def absent(self, part: Part) -> dict[int, str]:
        """Return what is wrong with each item that was marked as absent so far, by row."""
        found = [rows for (of, unit), rows in self._absent.items() if of == part and (of, unit) in self._done]
        return dict(sorted(item for rows in found for item in rows.items()))

    def reopen(self, part: Part, unit: int) -> None:
        """Have a unit done again, though it is there (CacheError where another program has laid the store out)."""
        self._refuse_otherwise()
        self._done.discard((part, unit))

    @property
    def finished(self) -> bool:
        """Whether the store is complete and readable."""
        return (self.folder / MANIFEST).is_file() and not any(self.missing(part) for part in PARTS)

    @property
    def total_bytes(self) -> int:
        """Bytes of all files written so far."""
        return sum(int(entry["bytes"]) for entry in self._files.values())

    def _prepare(self) -> None:
        for lock in self.folder.glob(f"{LOCK}-*"):  # a process of a job whose first one is gone
            with self._lock_of(lock):
                pass
        for leftover in self.folder.rglob(".*.tmp"):  # what a kill between write and rename leaves
            leftover.unlink()
        begun = begun_with(self.folder)
        if begun is not None:
            self.plan = resumed_plan(self.plan, begun, self.folder)
        if not has_plan(self.folder):
            write_json_atomic(self.folder / PLAN, self._plan_document())
        complete = manifest_for_journal(self.folder)
        self._write_fixed()
        if self._remote is not None:
            self._remote.fixed(dict(self._files))
        if complete is not None:  # its lines are written anew, and believed as far as the files have their sizes
            for journal in journal_files(self.folder):
                journal.unlink()
            self._believe(complete)
            self._done.clear()
        merge_journals(self.folder)
        if self._known is not None:
            self._refuse_otherwise()
            self._believe(self._known)
            return
        self._read_journal()
        manifest = self.folder / MANIFEST
        whole = self._whole()
        if not whole or any(self.missing(part) for part in PARTS):
            self._refuse_otherwise()
        if not whole:  # statistics or a group are gone, which belong to no unit: they come with the manifest
            manifest.unlink(missing_ok=True)
        self._write_kept()

    def _refuse_otherwise(self) -> None:
        if self._otherwise:
            raise CacheError(
                f"The cache {self.folder.name} was not laid out by madkit ({self._otherwise}), so nothing can be put "
                "in the place of what it lacks.",
                hint="have the program that wrote it write it again, or remove it and extract: "
                f"madkit cache prune --store {self.folder.name} --yes",
            )

    def _plan_document(self) -> dict[str, Any]:
        """What ``plan.json`` holds, made once for a plan: of millions of items that takes seconds."""
        if self._document is None or self._document[0] is not self.plan:
            self._document = (self.plan, self.plan.document())
        return self._document[1]

    @property
    def digest(self) -> str:
        """What units belong to: the key, the items and the sizes of the plan."""
        return layout_digest(self._plan_document())

    def _write_kept(self) -> None:
        """Write the units that a process which was killed had finished, and not written yet."""
        written = 0
        for kept in kept_units(self.folder, self.digest):
            if kept.unit in self.missing(kept.part):
                self.write_unit(kept.part, kept.unit, kept.arrays, kept.absent)
                written += 1
            forget_unit(self.folder, kept.part, kept.unit)
        if written:
            info(f"{self.folder.name}: shards that a killed process had finished, written now: {written}.")

    def _said(self) -> Mapping[str, Any]:
        manifest = self._known or usable_manifest(self.folder) or {"files": {}}
        return dict(manifest["files"])

    def _whole(self) -> bool:
        """Whether the files of a complete store that belong to no unit are there, as its manifest says."""
        return usable_manifest(self.folder) is not None and all(
            unit_of_file(name) is not None
            or (self._files.get(name, entry) == entry and self._has(name, int(entry["bytes"])))
            for name, entry in self._said().items()
        )

    def _write_fixed(self) -> None:
        """Write what depends on the plan alone, unless a complete store has it already, in whatever bytes."""
        manifest = self.folder / MANIFEST
        said = self._said()
        for name, data in fixed_files(self.plan, self._plan_document()):
            if said and name not in said:  # written now, it would be one file too many
                self._otherwise = name
                continue
            path = self.folder / name
            if name in said and path.is_file() and _entry(path.read_bytes()) == said[name]:
                self._files[name] = said[name]
                if not says_the_same(name, path.read_bytes(), data):
                    self._otherwise = name
            else:
                self._put(name, data)
        for part in self.plan.parts:
            group = self.folder / part / "zarr.json"
            if group.is_file() and manifest.is_file():
                self._files[f"{part}/zarr.json"] = _entry(group.read_bytes())  # it tells the statistics
            else:
                self._put(f"{part}/zarr.json", compact_json(group_metadata({})))

    def _put(self, name: str, data: bytes) -> None:
        """Write a file unless it already has this content."""
        path = self.folder / name
        if not (path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data):
            write_bytes_atomic(path, data)
        self._files[name] = _entry(data)

    def _read_journal(self) -> None:
        last: dict[tuple[Part, int], dict[str, Any]] = {}
        for row in journal_rows(self.folder):
            last[row["part"], int(row["unit"])] = row
        for key, row in last.items():
            files = row["files"]
            self._done.discard(key)
            if files is None:
                continue
            self._lines.add(key)
            fits = self._fits(key, files)
            if fits and all(self._has(name, int(entry["bytes"])) for name, entry in files.items()):
                self._done.add(key)
                self._files.update(files)
                self._absent[key] = {int(item): str(error) for item, error in row.get("absent", {}).items()}

    def _fits(self, place: tuple[Part, int], files: Mapping[str, Any]) -> bool:
        """Whether these are the files that a unit has by the plan; a program of its own mind may add some."""
        return bool(self._otherwise) or set(files) == self.plan.unit_files(*place)

    def _has(self, name: str, size: int) -> bool:
        """Whether a file is there with its size, or the remote store has it: a mirror need not hold what that has."""
        return _has_size(self.folder / name, size) or (self._remote is not None and self._remote.has(name, size))

    def _believe(self, manifest: Mapping[str, Any]) -> None:
        """Take the units from a manifest, and complete the journal where lines of it were lost."""
        units: dict[tuple[Part, int], dict[str, Any]] = {}
        for name, entry in manifest["files"].items():
            place = unit_of_file(name)
            if place is not None:
                units.setdefault(place, {})[name] = entry
        for part in PARTS:
            for item in manifest.get("absent", {}).get(part, ()):
                row = int(item["row"])
                unit = row // (self.plan.images.unit if part == "images" else self.plan.text.unit)
                self._absent.setdefault((part, unit), {})[row] = str(item["error"])
        lines = journalled_units(self.folder)
        for place, files in sorted(units.items()):
            if not self._fits(place, files):
                continue
            if place not in lines:
                append_unit(self.folder, self.process, self._line(place, files))
            self._files.update(files)
            self._done.add(place)
            self._lines.add(place)

    def _line(self, place: tuple[Part, int], files: Mapping[str, Any]) -> dict[str, Any]:
        line: dict[str, Any] = {"part": place[0], "unit": place[1], "files": dict(files)}
        absent = self._absent.get(place)
        if absent:
            line["absent"] = {str(row): absent[row] for row in sorted(absent)}
        return line

    def write_unit(
        self,
        part: Part,
        unit: int,
        arrays: Mapping[str, npt.NDArray[np.generic]],
        absent: Mapping[int, str] | None = None,
    ) -> None:
        """Store the arrays of one unit and journal it. To be called from one thread at a time.

        Args:
            part: ``images`` or ``texts``.
            unit: its number.
            arrays: ``tokens`` and ``globals`` as float16, for texts ``spans`` and for a selection ``positions`` as
                int32, the unit's rows only. Tokens are rounded here where the store keeps int8.
            absent: what is wrong with each item of the unit that has no values, by row of the store. Its values in
                ``arrays`` are not looked at.

        Raises:
            OSError: the disk is full, or the folder cannot be written; nothing half-written is left.
        """
        files: dict[str, dict[str, Any]] = {}
        rows = self.plan.items(part, unit)
        known = self.plan.absent_texts if part == "texts" else {}
        missing = {row: error for row, error in {**known, **(absent or {})}.items() if row in rows}
        packed = pack_unit(self.plan, part, unit, arrays, missing)
        (self.folder / MANIFEST).unlink(missing_ok=True)  # a store that changes is not complete until it says so again
        if (part, unit) in self._lines:  # a kill in between must not leave new files under the old line
            append_unit(self.folder, self.process, {"part": part, "unit": unit, "files": None})
            self._lines.discard((part, unit))
        for name, data in packed.items():
            write_bytes_atomic(self.folder / name, data)
            files[name] = _entry(data)
        self._absent[part, unit] = missing
        line = self._line((part, unit), files)
        append_unit(self.folder, self.process, line)
        self._files.update(files)
        self._done.add((part, unit))
        self._lines.add((part, unit))
        if self._remote is not None:
            self._remote.unit_done(line)

    def finish(
        self, *, seconds: float, keep: Mapping[str, Any] | None = None, choices: Sequence[Mapping[str, str]] = ()
    ) -> dict[str, Any]:
        """Write the statistics and the manifest, which makes the store readable, and return the manifest.

        Args:
            seconds: how long this process worked on it, for the manifest.
            choices: what the extraction chose by itself, and why, for the manifest.
            keep: an earlier manifest whose time, duration and environment stay; that it was repaired is added.
        """
        if any(self.missing(part) for part in PARTS):
            raise ValueError("the store is not complete")
        if self._remote is not None:  # what is computed over all units
            arrays = [spec for part in PARTS for spec in self.plan.arrays(part).values() if not spec.inner_rows]
            self._remote.fetch(*(spec.file(shard) for spec in arrays for shard in range(spec.shards)))
        for part in self.plan.parts:
            statistics = self._write_statistics(part)
            attributes = part_attributes(self.plan, part, statistics, len(self.absent(part)))
            self._put(f"{part}/zarr.json", compact_json(group_metadata(attributes)))
        plan = self._plan_document()
        refuse_other_shards(self.plan, self._files, self.folder)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        manifest = {
            **plan,
            "created": now,
            "bytes": self.total_bytes,
            "absent": self.absent_items(),
            "seconds": round(seconds, 1),
            "environment": environment(),
            "files": dict(sorted(self._files.items())),
        }
        if choices:
            manifest["choices"] = [dict(choice) for choice in choices]
        rounding = rounding_facts(self.plan, self.folder)
        if rounding:
            manifest["rounding"] = rounding
        if keep is not None:
            manifest |= {name: keep[name] for name in ("created", "seconds", "environment", "choices") if name in keep}
            manifest["repaired"] = [*keep.get("repaired", []), {"when": now, "environment": environment()}]
        write_json_atomic(self.folder / MANIFEST, manifest)
        if self._remote is not None:
            self._remote.finish(self._files)
        (self.folder / ABSENT_ITEMS).unlink(missing_ok=True)
        return manifest

    def absent_items(self) -> dict[str, list[dict[str, Any]]]:
        """Return every item that was marked as absent, with its row, name and what is wrong with it."""
        ids, texts = self.plan.image_ids, self.plan.texts
        return {
            "images": [{"row": row, "id": ids[row], "error": why} for row, why in self.absent("images").items()],
            "texts": [{"row": row, "text": texts[row], "error": why} for row, why in self.absent("texts").items()],
        }

    def list_absent(self) -> Path:
        """Write the absent items of a store that is not complete to a file of its own, and return its path."""
        write_json_atomic(self.folder / ABSENT_ITEMS, self.absent_items())
        return self.folder / ABSENT_ITEMS

    def _write_statistics(self, part: Part) -> npt.NDArray[np.float32]:
        """Write a part's ``statistics`` array from those of its units, and return it: [4, D]."""
        target = self.plan.arrays(part)["statistics"]
        found = store_statistics(self.plan, part, self.folder, lambda unit: len(self._absent.get((part, unit), {})))
        self._put(target.file(0), pack_chunk(target, found))
        return found


def _entry(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "crc32": f"{file_crc32(data):08x}"}


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False
