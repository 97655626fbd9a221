"""The example of a task of one's own, from its pictures to its table, at the smallest size."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from madkit.cli.main import main

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_task.py"


def test_the_example_runs_to_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("custom_task", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    codes = []
    # the commands in this process: six times the start of Python would be most of the test
    monkeypatch.setattr(example, "madkit", lambda *words: codes.append(main(list(words))))
    arguments = ["--out", str(tmp_path / "out"), "--pictures", "16", "--shots", "8", "--steps", "2"]
    monkeypatch.setattr(sys, "argv", ["custom_task.py", *arguments])
    example.main()
    assert codes == [0] * 6
    table = json.loads((tmp_path / "out" / "workspace" / "reports" / "full" / "results.json").read_text())
    rows = [row for row in table["rows"] if row["metric"] == "accuracy"]
    assert {(row["task"], row["arm"], row["suite"]) for row in rows} == {
        ("shapes", "finetune", "test"),
        ("shapes", "mad", "test"),
    }
    assert {row["n_examples"] for row in rows} == {8}
    assert "shapes" in capsys.readouterr().out
