"""Writing a store to a URL: units are written into the local mirror, and uploaded as they are finished.

Payload first, then one small object that says the unit is done, the manifest last: whatever kills the process or the
network, the remote store never says that it has what it has not. Another machine goes on from the objects of the
journal; the same machine also uploads what it had finished and not uploaded yet, without computing it again.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from madkit.cache.journal import journal_rows, nothing_says_how
from madkit.cache.layout import JOURNAL, MANIFEST, PLAN
from madkit.cache.mark import is_marked
from madkit.cache.plan import compact_json, first_outside, plan_in, unit_of_file
from madkit.cache.remote import JOURNAL_FOLDER, RemoteStore, known_files, remote_store, to_json
from madkit.cache.remote_lock import RemoteLock
from madkit.cache.remote_mirror import Fetcher, difference, make_room, share
from madkit.core.console import info
from madkit.core.errors import DataError
from madkit.core.files import write_bytes_atomic
from madkit.core.workspace import Workspace

Line = Mapping[str, Any]
Place = tuple[str, int]
WAITING_UNITS = 4
"""Finished units that may wait for their upload; then computing waits as well."""
UPLOADERS = 2


class RemoteCopy:
    """Keeps a remote store equal to what a :class:`~madkit.cache.writer.StoreWriter` writes into its mirror.

    Args:
        store: where to.
        process: number of this process in its job; all but 0 upload units only.
        damaged: files that are to be written again; they and what says that they are done is removed at the beginning.
    """

    def __init__(self, store: RemoteStore, *, process: int = 0, damaged: Sequence[str] = ()) -> None:
        self.store = store
        self._remote = store.files
        self._mirror = store.mirror
        self._process = process
        self._damaged = damaged
        self._lock = RemoteLock(self._remote)
        self._sizes: dict[str, int] = {}
        self._known: dict[str, Any] = {}  # entries of files that the remote store has
        self._journalled: set[Place] = set()
        self._waiting: list[Line] = []
        self._changed = False
        self._uploads: _Uploads | None = None

    def begin(self) -> None:
        """Lock the remote store and bring the mirror in line with it; process 0 does, before the others come.

        Raises:
            CacheError: another process writes it, or it cannot be reached or written.
        """
        if self._process:
            return
        self._lock.acquire()
        try:
            self._synchronise()
        except BaseException:
            self._lock.release()
            raise

    def has(self, name: str, size: int) -> bool:
        """Whether the remote store has a file of this size."""
        return bool(self._process) or self._sizes.get(name) == size

    def refresh(self) -> None:
        """Learn what other processes of the job have uploaded."""
        self._sizes = self._remote.sizes()

    def fetch(self, *names: str) -> None:
        """Bring files into the mirror that are not there."""
        Fetcher(self._remote, self._mirror, self._known)(*names)

    def fixed(self, files: Mapping[str, Any]) -> None:
        """Upload the plan and what follows from it, then units that were finished here and not uploaded yet."""
        there = PLAN in self._sizes
        if not there:
            self._remote.upload(PLAN, self._mirror / PLAN)
        there_already = (
            self._known if not there else files
        )  # what a manifest vouches for, or what follows from the plan
        self._upload_fixed(
            {name: entry for name, entry in files.items() if name not in there_already or not self._same(name, entry)}
        )
        if self._waiting:
            info(f"{self.store}: {len(self._waiting)} shards that were finished here are uploaded.")
        for line in self._waiting:
            self.unit_done(line)
        self._waiting = []

    def unit_done(self, line: Line) -> None:
        """Upload a finished unit; this waits where several are waiting already.

        Raises:
            CacheError: an earlier upload has failed.
        """
        self._lock.check()
        if self._uploads is None:
            self._uploads = _Uploads(self._upload_unit)
        self._uploads.put(line)

    def finish(self, files: Mapping[str, Any]) -> None:
        """Upload what is left and the manifest, which completes the remote store."""
        if self._uploads is not None:
            self._uploads.drain()
        self._lock.check()
        self._upload_fixed({name: entry for name, entry in files.items() if self._known.get(name) != entry})
        self._remote.upload(MANIFEST, self._mirror / MANIFEST)

    def end(self, *, failed: bool) -> None:
        """Upload what is still waiting and release the lock.

        Args:
            failed: whether a failure is on its way already, beside which one of an upload is not raised.
        """
        try:
            if self._uploads is not None:
                self._uploads.end(quiet=failed)
        finally:
            self._lock.release()

    def _discard(self) -> None:
        """Remove the damaged files. What they belong to must not count as done any more if we are killed."""
        units = {unit_of_file(name) for name in self._damaged}
        self._open_for_change()
        self._remote.remove([journal_object(*unit) for unit in units if unit is not None])
        self._remote.remove(self._damaged)

    def _synchronise(self) -> None:
        self._sizes = self._remote.sizes()
        for name in self._damaged:
            self._sizes.pop(name, None)
        manifest = self._document(MANIFEST)
        if not is_marked(manifest) or not _names_files(manifest):
            manifest = None
        plan = self._document(PLAN)
        lines = self._lines_of(manifest) if manifest else self._read_journal()
        if plan is not None:
            self._take_plan(self._remote.read(PLAN))
        elif manifest is not None:  # of another program, which writes no plan
            self._take_plan(to_json(plan_in(manifest)))
            self._sizes.pop(PLAN, None)
        elif lines:
            raise nothing_says_how(self.store)
        lines = {
            place: line
            for place, line in lines.items()
            if all(self._sizes.get(name) == int(entry["bytes"]) for name, entry in line["files"].items())
        }
        known = known_files(self._mirror)
        local: dict[Place, Line] = {}
        for row in journal_rows(self._mirror):
            local[row["part"], int(row["unit"])] = row
        for line in lines.values():
            for name, entry in line["files"].items():
                if known.get(name) == entry:
                    share(self._mirror, name)
                else:
                    (self._mirror / name).unlink(missing_ok=True)
                self._known[name] = entry
        here = {place: row for place, row in local.items() if row["files"] is not None and place not in lines}
        again = {unit_of_file(name) for name in self._damaged}
        self._waiting = [row for place, row in here.items() if place not in again and self._sound_here(row)]
        self._journalled = set(lines)
        rows = [*lines.values(), *self._waiting]
        write_bytes_atomic(self._mirror / JOURNAL, b"".join(compact_json(dict(row)) for row in rows))
        for other in self._mirror.glob("journal-*.jsonl"):
            other.unlink()
        if manifest and all(self._sizes.get(name) == int(entry["bytes"]) for name, entry in manifest["files"].items()):
            self._take_complete(manifest, known)
        else:
            (self._mirror / MANIFEST).unlink(missing_ok=True)
        if self._damaged:
            self._discard()

    def _take_complete(self, manifest: Mapping[str, Any], known: Mapping[str, Any]) -> None:
        fixed = {name: entry for name, entry in manifest["files"].items() if unit_of_file(name) is None}
        for name, entry in fixed.items():
            if known.get(name) != entry:
                (self._mirror / name).unlink(missing_ok=True)
        self._known.update(fixed)
        self.fetch(*fixed)
        write_bytes_atomic(self._mirror / MANIFEST, to_json(manifest))

    def _document(self, name: str) -> Any:
        """Read a JSON object of the store; half of one, as a kill can leave on some storage, is as good as none."""
        try:
            found = self.store.document(name) if name in self._sizes else None
        except DataError:
            return None
        return found if isinstance(found, dict) else None

    def _take_plan(self, data: bytes) -> None:
        """Take over the remote plan, and forget a mirror that follows another one."""
        known = known_files(self._mirror)
        path = self._mirror / PLAN
        if path.is_file() and path.read_bytes() != data:
            for name in known:
                (self._mirror / name).unlink(missing_ok=True)
            for journal in self._mirror.glob("journal*.jsonl"):
                journal.unlink()
            (self._mirror / MANIFEST).unlink(missing_ok=True)
        write_bytes_atomic(path, data)

    def _lines_of(self, manifest: Mapping[str, Any]) -> dict[Place, Line]:
        lines: dict[Place, dict[str, Any]] = {}
        for name, entry in manifest["files"].items():
            place = unit_of_file(name)
            if place is not None:
                line = lines.setdefault(place, {"part": place[0], "unit": place[1], "files": {}})
                line["files"][name] = entry
        for part, items in manifest.get("absent", {}).items():
            for item in items:
                row = int(item["row"])
                place = (part, row // int(manifest[part]["unit"]))
                if place in lines:
                    lines[place].setdefault("absent", {})[str(row)] = item["error"]
        return {place: lines[place] for place in lines}

    def _read_journal(self) -> dict[Place, Line]:
        names = [name for name in self._sizes if name.startswith(f"{JOURNAL_FOLDER}/")]
        lines: dict[Place, Line] = {}
        for line in self._remote.each(self._document, names):
            if line is not None and _names_files(line):
                lines[str(line["part"]), int(line["unit"])] = line
        return dict(sorted(lines.items()))

    def _sound_here(self, line: Line) -> bool:
        files = line["files"].items()
        return all(
            (self._mirror / name).is_file() and not difference(self._mirror / name, entry) for name, entry in files
        )

    def _same(self, name: str, entry: Mapping[str, Any]) -> bool:
        """Whether the remote store has a file that follows from the plan; the plan fixes all but groups' attributes."""
        if name in self._known:
            return bool(self._known[name] == entry)
        return not name.endswith("zarr.json") and self._sizes.get(name) == int(entry["bytes"])

    def _upload_fixed(self, files: Mapping[str, Any]) -> None:
        names = [name for name in files if unit_of_file(name) is None]
        if names:
            self._open_for_change()
        self._remote.each(lambda name: self._remote.upload(name, self._mirror / name), names)
        self._known.update({name: files[name] for name in names})

    def _open_for_change(self) -> None:
        """A store that changes is not complete until it says so again."""
        if not self._changed:
            self._remote.remove([MANIFEST])
            self._changed = True

    def _upload_unit(self, line: Line) -> None:
        place = (str(line["part"]), int(line["unit"]))
        note = journal_object(*place)
        self._open_for_change()
        if (
            self._process or place in self._journalled or note in self._sizes
        ):  # it must not speak for files that are being replaced
            self._remote.remove([note])
        files = line["files"]
        self._remote.each(lambda name: self._remote.upload(name, self._mirror / name), list(files))
        self._remote.write(note, compact_json(dict(line)))
        self._known.update(files)
        for name in files:
            self._sizes[name] = int(files[name]["bytes"])
            share(self._mirror, name)
        make_room(sum(int(entry["bytes"]) for entry in files.values()))


class _Uploads:
    """Threads that upload units, behind a queue of limited length. They die with the process, whatever they do."""

    def __init__(self, upload: Any) -> None:
        self._upload = upload
        self._queue: queue.Queue[Line | None] = queue.Queue(WAITING_UNITS)
        self._error: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._work, name=f"madkit-upload-{number}", daemon=True)
            for number in range(UPLOADERS)
        ]
        for thread in self._threads:
            thread.start()

    def put(self, line: Line) -> None:
        """Queue a unit; raise what an earlier upload has failed with."""
        if self._error is not None:
            raise self._error
        self._queue.put(line)

    def drain(self) -> None:
        """Wait until everything is uploaded; raise what failed."""
        self._queue.join()
        if self._error is not None:
            raise self._error

    def end(self, *, quiet: bool) -> None:
        """Upload what waits and end the threads. After a failure nothing more is tried; ``quiet`` does not raise it."""
        self._queue.join()
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        if self._error is not None and not quiet:
            raise self._error

    def _work(self) -> None:
        while True:
            line = self._queue.get()
            try:
                if line is None:
                    return
                if self._error is None:
                    self._upload(line)
            except BaseException as error:
                self._error = self._error or error
            finally:
                self._queue.task_done()


def _names_files(document: Line) -> bool:
    """Whether a manifest or a line of a journal lists files of the store, and nothing outside of it."""
    files = document.get("files")
    return isinstance(files, dict) and first_outside(files) is None


def remote_copy(workspace: Workspace, name: str, *, process: int = 0) -> RemoteCopy | None:
    """Return what uploads the store of this name where the caches of a workspace lie at a URL, else None."""
    store = remote_store(workspace, name)
    return None if store is None else RemoteCopy(store, process=process)


def journal_object(part: str, unit: int) -> str:
    """Return the name of the object that says that a unit is done."""
    return f"{JOURNAL_FOLDER}/{part}-{unit}.json"


def remote_units(store: RemoteStore) -> set[Place]:
    """Return the units that a remote store has, finished or not, without looking at their payload."""
    found = set()
    for name in store.files.sizes():
        folder, _, last = name.rpartition("/")
        part, _, unit = last.removesuffix(".json").rpartition("-")
        if folder == JOURNAL_FOLDER and unit.isdigit():
            found.add((part, int(unit)))
    return found
