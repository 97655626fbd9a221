"""Where the workspace is."""

from __future__ import annotations

from pathlib import Path

import pytest

from madkit.core.errors import NotFoundError, UsageProblem
from madkit.core.workspace import Workspace


def test_the_option_beats_the_variable_which_beats_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Workspace.at(None).root == Path("madkit-workspace")
    monkeypatch.setenv("MADKIT_WORKSPACE", "")
    assert Workspace.at().root == Path("madkit-workspace")
    monkeypatch.setenv("MADKIT_WORKSPACE", str(tmp_path / "v"))
    assert Workspace.at().root == tmp_path / "v"
    assert Workspace.at("~/w").root == Path.home() / "w"
    workspace = Workspace.at(tmp_path / "o")
    assert [workspace.data, workspace.cache, workspace.runs, workspace.reports] == [
        tmp_path / "o" / name for name in ("data", "cache", "runs", "reports")
    ]
    assert list(tmp_path.iterdir()) == [], "looking creates nothing"


def test_a_file_or_nothing_in_its_place_is_answered(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    with pytest.raises(UsageProblem, match="is a file"):
        Workspace.at(tmp_path / "f")
    with pytest.raises(NotFoundError, match=r"no workspace at .*absent") as caught:
        Workspace.at(tmp_path / "absent").require()
    assert "--workspace" in (caught.value.hint or "")
    assert Workspace.at(tmp_path).require().root == tmp_path
