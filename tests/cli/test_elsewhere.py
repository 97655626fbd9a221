"""Where a workspace was named on the command line, suggested commands name it, too."""

from __future__ import annotations

import pytest

from madkit.cli import elsewhere
from madkit.cli.main import main
from madkit.core.console import info, warn
from madkit.core.workspace import CACHE_VARIABLE, VARIABLE


@pytest.fixture(autouse=True)
def given(monkeypatch):
    monkeypatch.setattr(elsewhere, "_given", {"--workspace": "/a place", "--cache": "s3://b/c"})


W, C = "--workspace '/a place'", "--cache s3://b/c"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("madkit distill --task vcr --shots 1pct", f"madkit distill {W} {C} --task vcr --shots 1pct"),
        ("madkit adapt --teacher mini", f"madkit adapt {W} --teacher mini"),
        (
            "madkit data regions add vcr PATH, with all files",
            f"madkit data regions add {W} vcr PATH, with all files",
        ),
        (
            "remove it: madkit cache prune --store x --yes, then madkit extract",
            f"remove it: madkit cache prune {W} {C} --store x --yes, then madkit extract {W} {C}",
        ),
        ("madkit cache verify --cache file:///x", f"madkit cache verify {W} --cache file:///x"),
        ("madkit evaluate --workspace here", f"madkit evaluate {C} --workspace here"),
        ("rm x && madkit evaluate", f"rm x && madkit evaluate {W} {C}"),
        (
            "accelerate launch --num_processes 2 -m madkit evaluate --protocol full",
            f"accelerate launch --num_processes 2 -m madkit evaluate {W} {C} --protocol full",
        ),
        ("the names that `madkit students list` prints", "the names that `madkit students list` prints"),
        ("please report it with the output of: madkit env", "please report it with the output of: madkit env"),
        ("type its madkit distill command again", "type its madkit distill command again"),
        ("another version of madkit wrote it, madkit data/x", "another version of madkit wrote it, madkit data/x"),
        ("/home/madkit data", "/home/madkit data"),
        ("run madkit evaluate again", f"run madkit evaluate {W} {C} again"),
        ("no command at all", "no command at all"),
    ],
)
def test_every_command_that_takes_the_places_and_lacks_them_gets_them(text, said):
    assert elsewhere.placed(text) == said


def test_hints_of_errors_and_results_name_a_workspace_that_was_typed(tmp_path, monkeypatch, capsys):
    none = tmp_path / "none here"
    monkeypatch.delenv(VARIABLE, raising=False)
    assert main(["data", "list", "--workspace", str(none)]) == 1
    assert f"madkit extract --workspace '{none}' --teacher mini" in capsys.readouterr().err
    none.mkdir()
    assert main(["data", "list", "--workspace", str(none)]) == 0
    assert f"madkit data import --workspace '{none}' NAME PATH" in capsys.readouterr().out
    (tmp_path / "caches").mkdir()
    assert main(["cache", "verify", "--cache", str(tmp_path / "caches"), "--workspace", str(none)]) == 1
    assert f"madkit extract --cache {tmp_path / 'caches'} --workspace '{none}'" in capsys.readouterr().err


def test_a_place_from_the_environment_needs_no_saying(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none"))
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "caches"))
    assert main(["data", "list"]) == 1
    assert "make one: madkit extract --teacher mini\n" in capsys.readouterr().err


def test_messages_on_the_way_are_placed_and_those_of_a_library_are_not(tmp_path, monkeypatch, capsys):
    def told(*_, **__):
        info("to change that: madkit adapt --teacher mini")
        warn("no results yet: madkit evaluate")
        return []

    monkeypatch.setattr("madkit.tasks.describe.dataset_rows", told)
    assert main(["data", "list", "--workspace", str(tmp_path), "--json"]) == 0
    err = capsys.readouterr().err
    assert f"madkit adapt --workspace {tmp_path} --teacher mini" in err
    assert f"Warning: no results yet: madkit evaluate --workspace {tmp_path}" in err
    told()
    assert "to change that: madkit adapt --teacher mini\n" in capsys.readouterr().err
