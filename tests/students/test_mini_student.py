"""The recipe that made the shipped student still runs, and what it declares holds."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from madkit.students.heads import HeadSpec
from madkit.students.load import load_student, student_folder
from madkit.tasks.mini.concepts import categories, concepts, members, seen_in_pretraining, unseen_in_pretraining

ROOT = Path(__file__).parents[2]


def test_the_recipe_still_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = ROOT / "examples" / "pretrain_mini_student.py"
    command = [str(script), "--steps", "2", "--scenes", "4", "--pool", "12"]
    command += ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    monkeypatch.setattr(sys, "argv", command)
    runpy.run_path(str(script), run_name="__main__")  # in this process: torch is loaded here already
    shipped = load_student("mini-uniter", head=HeadSpec("multiple-choice"))
    made = load_student(tmp_path / "out", head=HeadSpec("multiple-choice"))
    assert made.encoder.config == shipped.encoder.config
    assert (tmp_path / "out" / "vocab.txt").read_text() == (student_folder("mini-uniter") / "vocab.txt").read_text()


def test_seen_concepts_are_a_declared_share_of_every_category() -> None:
    seen = seen_in_pretraining()
    assert len(seen) == 56
    assert set(unseen_in_pretraining()) == set(range(len(concepts()))) - seen
    for category in categories():
        assert 0 < len(seen & set(members(category))) < len(members(category))
