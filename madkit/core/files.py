"""Files that are either whole or absent, journals that survive a kill, digests, and a lock that dies with its holder.

Atomic here means: written to a temporary file in the same folder, fsynced, renamed over the target (POSIX ``rename``
replaces in one step), and the folder fsynced, so that a reader sees the old content or the new one and nothing between.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import socket
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from madkit.core.console import info
from madkit.core.errors import DataError, MadkitError, NotFoundError, RunError

_LOCK_POLL_S = 0.05
_LOCK_QUIET_S = 2.0


def write_bytes_atomic(path: Path, data: bytes | bytearray | memoryview) -> None:
    """Write ``data`` to ``path``, creating its folder; ``path`` is never seen half-written, whatever kills us."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _naming(error, path) from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def check_writable(path: Path) -> None:
    """Raise the OSError of a folder that takes no file, before long work whose outcome goes there."""
    folder = path.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _naming(error, path) from None


def _naming(error: OSError, path: Path) -> OSError:
    """Return the error with the file that was to be written: a full disk's has none, or names a temporary file."""
    if error.errno is None:
        return error
    return OSError(error.errno, error.strerror or os.strerror(error.errno), str(path))


def write_text_atomic(path: Path, text: str) -> None:
    """Write UTF-8 text atomically (see :func:`write_bytes_atomic`)."""
    write_bytes_atomic(path, text.encode())


def write_json_atomic(path: Path, obj: object) -> None:
    """Write ``obj`` as indented JSON atomically. NaN and infinities are refused (ValueError): JSON has none."""
    write_text_atomic(path, json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` durable (fsync of a directory); a file system that cannot is left alone."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        NotFoundError: there is no such file.
        DataError: it is not JSON; the message names file, line and column.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise NotFoundError(f"{path} does not exist.") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not valid JSON (line {error.lineno}, column {error.colno}: {error.msg}).") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not valid JSON (it is not UTF-8 text).") from None


def append_jsonl(path: Path, *rows: Mapping[str, Any]) -> None:
    """Append rows to a JSON-lines file: one write, flushed and fsynced, so that a kill tears the last line at most.

    A line that an earlier kill had torn is cut off first, or the new row would be glued to it.
    """
    lines = b"".join(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        _cut_torn_line(descriptor)
        _write_all(descriptor, lines)
        os.fsync(descriptor)
    except OSError as error:
        raise _naming(error, path) from None
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _cut_torn_line(descriptor: int) -> None:
    size = os.fstat(descriptor).st_size
    if size == 0 or os.pread(descriptor, 1, size - 1) == b"\n":
        return
    end = size
    while end > 0:
        start = max(0, end - 65536)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            os.ftruncate(descriptor, start + newline + 1)
            return
        end = start
    os.ftruncate(descriptor, 0)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read a JSON-lines file that :func:`append_jsonl` wrote.

    A last line without its newline is what a kill leaves behind; it is dropped. Blank lines are ignored.

    Raises:
        NotFoundError: there is no such file.
        DataError: any other line is not a JSON object; the message names file and line.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        raise NotFoundError(f"{path} does not exist.") from None
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines[:-1], start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            raise DataError(f"{path}, line {number}: not valid JSON.") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: not a JSON object.")
        rows.append(row)
    return rows


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's content as 64 hex digits (NotFoundError where there is no such file)."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise NotFoundError(f"{path} does not exist.") from None


def canonical_json(obj: object) -> str:
    """Write ``obj`` as JSON with sorted keys and no spaces: equal values give equal text.

    Paths become strings, tuples lists, and NumPy scalars numbers; anything else that JSON does not know is a TypeError.
    """
    return json.dumps(obj, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_plain)


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "ndim", None) == 0:
        return item()
    raise TypeError(f"{type(value).__name__} has no canonical JSON form")


def digest_of(obj: object) -> str:
    """Return the first 16 hex digits of the SHA-256 of :func:`canonical_json`."""
    return hashlib.sha256(canonical_json(obj).encode()).hexdigest()[:16]


class FileLock:
    """An exclusive lock on ``path``, for a folder that one process at a time may write.

    It is an advisory kernel lock (``flock``), which a killed holder loses with its life: a file left behind is stale by
    itself and taken over. The file holds host and process id of the holder for the message.

    Args:
        path: the lock file; created, and removed on release.
        error: class of the failure when another process holds it, or the file system has no locks.
        what: what is locked, for the message ("the cache ...").
        busy: class of the failure when another process holds it, where that is told apart: it can be waited for.
        patience_s: how long to wait for another process's work that is as good as one's own and soon done; a wait that
            is noticed is told.
    """

    def __init__(
        self,
        path: Path,
        *,
        error: type[MadkitError] = RunError,
        what: str | None = None,
        busy: type[MadkitError] | None = None,
        patience_s: float = 0.0,
    ) -> None:
        self.path = path
        self.patience_s = patience_s
        self.error = error
        self.busy = busy or error
        self.what = what or str(path.parent)
        self._descriptor: int | None = None

    def __enter__(self) -> FileLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the lock, at once or within the patience, or raise ``error``, naming the holder."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        began, told = time.monotonic(), False
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_current(descriptor):
                    break
            except OSError as error:
                holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
                os.close(descriptor)
                if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
                    raise self.error(
                        f"{self.what} cannot be locked: its file system has no file locks ({error.strerror}).",
                        hint="have it mounted with locks (Lustre: -o flock), or use a folder on another file system.",
                    ) from None
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
                if (waited := time.monotonic() - began) < self.patience_s:
                    if waited > _LOCK_QUIET_S and not told:
                        info(f"Waiting: {self.what} is in use by {holder or 'another process'}.")
                        told = True
                    time.sleep(_LOCK_POLL_S)
                    continue
                raise self.busy(
                    f"{self.what} is in use by {holder or 'another process'}.",
                    hint="wait for it to end, or stop it, and run the command again.",
                ) from None
            os.close(descriptor)  # a releasing holder removed the file between our open and our lock
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self._descriptor = descriptor

    def _is_current(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self.path.stat())
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Give the lock back; harmless when it is not held."""
        if self._descriptor is None:
            return
        self.path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = None
