"""What shells are told: commands, options, and the names behind them, without importing anything heavy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from madkit.cli.commands import COMMANDS
from madkit.cli.main import main
from madkit.distill.settings.arms import arm_names
from madkit.distill.settings.recipes import recipe_names
from madkit.evaluate import protocol
from madkit.teachers.known import KNOWN

from .test_app import LIGHTEST


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "ws"
    for name in (
        "data/my-task",
        "data/.half-made",
        "runs/mini-vcr/mini-uniter-mad-1pct-s0-aa",
        "runs/mini-vcr/pre-phase-mini-uniter-bb",
        "cache/mini-mini-vcr-00",
        "adapters/mini-mine",
    ):
        (root / name).mkdir(parents=True)
        (root / name / "manifest.json").write_text("{}")
    (root / "reports" / "low-shot").mkdir(parents=True)
    (root / "reports" / "low-shot" / "results.json").write_text(json.dumps({}))
    monkeypatch.setenv("MADKIT_WORKSPACE", str(root))
    return root


def completed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str) -> list[str]:
    """What bash is offered for the end of a line."""
    words = line.split(" ")
    monkeypatch.setenv("_MADKIT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    assert main([]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out.split()


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("madkit ", list(COMMANDS)),
        ("madkit ev", ["evaluate"]),
        ("madkit cache ", ["list", "info", "show", "verify", "repair", "prune"]),
        ("madkit data regions ", ["formats", "add", "make", "check", "convert"]),
        ("madkit distill --arm ", sorted(arm_names())),
        ("madkit distill --arm finetune,kd-a", ["finetune,kd-all"]),
        ("madkit distill --task ", ["vcr", "snli-ve", "vqa", "my-task"]),
        ("madkit data check my", ["my-task"]),
        ("madkit extract --teacher dinov2-vit-l", ["dinov2-vit-l14"]),
        ("madkit adapt --teacher ", list(KNOWN)),
        ("madkit teachers show ", list(KNOWN)),
        ("madkit evaluate --protocol ", sorted(protocol.names())),
        ("madkit distill --recipe ", ["paper", *sorted(recipe_names())]),
        ("madkit distill --student mini-ux", []),
        ("madkit students show mini-un", ["mini-uniter"]),
        ("madkit predict ", ["mini-uniter-mad-1pct-s0-aa"]),
        ("madkit export ", ["mini-uniter-mad-1pct-s0-aa"]),
        ("madkit compare mini-uniter-mad-1pct-s0-aa mini", ["mini-uniter-mad-1pct-s0-aa"]),
        ("madkit cache verify ", ["mini-mini-vcr-00"]),
        ("madkit cache prune --store ", ["mini-mini-vcr-00"]),
        ("madkit extract --adapter ", ["mini-mine"]),
        ("madkit report ", ["low-shot"]),
        ("madkit report --format l", ["latex"]),
        ("madkit evaluate --device cu", ["cuda"]),
        ("madkit distill --task vcr --shots 1", ["1pct", "10pct"]),
        ("madkit config show kd-a", ["kd-all"]),
        ("madkit distill --config ", []),
        ("madkit export --pu", ["--push", "--public"]),
    ],
)
def test_names_are_offered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str, wanted: list[str]
) -> None:
    assert completed(monkeypatch, capsys, line) == wanted


def test_the_workspace_on_the_line_counts(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MADKIT_WORKSPACE", str(workspace / "nowhere"))
    assert completed(monkeypatch, capsys, "madkit predict ") == []
    line = f"madkit predict --workspace {workspace} mini"
    assert completed(monkeypatch, capsys, line) == ["mini-uniter-mad-1pct-s0-aa"]


def test_a_workspace_that_cannot_be_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("MADKIT_WORKSPACE", str(tmp_path / "file"))
    assert completed(monkeypatch, capsys, "madkit predict ") == []


LINES = (
    "madkit ",
    "madkit distill --arm ",
    "madkit distill --student ",
    "madkit extract --teacher ",
    "madkit evaluate --protocol ",
    "madkit data check ",
    "madkit cache verify ",
    "madkit predict ",
    "madkit config show ",
    "madkit extract --task vcr --workers 4 --workspace x --dec",
)


def test_nothing_heavy_is_imported_for_it() -> None:
    code = (
        "import os, sys\nfrom madkit.cli.main import main\ncodes = []\n"
        f"for line in {LINES!r}:\n"
        "    os.environ |= {'_MADKIT_COMPLETE': 'complete_bash', 'COMP_WORDS': line}\n"
        "    os.environ['COMP_CWORD'] = str(len(line.split(' ')) - 1)\n"
        "    codes.append(main([]))\n"
        f"print(set(codes), [m for m in {LIGHTEST!r} if m in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr == "{0} []\n"
    assert {"distill", "mad", "uniter-base", "clip-vit-l14", "low-shot", "snli-ve"} <= set(done.stdout.split())


@pytest.mark.usefixtures("workspace")
def test_bash_takes_the_script_and_completes_with_it(tmp_path: Path) -> None:
    script = subprocess.run(
        [sys.executable, "-m", "madkit", "--show-completion", "bash"],
        capture_output=True, text=True, timeout=60, check=True,
        env={**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
    ).stdout  # fmt: skip
    program = tmp_path / "madkit"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m madkit "$@"\n')
    program.chmod(0o755)
    typed = 'COMP_WORDS=(madkit distill --arm mad-a); COMP_CWORD=3; _madkit_completion madkit; echo "${COMPREPLY[@]}"'
    done = subprocess.run(
        ["bash", "--norc", "-c", f"{script}\n{typed}"], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "mad-affinity" in done.stdout.split()


def test_completion_is_installed_into_the_home_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "madkit", "--install-completion", "bash"], capture_output=True, text=True, timeout=60,
        env={**os.environ, "HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "_madkit_completion" in (tmp_path / ".bash_completions" / "madkit.sh").read_text()
    assert "madkit.sh" in (tmp_path / ".bashrc").read_text()
