"""An evaluation that is killed between any two of its writes goes on where it was, and says what it would have said."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from madkit.core.files import read_jsonl
from madkit.core.workspace import Workspace
from madkit.evaluate.stage import evaluate

# `madkit ARGUMENTS` that dies at the N-th time it writes to a run: python -c KILLED N ARGUMENTS
KILLED = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from madkit.evaluate import cells
from madkit.cli.main import main
left = int(sys.argv[1])
def dying(write):
    def counted(*given, **more):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return write(*given, **more)
    return counted
for name in ("write_text_atomic", "append_jsonl"):
    setattr(cells, name, dying(getattr(cells, name)))
sys.exit(main(sys.argv[2:]))
"""


# writes of a run: predictions of one suite, their row, predictions of the other, their row
@pytest.mark.parametrize("write", [2, *(pytest.param(write, marks=pytest.mark.slow) for write in (1, 3, 4))])
@pytest.mark.parametrize("tiny", ["snli-ve"], indirect=True)
def test_a_kill_costs_one_suite_at_most(tiny, tmp_path: Path, write: int) -> None:
    left_out = shutil.ignore_patterns("predictions", "*.jsonl", ".*.lock")
    roots = [tmp_path / "whole", tmp_path / "killed"]
    for root in roots:
        shutil.copytree(tiny.workspace.root, root, symlinks=True, ignore=left_out)
    whole, killed = (replace(tiny, workspace=Workspace.at(root), run=root / tiny.run.relative_to(tiny.workspace.root))
                     for root in roots)  # fmt: skip
    protocol = tmp_path / "two.yaml"
    protocol.write_text("suites: [test, dev]\nresamples: 100\n")
    expected = evaluate(whole.workspace, str(protocol)).document()

    command = ["evaluate", "--protocol", str(protocol), "--device", "cpu", "--workspace", str(killed.workspace.root)]
    done = subprocess.run([sys.executable, "-c", KILLED, str(write), *command], capture_output=True, timeout=300)
    assert done.returncode == -signal.SIGKILL
    rows = read_jsonl(killed.run / "results.jsonl") if (killed.run / "results.jsonl").exists() else []
    assert len(rows) == (write - 1) // 2
    kept = {file: file.stat().st_mtime_ns for file in (killed.run / "predictions").glob("*.jsonl")}
    assert len(kept) == write // 2
    found = evaluate(killed.workspace, str(protocol)).document()

    same = json.dumps({**found, **{key: expected[key] for key in ("created", "environment")}})
    assert json.loads(same.replace(str(roots[1]), str(roots[0]))) == json.loads(json.dumps(expected))
    again = read_jsonl(killed.run / "results.jsonl")
    assert [row["suite"] for row in again] == [row["suite"] for row in read_jsonl(whole.run / "results.jsonl")]
    assert again[: len(rows)] == rows
    vouched = {row["suite"] for row in rows}
    for file, written in kept.items():  # answers that no row vouches for are given again
        assert (file.stat().st_mtime_ns == written) == (file.stem in vouched)
        assert file.read_bytes() == (whole.run / "predictions" / file.name).read_bytes()
