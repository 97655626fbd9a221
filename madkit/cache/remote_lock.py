"""The lock of a remote store: an object that names its holder and is renewed while the holder lives.

It is created with a conditional write where the storage has one (S3 has), so that of two that come at the same time
one gets it. A holder that was killed leaves its object behind: it is taken over after ten minutes without a sign, and
at once where the holder was a process of this very machine that is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from madkit.cache.layout import LOCK
from madkit.cache.remote_files import RemoteFolder
from madkit.core.console import duration, info
from madkit.core.errors import CacheError, CacheInUse, MadkitError

STALE_S = 600.0
RENEW_S = 60.0


class RemoteLock:
    """An exclusive lock on a remote store, for one writer at a time."""

    def __init__(self, remote: RemoteFolder) -> None:
        self._remote = remote
        self._hurried = RemoteFolder(remote.url, patient=False)
        self._token = uuid.uuid4().hex
        self._held = False
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self.lost: str = ""

    def acquire(self) -> None:
        """Take the lock at once (CacheInUse, naming the holder and its last sign, where another has it)."""
        for _ in range(3):
            if self._remote.create(LOCK, self._document()):
                break
            holder = self._holder()
            if holder is None:
                continue  # it was released in between
            if holder.get("token") == self._token:
                break  # it was written, and the answer lost on its way: a second attempt found it there
            since = time.time() - float(holder.get("time", 0))
            if since < STALE_S and not _is_gone(holder):
                raise self._in_use(holder, since)
            info(f"{self._remote.url}: the lock of {_name(holder)}, which has ended, is taken over.")
            self._remote.remove([LOCK])
        else:
            raise self._in_use(self._holder() or {}, 0.0)
        holder = self._holder()
        if holder is None or holder.get("token") != self._token:  # storage without conditional writes
            raise self._in_use(holder or {}, 0.0)
        self._held = True
        self._thread = threading.Thread(target=self._renew, name="madkit-remote-lock", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Give the lock back; harmless when it is not held. A failing network leaves it to go stale."""
        if not self._held:
            return
        self._held = False
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        with contextlib.suppress(MadkitError):
            holder = self._holder(self._hurried)
            if holder is not None and holder.get("token") == self._token:
                self._hurried.remove([LOCK])

    def check(self) -> None:
        """Raise CacheError where another process has taken the lock over meanwhile."""
        if self.lost:
            raise CacheError(
                f"{self._remote.url} has been taken over by {self.lost}: this process gave no sign for too long.",
                hint="let the other end; what is finished here is not lost",
            )

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_S):
            try:
                holder = self._holder()
                if holder is not None and holder.get("token") != self._token:
                    self.lost = _name(holder)
                    return
                self._remote.write(LOCK, self._document())
            except MadkitError:
                continue  # the uploads say what is wrong with the network

    def _holder(self, remote: RemoteFolder | None = None) -> dict[str, Any] | None:
        data = (remote or self._remote).read_or_none(LOCK)
        if data is None:
            return None
        try:
            holder = json.loads(data)
        except ValueError:
            holder = None
        return holder if isinstance(holder, dict) else {}

    def _document(self) -> bytes:
        document = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "time": round(time.time(), 3),
            "token": self._token,
            "processes": _processes(),
        }
        return (json.dumps(document) + "\n").encode()

    def _in_use(self, holder: dict[str, Any], since: float) -> CacheInUse:
        return CacheInUse(
            f"{self._remote.url} is being written by {_name(holder)} (last sign {duration(since)} ago).",
            hint="wait for it to end; should it be dead, its lock is taken over after "
            f"{STALE_S / 60:.0f} minutes without a sign",
        )


def _name(holder: dict[str, Any]) -> str:
    if "pid" not in holder:
        return "another process"
    return f"process {holder['pid']} on {holder.get('host', 'an unknown machine')}"


def _processes() -> str:
    """Name the set of processes that this one's id is counted in: this boot of this machine, this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _is_gone(holder: dict[str, Any]) -> bool:
    """Whether the holder was a process here that has ended."""
    here = _processes()
    if not here or holder.get("processes") != here or not isinstance(holder.get("pid"), int):
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
