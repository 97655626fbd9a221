"""The facts about this machine are plain, true and cheap."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import typer

import madkit
from madkit.core.environment import environment


def test_facts_are_json_and_true() -> None:
    facts = environment()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["madkit"] == madkit.__version__
    assert facts["python"] == platform.python_version()
    assert facts["typer"] == typer.__version__
    assert facts["cpus"] >= 1


def test_asking_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom madkit.core.environment import environment\nenvironment()\n"
        "print([m for m in ('torch', 'numpy', 'transformers', 'zarr') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
