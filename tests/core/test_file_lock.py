"""One process at a time: who holds a lock is named, and what a dead process left behind is taken over."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from madkit.core.errors import CacheError
from madkit.core.files import FileLock

HOLDER = """
import sys
from pathlib import Path
from madkit.core.files import FileLock
lock = FileLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
sys.stdin.readline()
"""


def lock(path: Path) -> FileLock:
    return FileLock(path, error=CacheError, what="The cache x")


def test_another_process_is_named_and_a_dead_one_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(CacheError) as held:
            lock(path).acquire()
        assert held.value.message == f"The cache x is in use by process {other.pid} on {socket.gethostname()}."
        assert path.read_text().split()[1] == str(other.pid)  # the one who asked has left it alone
        other.kill()
    assert path.exists()
    with lock(path):
        assert path.read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"
    assert not path.exists()


def test_a_holder_on_another_machine_is_named(tmp_path: Path) -> None:
    """A network file system passes locks between machines; what the holder wrote says which one it is."""
    path = tmp_path / ".lock"
    path.write_text("process 7 on far-away\n")
    with path.open("r+") as remote:
        fcntl.flock(remote, fcntl.LOCK_EX)
        with pytest.raises(CacheError, match="The cache x is in use by process 7 on far-away"):
            lock(path).acquire()
    with lock(path):  # released there
        pass


def test_a_file_system_without_locks_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(CacheError, match="The cache x cannot be locked: its file system has no file locks") as error:
        lock(tmp_path / ".lock").acquire()
    assert "another file system" in str(error.value.hint)
