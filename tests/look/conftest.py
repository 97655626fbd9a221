"""A cache to look at, made once for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from madkit.core.workspace import Workspace
from madkit.extract.stage import extract


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path) -> tuple[Workspace, Path]:
    """A workspace with a small part of the embedded VCR, extracted by a random teacher."""
    workspace = Workspace.at(tmp_path_factory.mktemp("look"))
    report = extract(workspace, f"local:{tiny_teacher}", ["vcr"], part="tiny")[0]
    return workspace, report.path
