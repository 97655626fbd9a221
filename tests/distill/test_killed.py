"""The command itself, killed in the pre-phase and stopped while fine-tuning, ends like an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from madkit.cli.main import main
from madkit.core.files import read_jsonl

SETTINGS = [
    "optim.steps=30", "optim.batch_size=4", "eval.limit=8", "eval.every=12", "checkpoint.every=4",
    "pre_phase.steps=30", "pre_phase.batch_size=4", "pre_phase.eval_every=10",
]  # fmt: skip


def arguments(workspace, student: Path) -> list[str]:
    sets = [part for pair in SETTINGS for part in ("--set", pair)]
    return [
        "distill", "--task", "vcr", "--shots", "20", "--arm", "mad-affinity", "--student", str(student),
        "--seed", "4", "--threads", "1", "--workspace", str(workspace.root), "--json", *sets,
    ]  # fmt: skip


def stop_when(command: list[str], folder: Path, pattern: str, lines: int, number: signal.Signals) -> int:
    """Run the command, send it a signal once the journal has so many lines, and return its exit code."""
    process = subprocess.Popen([sys.executable, "-m", "madkit", *command], stdout=subprocess.PIPE, env=os.environ)
    deadline = time.monotonic() + 400
    while process.poll() is None and time.monotonic() < deadline:
        journals = list(folder.glob(pattern))
        if journals and journals[0].read_bytes().count(b"\n") >= lines:
            process.send_signal(number)
            break
        time.sleep(0.01)
    process.communicate(timeout=400)
    return process.returncode


def journal(workspace, pattern: str) -> list[dict]:
    (path,) = workspace.runs.glob(pattern)
    return read_jsonl(path)


@pytest.mark.slow
def test_killed_and_stopped_runs_end_like_an_undisturbed_one(workspace, benchmark, student, tmp_path, capsys):
    phase, training = "mini-vcr/pre-phase-*/metrics.jsonl", "mini-vcr/*mad-affinity*/metrics.jsonl"
    chance = random.Random(os.environ.get("PYTEST_XDIST_TESTRUNUID", "0"))  # other steps on every run of the suite
    command = arguments(workspace, student)
    assert stop_when(command, workspace.runs, phase, chance.randint(2, 20), signal.SIGKILL) == -signal.SIGKILL
    assert not list(workspace.runs.glob("mini-vcr/pre-phase-*/student"))
    assert stop_when(command, workspace.runs, training, chance.randint(2, 20), signal.SIGTERM) == 75
    stopped = journal(workspace, training)
    (manifest,) = workspace.runs.glob("mini-vcr/*mad-affinity*/manifest.json")
    assert json.loads(manifest.read_bytes())["status"] == "running"
    assert len([row for row in stopped if "loss" in row]) < 30

    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["skipped"] is False
    assert Path(report["run"]) == manifest.parent
    assert json.loads(manifest.read_bytes())["resumed_from"] > 0

    calm = type(workspace).at(tmp_path / "calm")
    calm.root.mkdir()
    (calm.root / "data").symlink_to(benchmark[0].data)
    (calm.root / "cache").symlink_to(benchmark[0].cache)
    assert main(arguments(calm, student)) == 0
    undisturbed = json.loads(capsys.readouterr().out)
    assert undisturbed["dev"] == report["dev"]
    for pattern in (phase, training):
        assert journal(workspace, pattern) == journal(calm, pattern)
    assert [row["step"] for row in journal(calm, training) if "loss" in row] == list(range(1, 31))

    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] is True
    assert main(command[: -1 - len(SETTINGS) * 2] + command[-len(SETTINGS) * 2 :]) == 0
    out = capsys.readouterr().out
    assert "Nothing to do" in out


def test_the_command_answers_mistakes_with_a_sentence_and_a_code(workspace, student, capsys):
    for extra, code, text in (
        (["--arm", "madd"], 2, "Did you mean 'mad'?"),
        (["--arm", "mad", "--set", "mad.k_tex=3"], 1, "Did you mean 'k_text'?"),
        (["--set", "nonsense"], 2, "is not key=value"),
        (["--arm", "mad", "--config", "x.yaml"], 2, "give one of them"),
        (["--shots", "many"], 2, "'many'"),
        (["--arm", "mad", "--teacher", "mini"], 1, " --teacher mini --task vcr"),
    ):
        base = ["distill", "--task", "vcr", "--student", str(student), "--workspace", str(workspace.root)]
        assert main([*base, *extra]) == code, extra
        captured = capsys.readouterr()
        assert text in captured.err
        assert captured.out == ""
        assert "Traceback" not in captured.err
