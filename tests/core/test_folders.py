"""Folders that take their place in one step, and what a kill between two steps leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from madkit.core import folders
from madkit.core.folders import replacing, visible


def fill(home: Path, text: str) -> None:
    with replacing(home) as folder:
        (folder / "content").write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("at_once", [True, False])
def test_a_folder_takes_the_place_of_an_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    if not at_once:
        monkeypatch.setattr(folders, "_exchanged", lambda one, other: False)
    home = tmp_path / "deep" / "data"
    fill(home, "old")
    (home / "more").mkdir()
    fill(home, "new")
    assert (home / "content").read_text() == "new"
    assert names(home) == ["content"]
    assert names(tmp_path / "deep") == ["data"]


def test_a_block_that_fails_leaves_everything_as_it_was(tmp_path: Path) -> None:
    home = tmp_path / "data"
    for before in ([], ["data"]):
        with pytest.raises(ValueError, match="wrong line"), replacing(home) as folder:
            (folder / "content").write_text("half")
            raise ValueError("wrong line")
        assert names(tmp_path) == before
        fill(home, "whole")
    assert (home / "content").read_text() == "whole"


def test_what_killed_writers_left_is_cleared_away(tmp_path: Path) -> None:
    for name in (".data.0123456789ab.new", ".data.99-0123abcd.new", ".data-more.0123456789ab.new", ".data.x.ab12.new"):
        (tmp_path / name).mkdir()
    fill(tmp_path / "data", "whole")
    # those of another folder, whose writer may be at work, stay
    assert names(tmp_path) == [".data-more.0123456789ab.new", ".data.x.ab12.new", "data"]


def test_a_folder_lost_between_two_renames_comes_back(tmp_path: Path) -> None:
    home = tmp_path / "data"
    fill(home, "old")
    home.rename(tmp_path / ".data.0123456789ab.old")
    (tmp_path / ".data.ba9876543210.new").mkdir()
    with replacing(home):
        assert (home / "content").read_text() == "old"
    assert names(tmp_path) == ["data"]


def test_folders_that_are_being_made_are_not_seen(tmp_path: Path) -> None:
    for name in ("b", "a", ".c.0123456789ab.new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
    assert visible(tmp_path, "*/manifest.json") == [tmp_path / name / "manifest.json" for name in ("a", "b")]
    assert visible(tmp_path / "gone", "*") == []
