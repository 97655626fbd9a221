"""The shortcut rules on imported data: they read the owner's lines again and write a suite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from madkit.core.errors import DataError, NotFoundError, UsageProblem
from madkit.core.files import read_json, read_jsonl
from madkit.shifts import SHIFTS, get_shift, make_shift
from madkit.shifts.tag_overlap import tag_overlap
from madkit.tasks.data import TaskData
from madkit.tasks.shortcuts import rule_singular

Make = Callable[..., Any]


def plural(name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Half the questions ask about a group."""
    for row in rows[::2]:
        row["question"] = ["What", "are", [1, 0], "doing", "?"]
        row["answer_choices"] = [["They", "sing"], [[0, 1], "sing"], [[2, 3], "sing"], [[0], "sings"]]
        row["answer_label"] = 1
    return rows


def test_suites_from_imported_data(make_vcr: Make) -> None:
    workspace, data = make_vcr(24, 20, plural)
    (singular,) = make_shift(workspace, data, "shortcut-singular")
    (group,) = make_shift(workspace, data, "shortcut-plural")
    data = TaskData(data.root)
    assert data.suites() == ["test", "test-shortcut-plural", "test-shortcut-singular"]
    assert (singular.counts["questions"], group.counts["questions"]) == (10, 10)

    examples = data.examples("test-shortcut-plural")
    answer = examples[0]
    assert (answer.id, answer.label) == ("val-0/answer", 1)
    assert [choice.text for choice in answer.candidates] == [
        "person and person sing",
        "They sing",
        "person and person sing",
        "person sings",
    ]
    # Wrong choices: "They" and the other group became the question's, in ascending order.
    assert [[tag.boxes for tag in choice.tags] for choice in answer.candidates] == [
        [(0,), (1,)], [], [(0,), (1,)], [(0,)],
    ]  # fmt: skip
    assert examples[1].context == (answer.context[0], answer.candidates[1])  # conditioned on the rewritten answer
    assert answer.boxes == data.examples("test")[0].boxes

    expected = rule_singular(read_jsonl(Path(data.about("test")["files"][0]["path"])))
    kept = [example for example in data.examples("test-shortcut-singular") if example.subtask == "answer"]
    assert [example.question_id for example in kept] == [row["annot_id"] for row in expected]
    for example, row in zip(kept, expected, strict=True):
        tags = [[tag.boxes[0] for tag in choice.tags] for choice in example.candidates]
        assert tags == [[t for token in c if isinstance(token, list) for t in token] for c in row["answer_choices"]]


def test_what_a_suite_says_about_itself(make_vcr: Make) -> None:
    workspace, data = make_vcr(24, 20)
    (made,) = make_shift(workspace, data, "shortcut-singular")
    manifest = read_json(made.path / "manifest.json")
    assert manifest["made_by"]["shift"] == "shortcut-singular"
    assert manifest["parent_revision"] == data.revision
    # The planted shortcut answers everything before, and nothing where the right choice lost its tag.
    assert manifest["made_by"]["tag overlap before"]["answers by tag overlap"] == 20
    assert made.counts["answers by tag overlap"] == 0
    assert made.counts["answers changed"] == 80


def test_a_finished_suite_is_not_made_again(make_vcr: Make, capsys: pytest.CaptureFixture[str]) -> None:
    workspace, data = make_vcr(24, 20)
    first = make_shift(workspace, data, "shortcut-singular")
    before = (first[0].path / "manifest.json").stat().st_mtime_ns
    again = make_shift(workspace, TaskData(data.root), "shortcut-singular")
    assert again == first
    assert (again[0].path / "manifest.json").stat().st_mtime_ns == before
    assert "nothing to make" in capsys.readouterr().err


def test_changed_and_missing_files_are_named(make_vcr: Make) -> None:
    workspace, data = make_vcr(24, 20)
    path = Path(data.about("test")["files"][0]["path"])
    content = path.read_text()
    path.write_text(content + "\n")
    with pytest.raises(DataError, match=r"val\.jsonl has changed since vcr was imported") as caught:
        make_shift(workspace, data, "shortcut-singular")
    assert caught.value.hint == "import it again: madkit data import vcr PATH"
    path.unlink()
    with pytest.raises(NotFoundError, match=r"val\.jsonl, which vcr \(test\) was imported from, is not there"):
        make_shift(workspace, data, "shortcut-singular")
    assert TaskData(data.root).suites() == ["test"]
    path.write_text(content)
    with pytest.raises(DataError, match="No question of the test split of vcr is of the kind"):
        make_shift(workspace, data, "shortcut-plural")


def test_names_of_shifts() -> None:
    assert all(shift.name == name for name, shift in SHIFTS.items())
    with pytest.raises(UsageProblem, match=r"no shift 'shortcut-singula'\. Did you mean 'shortcut-singular'"):
        get_shift("shortcut-singula", "vcr")
    with pytest.raises(UsageProblem, match="'masked' is made from data of the task vcr, not vqa"):
        get_shift("masked", "vqa")


def test_every_builder_can_be_imported() -> None:
    from importlib import import_module

    for shift in SHIFTS.values():
        module, _, name = shift.target.partition(":")
        assert callable(getattr(import_module(module), name))


def test_tag_overlap_takes_the_first_of_the_best_and_ignores_masked_tags() -> None:
    row = {
        "question": ["Is", [0, 1], "?"],
        "answer_choices": [[[0], [0]], [[0, 1]], [[1, 0]], ["x"]],
        "answer_label": 1,
        "rationale_choices": [[[10000]], [[2]], ["y"], ["z"]],
        "rationale_label": 0,
    }
    found = tag_overlap([row, {**row, "answer_label": 2}])
    assert found == {"questions": 2, "answers by tag overlap": 1, "rationales by tag overlap": 2}


def test_tag_overlap_says_nothing_of_rationales_where_none_are_asked_for() -> None:
    row = {"question": ["Is", [0], "?"], "answer_choices": [[[0]], [[1]], ["x"], ["y"]], "answer_label": 0}
    repeated = {**row, "rationale_choices": row["answer_choices"], "rationale_label": 0}  # as GD-VCR's lines
    assert tag_overlap([row, repeated]) == {"questions": 2, "answers by tag overlap": 2}
