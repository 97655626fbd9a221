"""What the README types works: its Python here, its three stages in the slow test, its demo in tests/demo."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == language]


def test_the_two_commands_are_there() -> None:
    typed = [block.strip() for block in blocks("")]
    assert "pip install -e . && madkit demo" in typed
    assert "pip install -e '.[test]' && pytest" in typed


def test_python_blocks_run() -> None:
    found = blocks("python")
    assert found
    for block in found:
        exec(compile(block, "README.md", "exec"), {})


def test_pictures_exist() -> None:
    for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (Path(__file__).parents[1] / path).is_file(), path


@pytest.mark.slow
def test_the_three_stages_run_one_after_the_other(tmp_path: Path) -> None:
    typed = next(block for block in blocks("") if block.startswith("madkit extract"))
    documents = []
    for line in typed.strip().splitlines():
        command = [sys.executable, "-m", *shlex.split(line), "--json", "--workspace", str(tmp_path)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=1800)
        documents.append(json.loads(done.stdout))
    stores, run, results = documents
    assert len(stores["stores"]) == 3
    assert Path(run["run"]).is_dir()
    assert results["rows"]
