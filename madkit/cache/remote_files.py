"""Objects below a URL, through fsspec: reading, writing, listing, with retries, and failures that a user can act on.

Works with every file system that fsspec knows (``s3://``, ``gs://``, ``file://``, ``memory://``, ``http://`` for
reading). Whole objects only: a store's files are written once and read whole.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from operator import ne
from pathlib import Path
from typing import Any, TypeVar

from madkit.core.errors import CacheError, MadkitError, NotFoundError, UsageProblem
from madkit.core.registry import suggest

DELAYS = (0.5, 1.5, 4.0)
"""Seconds before each further attempt where the network fails, after what the file system's own library has tried."""
CONCURRENT = 8
_FLAT = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss")
"""Schemes without folders: a missing path on writing means a missing bucket there, elsewhere a missing folder."""
_EXTRAS = {"s3": "madkit[s3]", "s3a": "madkit[s3]", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
_OF_THIS_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE)
_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound"}

Result = TypeVar("Result")


class RemoteError(CacheError):
    """A URL that cannot be used: no bucket, permission, credentials, package or network."""


class RemoteFolder:
    """What lies below a URL. Safe to use from several threads, and after a fork.

    Args:
        url: a URL that fsspec knows.
        patient: try again where the network fails (:data:`DELAYS`).

    Every method raises NotFoundError for a missing object, and RemoteError, naming the URL, where there is no bucket,
    no permission, no credentials, no package for the URL's scheme, or no network after some attempts.
    """

    def __init__(self, url: str, *, patient: bool = True) -> None:
        self.url = url.rstrip("/")
        self._patient = patient
        self.scheme = self.url.partition("://")[0].partition("::")[0].lower()

    def __truediv__(self, name: str) -> RemoteFolder:
        return RemoteFolder(f"{self.url}/{name}")

    def read(self, name: str) -> bytes:
        """Return the content of an object."""
        return self._try(name, lambda fs, path: bytes(fs.cat_file(path)))

    def read_or_none(self, name: str) -> bytes | None:
        """Return the content of an object, or None where there is none."""
        try:
            return self.read(name)
        except NotFoundError:
            return None

    def download(self, name: str, target: Path) -> None:
        """Write the content of an object to a file."""
        self._try(name, lambda fs, path: fs.get_file(path, str(target)), here=target)

    def write(self, name: str, data: bytes) -> None:
        """Write an object whole."""
        self._write(name, lambda fs, path: fs.pipe_file(path, data))

    def create(self, name: str, data: bytes) -> bool:
        """Write an object unless it exists, and return whether that was so.

        Atomic where the file system has conditional writes (S3, local files); elsewhere another process can come
        between looking and writing.
        """

        def put(fs: Any, path: str) -> bool:
            try:
                fs.pipe_file(path, data, mode="create")
            except FileExistsError:
                return False
            except (TypeError, ValueError, NotImplementedError):  # it does not know such writes
                if fs.exists(path):
                    return False
                fs.pipe_file(path, data)
            return True

        return self._write(name, put)

    def upload(self, name: str, source: Path) -> None:
        """Write an object from a file."""
        self._write(name, lambda fs, path: fs.put_file(str(source), path), here=source)

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects; one that does not exist is as good as removed."""

        def one(name: str) -> None:
            with suppress(NotFoundError):
                self._try(name, lambda fs, path: fs.rm_file(path))

        self.each(one, list(names))

    def sizes(self) -> dict[str, int]:
        """Return the bytes of every object below the URL, by name; empty where there is nothing."""

        def find(fs: Any, path: str) -> dict[str, int]:
            fs.invalidate_cache()
            found = fs.find(path, detail=True)
            return {_below(key, path): int(entry["size"] or 0) for key, entry in found.items()}

        try:
            return self._try("", find)
        except NotFoundError:
            return {}

    def folders(self) -> list[str]:
        """Return the names of the folders directly below the URL."""

        def ls(fs: Any, path: str) -> list[str]:
            fs.invalidate_cache()
            found = fs.ls(path, detail=True)
            return sorted(_below(entry["name"], path) for entry in found if entry["type"] == "directory")

        try:
            return [name for name in self._try("", ls) if name]
        except NotFoundError:
            return []

    def remove_folders(self) -> None:
        """Remove what is left of empty folders, on file systems that have them; one that holds anything stays."""

        def remove(fs: Any, path: str) -> None:
            fs.invalidate_cache()
            found = fs.find(path, withdirs=True, detail=True)
            folders = [name for name, entry in found.items() if entry["type"] == "directory"]
            for folder in sorted({path, *folders}, key=len, reverse=True):
                with suppress(OSError):
                    fs.rmdir(folder)

        if self.scheme not in _FLAT:
            with suppress(NotFoundError):
                self._try("", remove)

    def each(self, work: Callable[[Any], Result], items: Sequence[Any]) -> list[Result]:
        """Do ``work`` for items, several at a time; the first failure is raised."""
        if len(items) < 2:
            return [work(item) for item in items]
        with ThreadPoolExecutor(min(CONCURRENT, len(items)), thread_name_prefix="madkit-remote") as pool:
            return list(pool.map(work, items))

    def refuse_unusable(self) -> None:
        """Raise at once what a first write would raise: an unknown storage, one without its package, or for reading."""
        self._refuse_read_only()
        try:
            _file_system(self.url)
        except Exception as error:
            known = explain(error, self.url)
            if known is not None:
                raise known from None

    def _refuse_read_only(self) -> None:
        if self.scheme in ("http", "https"):
            raise RemoteError(
                f"{self.url} can only be read: nothing is written over {self.scheme}.",
                hint="write to a folder or to object storage, such as --cache s3://bucket/caches",
            )

    def _write(self, name: str, put: Callable[[Any, str], Result], here: Path | None = None) -> Result:
        self._refuse_read_only()

        def with_folder(fs: Any, path: str) -> Result:
            try:
                return put(fs, path)
            except FileNotFoundError:
                if self.scheme in _FLAT:
                    raise
                fs.makedirs(path.rpartition("/")[0], exist_ok=True)
                return put(fs, path)

        return self._try(name, with_folder, here)

    def _try(self, name: str, work: Callable[[Any, str], Result], here: Path | None = None) -> Result:
        """Do ``work`` until the network lets it; what is wrong with the file ``here`` is no matter of the network."""
        url = f"{self.url}/{name}" if name else self.url
        for delay in (*DELAYS, None) if self._patient else (None,):
            try:
                fs, path = _file_system(self.url)
                return work(fs, f"{path}/{name}" if name else path)
            except MadkitError:
                raise
            except Exception as error:
                if isinstance(error, OSError) and (error.errno in _OF_THIS_MACHINE or _is_about(error, here)):
                    raise
                known = explain(error, url)
                if known is not None:
                    raise known from None
                if delay is None:
                    raise _unreachable(error, url, len(DELAYS) + 1 if self._patient else 1) from None
                time.sleep(delay)
        raise AssertionError


def _file_system(url: str) -> tuple[Any, str]:
    import fsspec  # its file systems are cached, one for each process

    fs, path = fsspec.core.url_to_fs(url)
    return fs, path.rstrip("/")


def _is_about(error: OSError, here: Path | None) -> bool:
    """Whether an error names a file of this machine, or a folder that it lies in."""
    return here is not None and isinstance(error.filename, str) and Path(error.filename) in (here, *here.parents)


def _below(key: str, path: str) -> str:
    return key.rstrip("/")[len(path) :].lstrip("/") if key.startswith(path) else key.rstrip("/").rpartition("/")[2]


def explain(error: Exception, url: str) -> MadkitError | None:
    """Return the failure that another attempt would not mend; None where it might."""
    scheme = url.partition("://")[0]
    names = {cls.__name__ for cls in type(error).__mro__}
    first_line = next(iter(str(error).splitlines()), "") or type(error).__name__
    status = getattr(error, "status", None)
    said = first_line.lower()
    if isinstance(error, FileNotFoundError) and "specified bucket does not exist" in said:
        return RemoteError(
            f"The bucket of {url} does not exist.", hint="make it, or check its name and AWS_ENDPOINT_URL"
        )
    if isinstance(error, FileNotFoundError) or status == 404:
        return NotFoundError(f"{url} does not exist.")
    if isinstance(error, PermissionError) or status in (401, 403):
        return RemoteError(
            f"No permission for {url} ({first_line.rstrip('.')}).", hint="check the credentials and what they may do"
        )
    if names & _NO_CREDENTIALS:
        return RemoteError(
            f"There are no credentials for {url} ({first_line.rstrip('.')}).",
            hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
        )
    if isinstance(error, ImportError):
        package = _EXTRAS.get(scheme)
        hint = f"pip install '{package}'" if package else "install that package"
        return RemoteError(f"{url} cannot be opened: {first_line.rstrip('.')}.", hint=hint)
    if isinstance(error, ValueError) and "protocol not known" in said:
        return UsageProblem(
            f"There is no storage called '{scheme}://'.{_near_scheme(scheme)}",
            hint="such as s3://bucket/caches, or a folder",
        )
    if isinstance(error, NotImplementedError):
        return RemoteError(f"{url}: the storage '{scheme}://' cannot do this ({first_line.rstrip('.')}).")
    return None


def _near_scheme(scheme: str) -> str:
    import fsspec

    # s4 is as near to s3 as two letters can be, which no measure of similarity sees
    slip = [known for known in ("s3", "gs", "az") if len(scheme) == 2 and sum(map(ne, scheme, known)) == 1]
    return f" Did you mean '{slip[0]}'?" if slip else suggest(scheme, fsspec.available_protocols())


def _unreachable(error: Exception, url: str, attempts: int) -> RemoteError:
    first_line = next(iter(str(error).splitlines()), "")
    where = " and AWS_ENDPOINT_URL" if url.startswith("s3") else ""
    return RemoteError(
        f"{url} cannot be reached after {attempts} attempts ({type(error).__name__}: {first_line.rstrip('.')}).",
        hint=f"check the network{where}, and run the same command again, which goes on from here",
    )
