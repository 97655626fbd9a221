"""Atomic files, journals, digests and locks, each against what a kill can do to them."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from madkit.core import files
from madkit.core.errors import CacheError, DataError, NotFoundError, RunError
from madkit.core.files import FileLock


def test_an_atomic_write_creates_its_folder_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    files.write_json_atomic(path, {"é": [1, None]})
    files.write_json_atomic(path, {"é": [2]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"é": [2]}
    assert files.read_json(path) == {"é": [2]}
    assert [entry.name for entry in path.parent.iterdir()] == ["b.json"]


def test_a_folder_that_takes_no_file_is_told_before_the_work(tmp_path: Path) -> None:
    files.check_writable(tmp_path / "new" / "deep" / "x.json")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "x.json"
    with pytest.raises(NotADirectoryError) as caught:
        files.check_writable(path)
    assert caught.value.filename == str(path)


@pytest.mark.parametrize("failing", ["fsync", "rename"])
def test_a_failing_write_keeps_the_old_content_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "x"
    files.write_bytes_atomic(path, b"old")

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    if failing == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        files.write_bytes_atomic(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_a_kill_in_the_middle_leaves_the_old_or_the_new_content(tmp_path: Path) -> None:
    path = tmp_path / "x"
    size = 4_000_000
    code = (
        "import sys, itertools, pathlib\n"
        "from madkit.core.files import write_bytes_atomic\n"
        "for n in itertools.count():\n"
        f"    write_bytes_atomic(pathlib.Path(sys.argv[1]), bytes([n % 256]) * {size})\n"
        "    print(n, flush=True)\n"
    )
    for delay in (0.001, 0.004, 0.007):
        with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(delay)
            process.kill()
        content = path.read_bytes()
        assert content == content[:1] * size


def test_json_has_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        files.write_json_atomic(tmp_path / "x.json", {"loss": float("nan")})
    with pytest.raises(ValueError, match="Out of range float"):
        files.append_jsonl(tmp_path / "x.jsonl", {"loss": float("inf")})
    assert list(tmp_path.iterdir()) == []


def test_broken_json_is_named_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(NotFoundError, match=r"x\.json does not exist"):
        files.read_json(path)
    path.write_text('{"a": 1,\n"b": }')
    with pytest.raises(DataError, match=r"x\.json is not valid JSON \(line 2, column 6"):
        files.read_json(path)
    path.write_bytes(b'"\xff"')
    with pytest.raises(DataError, match="not UTF-8"):
        files.read_json(path)


def test_a_torn_last_line_is_dropped_and_then_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    files.append_jsonl(path, {"step": 1})
    files.append_jsonl(path, {"step": 2})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 3, "lo')
    assert files.read_jsonl(path) == [{"step": 1}, {"step": 2}]
    files.append_jsonl(path, {"step": 3})
    assert files.read_jsonl(path) == [{"step": 1}, {"step": 2}, {"step": 3}]
    assert path.read_bytes() == whole + b'{"step": 3}\n'


@given(rows=st.lists(st.dictionaries(st.text(), st.text() | st.integers()), max_size=4), data=st.data())
def test_every_cut_of_a_journal_reads_as_its_whole_lines(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("journal") / "j.jsonl"
    ends = [0]
    for row in rows:
        files.append_jsonl(path, row)
        ends.append(path.stat().st_size)
    path.touch()
    cut = data.draw(st.integers(0, ends[-1]))
    os.truncate(path, cut)
    whole = sum(1 for end in ends[1:] if end <= cut)
    assert files.read_jsonl(path) == rows[:whole]
    files.append_jsonl(path, {"next": 1})
    assert files.read_jsonl(path) == [*rows[:whole], {"next": 1}]


def test_a_torn_line_longer_than_one_block_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    files.append_jsonl(path, {"a": 1})
    with path.open("ab") as file:
        file.write(b"x" * 200_000)
    files.append_jsonl(path, {"a": 2})
    assert files.read_jsonl(path) == [{"a": 1}, {"a": 2}]
    path.write_bytes(b"x" * 200_000)
    files.append_jsonl(path, {"a": 3})
    assert files.read_jsonl(path) == [{"a": 3}]


def test_a_broken_line_inside_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(DataError, match=r"x\.jsonl, line 2: not valid JSON"):
        files.read_jsonl(path)
    path.write_text("[1]\n")
    with pytest.raises(DataError, match="line 1: not a JSON object"):
        files.read_jsonl(path)
    with pytest.raises(NotFoundError):
        files.read_jsonl(tmp_path / "absent.jsonl")


def test_digests(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert files.sha256_file(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(NotFoundError):
        files.sha256_file(tmp_path / "absent")
    text = '{"a":"é","b":[1,2.5,null]}'
    assert files.canonical_json({"b": (1, 2.5, None), "a": "é"}) == text
    assert (
        files.digest_of({"b": [np.int64(1), np.float64(2.5), None], "a": "é"})
        == (hashlib.sha256(text.encode()).hexdigest()[:16])
    )
    assert files.canonical_json([Path("a/b"), {"z", "y"}]) == '["a/b",["y","z"]]'
    with pytest.raises(TypeError, match="object has no canonical JSON form"):
        files.digest_of(object())


HOLD = (
    "import sys, time, pathlib\n"
    "from madkit.core.files import FileLock\n"
    "FileLock(pathlib.Path(sys.argv[1])).acquire()\n"
    "print('held', flush=True)\n"
    "time.sleep(60)\n"
)


def test_a_held_lock_names_its_holder_and_a_killed_holder_loses_it(tmp_path: Path) -> None:
    path = tmp_path / "store" / ".lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(CacheError, match=rf"the cache is in use by process {process.pid} on ") as caught:
            FileLock(path, error=CacheError, what="the cache").acquire()
        assert caught.value.hint
        process.send_signal(signal.SIGKILL)
    assert path.exists(), "a killed holder cannot clean up"
    with FileLock(path):
        assert f"process {os.getpid()} on " in path.read_text()
    assert not path.exists()


def test_a_lock_with_patience_waits_for_its_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    held = FileLock(tmp_path / ".lock")
    held.acquire()
    began = time.monotonic()
    release = threading.Timer(0.3, held.release)
    release.start()
    with FileLock(tmp_path / ".lock", patience_s=60):
        assert time.monotonic() - began >= 0.3
    release.join()
    assert capsys.readouterr().err == ""  # nobody has noticed
    monkeypatch.setattr(files, "_LOCK_QUIET_S", 0.1)
    held.acquire()
    began = time.monotonic()
    with pytest.raises(RunError, match="is in use"):
        FileLock(tmp_path / ".lock", patience_s=0.2).acquire()
    assert time.monotonic() - began >= 0.2
    assert capsys.readouterr().err.count(f"Waiting: {tmp_path} is in use by process {os.getpid()} on ") == 1
    held.release()


def test_a_lock_excludes_this_process_too_and_is_given_back(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with FileLock(path), pytest.raises(RunError, match="is in use"):
        FileLock(path).acquire()
    lock = FileLock(path)
    with pytest.raises(ZeroDivisionError), lock:
        raise ZeroDivisionError
    with lock:
        pass
    lock.release()


def test_a_lock_file_removed_between_open_and_lock_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ".lock"
    real = files.fcntl.flock
    removed = []

    def flock(descriptor: int, operation: int) -> None:
        real(descriptor, operation)
        if not removed:
            removed.append(True)
            path.unlink()

    monkeypatch.setattr(files.fcntl, "flock", flock)
    with FileLock(path):
        assert removed
        assert path.exists()
