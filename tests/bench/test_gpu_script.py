"""The script that takes the figures of a GPU, without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / ".ci" / "gpu"


def run(folder: Path, *parts: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "DEVICE": "cpu", "TINY": "1", "MADKIT": f"{sys.executable} -m madkit"}
    return subprocess.run([SCRIPT, folder, *parts], env=env, capture_output=True, text=True, timeout=120, check=False)


def test_a_part_writes_its_document(tmp_path: Path) -> None:
    done = run(tmp_path / "new", "step")
    assert done.returncode == 0, done.stdout
    found = json.loads((tmp_path / "new" / "step.json").read_text())
    assert (found["student"], found["device"]) == ("mini-uniter", "cpu")


def test_a_part_that_fails_is_said(tmp_path: Path) -> None:
    (tmp_path / "text.json").mkdir()  # cannot be written
    done = run(tmp_path, "text", "nothing")
    assert done.returncode == 2
    assert "text: failed" in done.stdout
    assert "no part 'nothing'" in done.stderr
