"""LMDB databases of other projects, opened read-only: safe for threads, for forks, and for files that were cut off."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from madkit.core.errors import DataError, MadkitError, NotFoundError

if TYPE_CHECKING:
    import lmdb

DATA_FILE = "data.mdb"
_MAGIC = 0xBEEFC0DE  # LMDB's, behind the 16 bytes of the first page's header


def is_lmdb(path: Path) -> bool:
    """Whether a path is an LMDB database: a folder with `data.mdb`, or such a file itself."""
    try:
        with _data_file(path).open("rb") as stream:
            start = stream.read(20)
    except OSError:
        return False
    return len(start) == 20 and struct.unpack_from("<I", start, 16)[0] == _MAGIC


def _data_file(path: Path) -> Path:
    return path / DATA_FILE if path.is_dir() else path


class LmdbStore:
    """Bytes by key, from the folder that holds `data.mdb` or from such a file."""

    def __init__(self, path: Path) -> None:
        """Open the database.

        Raises:
            MadkitError: the package lmdb is not installed.
            NotFoundError: there is nothing at the path.
            DataError: what is there is no whole LMDB database.
        """
        self._path = path
        self._shared: _Shared | None = None
        self._lock = threading.Lock()
        with self._reading():
            pass

    def get(self, key: bytes) -> bytes | None:
        """The value of a key, None where there is none. Raises DataError for a damaged database."""
        if not key:
            return None
        with self._reading() as transaction:
            value = transaction.get(key)
            return None if value is None else bytes(value)

    def all_keys(self) -> list[bytes]:
        """All keys in their order. Raises DataError for a damaged database."""
        with self._reading() as transaction:
            return [bytes(key) for key in transaction.cursor().iternext(values=False)]

    def first_keys(self, count: int) -> list[bytes]:
        """The first keys in their order. Raises DataError for a damaged database."""
        with self._reading() as transaction:
            return [bytes(key) for key in islice(transaction.cursor().iternext(values=False), count)]

    def close(self) -> None:
        """Release the file; a later `get` opens it again."""
        with self._lock:
            if self._shared is not None:
                self._shared.release()
            self._shared = None

    @contextmanager
    def _reading(self) -> Iterator[lmdb.Transaction]:
        with self._lock:
            if self._shared is None:
                self._shared = _Shared.acquire(self._path)
            environment = self._shared.environment()
        import lmdb

        try:
            with environment.begin() as transaction:
                yield transaction
        except lmdb.Error as error:
            raise DataError(f"{self._path}: the database is damaged ({error}).") from None


class _Shared:
    """An open environment. LMDB allows one per file and process, so all stores of a file share it."""

    _open: ClassVar[dict[tuple[int, int], _Shared]] = {}
    _lock = threading.RLock()

    def __init__(self, path: Path, key: tuple[int, int]) -> None:
        self._path = path
        self._key = key
        self._users = 0
        self._pid = os.getpid()
        self._environment = _open_environment(path)

    @classmethod
    def acquire(cls, path: Path) -> _Shared:
        try:
            status = _data_file(path).stat()
        except OSError:
            if path.is_dir():
                raise DataError(
                    f"{path} is no LMDB database.", hint=f"give the folder that holds {DATA_FILE}"
                ) from None
            raise NotFoundError(f"The database {path} does not exist.") from None
        key = (status.st_dev, status.st_ino)
        with cls._lock:
            if key not in cls._open:
                cls._open[key] = cls(path, key)
            shared = cls._open[key]
            shared._users += 1
            return shared

    def environment(self) -> lmdb.Environment:
        """The environment; a forked child closes its copy of the parent's and opens its own."""
        with self._lock:
            if self._pid != os.getpid():
                self._environment.close()
                self._environment, self._pid = _open_environment(self._path), os.getpid()
            return self._environment

    def release(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._environment.close()
                self._open.pop(self._key, None)


def _open_environment(path: Path) -> lmdb.Environment:
    try:
        import lmdb
    except ImportError:
        raise MadkitError(
            f"{path} is an LMDB database, and the package lmdb is not installed.",
            hint='install it: pip install "madkit[lmdb]"',
        ) from None
    file = _data_file(path)
    if not is_lmdb(path):
        raise DataError(f"{file} is no LMDB database.", hint=f"give the folder that holds {DATA_FILE}")
    try:
        # No lock file: owners' folders are read-only and nobody writes them. No read-ahead: access is random.
        environment = lmdb.open(
            str(path), subdir=path.is_dir(), readonly=True, create=False, lock=False, readahead=False
        )
    except lmdb.Error as error:
        raise DataError(f"{file} is no LMDB database that can be read ({error}).") from None
    # The file is mapped into memory: a page that is missing from a file that was cut off would kill the process.
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    there = file.stat().st_size
    if there < needed:
        environment.close()
        raise DataError(
            f"{file} is cut off: it has {there:,} bytes of {needed:,}.", hint="copy or download the file again"
        )
    return environment
