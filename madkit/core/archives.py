"""Owners' files, inside zips or not: one kind of path for both.

Benchmarks ship as zips of up to 25 GB. A *virtual path* runs through one as if it were a folder,
``/data/vcr1images.zip/vcr1images/a/b.jpg``, so nothing has to be unpacked and no reader needs two ways. A path that
exists on disk always means the file on disk.
"""

from __future__ import annotations

import io
import os
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from madkit.core.errors import DataError, NotFoundError

_HIDDEN = ("__MACOSX", ".")  # what archivers and file managers leave behind


class _Zip:
    """An open zip; reads of its members take turns, because they share one file position."""

    def __init__(self, path: Path) -> None:
        self.path = path
        status = path.stat()
        self.stamp = (status.st_mtime_ns, status.st_size, os.getpid())
        self.lock = threading.Lock()
        try:
            self.file = zipfile.ZipFile(path)
            self.members = {info.filename: info for info in self.file.infolist() if not info.is_dir()}
        except PermissionError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}).", hint="check its permissions") from None
        except Exception:  # BadZipFile, or whatever else a damaged directory of members leads to
            raise DataError(
                f"{path} is no readable zip: it is damaged, or its download was cut off.", hint="download it again"
            ) from None

    def read(self, member: str) -> bytes:
        with self.lock:
            try:
                return self.file.read(self.members[member])
            except Exception as error:  # BadZipFile, zlib.error, EOFError, a password: a damaged archive raises many
                raise _broken_member(self.path, member, error) from None


def _broken_member(path: Path, member: str, error: Exception) -> DataError:
    reason = str(error) or type(error).__name__
    return DataError(f"{path}: the member '{member}' cannot be read ({reason}).", hint="download the zip again")


_ZIPS: dict[Path, _Zip] = {}
_LOCK = threading.Lock()


def _zip(path: Path) -> _Zip:
    """The open zip of a path, opened again where the file changed or the process forked."""
    with _LOCK:
        known = _ZIPS.get(path)
        status = path.stat()
        if known is None or known.stamp != (status.st_mtime_ns, status.st_size, os.getpid()):
            known = _ZIPS[path] = _Zip(path)
        return known


def split(path: Path) -> tuple[Path, str] | None:
    """(zip file, member name) of a virtual path, None where no part of the path is a zip file on disk."""
    for parent in (path, *path.parents):
        if parent.suffix.lower() == ".zip" and parent.is_file():
            return parent, path.relative_to(parent).as_posix() if parent != path else ""
    return None


def exists(path: Path) -> bool:
    """Whether a file, or a member of a zip, is there. Raises DataError for a zip that cannot be opened."""
    if path.is_file():
        return True
    found = split(path)
    return found is not None and found[1] in _zip(found[0]).members


def is_folder(path: Path) -> bool:
    """Whether the path is a folder, a zip, or a folder inside a zip."""
    if path.is_dir():
        return True
    found = split(path)
    if found is None:
        return False
    prefix = f"{found[1]}/" if found[1] else ""
    return any(name.startswith(prefix) for name in _zip(found[0]).members)


def size_of(path: Path) -> int:
    """Bytes of the file's content, unpacked (NotFoundError where there is none)."""
    if path.is_file():
        return path.stat().st_size
    zipped, member = _member(path)
    return zipped.members[member].file_size


def read_bytes(path: Path) -> bytes:
    """The whole content of a file or member.

    Raises:
        NotFoundError: it does not exist.
        DataError: the zip is damaged, or the file cannot be read.
    """
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).", hint="check its permissions") from None
    zipped, member = _member(path)
    return zipped.read(member)


def open_binary(path: Path) -> BinaryIO:
    """A stream over a file or member, for reading from start to end; errors as in `read_bytes`.

    A damaged member shows itself while it is read: as DataError, like everything else here.
    """
    try:
        return path.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).", hint="check its permissions") from None
    zipped, member = _member(path)
    # A handle of its own: a stream is read for long, and others go on reading members meanwhile.
    return cast(BinaryIO, io.BufferedReader(_Member(zipped.path, member), buffer_size=1 << 20))


class _Member(io.RawIOBase):
    """A member of a zip as a raw stream whose failures name the zip."""

    def __init__(self, path: Path, member: str) -> None:
        self._path = path
        self._name = member
        self._zip = zipfile.ZipFile(path)
        try:
            self._stream = self._zip.open(member)
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError) as error:
            self._zip.close()
            raise _broken_member(path, member, error) from None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # the base says any writable buffer
        try:
            data = self._stream.read(len(buffer))
        except Exception as error:  # zlib.error, BadZipFile, EOFError, OSError: all mean a damaged archive
            raise _broken_member(self._path, self._name, error) from None
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
            self._zip.close()
        super().close()


def _member(path: Path) -> tuple[_Zip, str]:
    found = split(path)
    if found is None:
        raise NotFoundError(f"The file {path} does not exist.", hint=f"look for it in {path.parent}")
    zipped = _zip(found[0])
    if found[1] not in zipped.members:
        raise NotFoundError(f"The zip {found[0]} has no member '{found[1]}'.")
    return zipped, found[1]


def walk(root: Path, *, skip: Callable[[Path], bool] | None = None) -> Iterator[Path]:
    """Every file below a folder, sorted by folder, with the members of its zips as virtual paths.

    `root` may be a zip, or one file. Hidden files are left out, as are folders for which `skip` is true. Links to
    folders are followed, but no folder is entered through itself. A damaged zip is a DataError that names it.
    """
    if root.is_file():
        yield from _members(root) if root.suffix.lower() == ".zip" else [root]
        return
    for folder, names, files in os.walk(root, followlinks=True):
        here = Path(folder)
        names[:] = sorted(
            name
            for name in names
            if not name.startswith(_HIDDEN) and not (skip and skip(here / name)) and not _leads_back(here / name)
        )
        for name in sorted(files):
            if name.startswith(_HIDDEN):
                continue
            path = here / name
            yield from _members(path) if path.suffix.lower() == ".zip" else [path]


def _leads_back(folder: Path) -> bool:
    """Whether a folder is a link to itself or to one that it lies in: following it would never end."""
    if not folder.is_symlink():
        return False
    target = folder.resolve()
    return any(target in (real := parent.resolve(), *real.parents) for parent in folder.parents)


def _members(path: Path) -> list[Path]:
    return [
        path / name
        for name in sorted(_zip(path).members)
        if not any(part.startswith(_HIDDEN) for part in name.split("/"))
    ]


class Listing:
    """Answers whether files exist by listing each folder once: 100,000 images cost one listing, not 100,000 looks."""

    def __init__(self) -> None:
        self._folders: dict[Path, frozenset[str]] = {}
        self._zips: dict[Path, dict[str, set[str]]] = {}

    def exists(self, path: Path) -> bool:
        """Whether the file, or the member of a zip, is there."""
        folder = path.parent
        if folder not in self._folders:
            self._folders[folder] = self._list(folder)
        return path.name in self._folders[folder]

    def _list(self, folder: Path) -> frozenset[str]:
        try:
            with os.scandir(folder) as entries:
                return frozenset(entry.name for entry in entries if not entry.is_dir())
        except OSError:
            found = split(folder)
        if found is None:
            return frozenset()
        zipped, inside = found
        if zipped not in self._zips:
            folders: dict[str, set[str]] = {}
            for name in _zip(zipped).members:
                parent, _, last = name.rpartition("/")
                folders.setdefault(parent, set()).add(last)
            self._zips[zipped] = folders
        return frozenset(self._zips[zipped].get(inside, ()))


def list_files(root: Path) -> list[Path]:
    """`walk` as a list. Raises NotFoundError where `root` does not exist."""
    if not root.exists():
        raise NotFoundError(f"There is nothing at {root}.", hint="give the folder that holds the downloaded files")
    return list(walk(root))
