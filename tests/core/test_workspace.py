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


def test_caches_may_lie_in_another_folder_or_at_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MADKIT_CACHE_DIR", str(tmp_path / "mirrors"))
    assert Workspace.at(tmp_path).cache == tmp_path / "cache"
    assert Workspace.at(tmp_path).cache_url is None
    shared = Workspace.at(tmp_path, cache=tmp_path / "shared")
    assert (shared.cache, shared.cache_url) == (tmp_path / "shared", None)
    monkeypatch.setenv("MADKIT_CACHE", "s3://bucket/caches/")
    there = Workspace.at(tmp_path)
    assert there.cache_url == "s3://bucket/caches"
    assert there.cache.parent == tmp_path / "mirrors" / "mirrors"
    assert there.cache.name.startswith("s3-bucket-caches-")
    assert there.cache != Workspace.at(tmp_path, cache="s3://bucket/other").cache
    assert Workspace.at(tmp_path, cache=tmp_path / "shared") == shared  # the option beats the variable
    monkeypatch.delenv("MADKIT_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert there.cache.parent == tmp_path / "user" / "madkit" / "mirrors"


def test_caches_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="is a URL"):
        Workspace.at(Path("s3://bucket/workspace"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageProblem, match=r"The cache folder .* is a file"):
        Workspace.at(tmp_path, cache=tmp_path / "file")
    with pytest.raises(NotFoundError, match="There is no cache folder at"):
        Workspace.at(tmp_path, cache=tmp_path / "none").require_cache()
    assert Workspace.at(tmp_path / "none", cache="s3://bucket").require_cache().cache_url == "s3://bucket"
    with pytest.raises(NotFoundError, match="There is no workspace"):
        Workspace.at(tmp_path / "none").require_cache()


def test_options_are_what_a_command_line_would_not_take_by_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MADKIT_WORKSPACE", raising=False)
    monkeypatch.delenv("MADKIT_CACHE", raising=False)
    assert Workspace.at().options() == []
    assert Workspace.at("other", cache="s3://bucket/caches").options() == [
        "--workspace", "other", "--cache", "s3://bucket/caches",
    ]  # fmt: skip
    monkeypatch.setenv("MADKIT_WORKSPACE", "other")
    monkeypatch.setenv("MADKIT_CACHE", "s3://bucket/caches/")
    assert Workspace.at().options() == []
    (tmp_path / "other").write_text("")  # it cannot be taken, and whoever works elsewhere is not stopped by that
    assert Workspace(tmp_path).options() == ["--workspace", str(tmp_path)]
