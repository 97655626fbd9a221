"""Signals and kills: an extraction that was stopped goes on, and ends with the bytes of one that was not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from madkit.cache import verify_cache
from madkit.core.errors import StoppedResumable
from madkit.core.interrupts import StopSignals
from madkit.core.workspace import Workspace
from madkit.extract import stage
from madkit.extract.stage import extract

SCRIPT = """
import os, random, signal, sys, time
from pathlib import Path
from madkit.core.workspace import Workspace
import madkit.teachers.clip_pair  # imported once here, not in every child
from madkit.extract import pipeline
from madkit.extract.stage import extract

os.fsync = lambda descriptor: None  # a kill leaves the page cache alone; only a power cut would need the sync
workspace, teacher, kills = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
chance = random.Random(1)
for number in range(kills):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        real = pipeline.StoreWriter.write_unit
        def announced(self, *unit):
            os.write(write, b"u")
            real(self, *unit)
        pipeline.StoreWriter.write_unit = announced
        extract(Workspace(workspace), teacher, ["snli-ve"], device="cpu", workers=1, shard_mb=0.0005)
        os._exit(0)
    os.close(write)
    begun = len(os.read(read, 1))
    while begun < 2 + number % 3 and os.read(read, 1):  # killed in the middle of some unit
        begun += 1
    time.sleep(chance.uniform(0, 0.003))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(read)
    (journal,) = (workspace / "cache").glob("*/journal.jsonl")
    print(begun, journal.read_bytes().count(b"\\n"), os.WIFSIGNALED(status), flush=True)
"""


def payload(store: Path) -> dict[str, bytes]:
    files = json.loads((store / "manifest.json").read_text())["files"]
    return {name: (store / name).read_bytes() for name in files}


def test_sigkill_at_random_moments_then_resume(workspace: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(workspace, whole)
    (expected,) = extract(Workspace(whole), f"local:{tiny_teacher}", ["snli-ve"], device="cpu", shard_mb=0.0005)
    command = [sys.executable, "-c", SCRIPT, str(workspace), f"local:{tiny_teacher}", "5"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    before = 0
    for line in done.stdout.splitlines():
        begun, journalled, killed = line.split()
        assert killed == "True"
        assert int(journalled) >= before + int(begun) - 1  # the unit in work is all that a kill can cost
        before = int(journalled)
    (report,) = extract(Workspace(workspace), f"local:{tiny_teacher}", ["snli-ve"], device="cpu", shard_mb=0.0005)
    assert report.skipped > 0
    assert verify_cache(report.path).ok
    assert payload(report.path) == payload(expected.path)


def test_a_signal_finishes_the_shard_and_says_how_to_go_on(
    workspace: Path, tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM ends in exit code 75, Ctrl-C in 130, and what was begun is in the journal."""
    place, name = Workspace(workspace), f"local:{tiny_teacher}"
    real = stage.encode_images

    def signalling(number: int) -> object:
        def encode(*arguments: object) -> object:
            os.kill(os.getpid(), number)
            return real(*arguments)

        return encode

    monkeypatch.setattr(stage, "encode_images", signalling(signal.SIGTERM))
    with pytest.raises(StoppedResumable) as stopped:
        extract(place, name, ["snli-ve"], device="cpu", shard_mb=0.002)
    assert stopped.value.exit_code == 75
    monkeypatch.setattr(stage, "encode_images", signalling(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        extract(place, name, ["snli-ve"], device="cpu", shard_mb=0.002)
    (journal,) = (workspace / "cache").glob("*/journal.jsonl")
    assert journal.read_bytes().count(b"\n") == 2
    monkeypatch.setattr(stage, "encode_images", real)
    (report,) = extract(place, name, ["snli-ve"], device="cpu", shard_mb=0.002)
    assert 0 < report.skipped < report.items
    assert not list(report.path.glob(".lock"))


def test_signals_are_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
