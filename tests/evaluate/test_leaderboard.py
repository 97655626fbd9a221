from __future__ import annotations

import json

import pytest

from madkit.cli.main import main
from madkit.evaluate import answering
from madkit.evaluate import predict as predict_module


@pytest.fixture
def boards(made_up, monkeypatch):
    """Two made-up runs on data with an official test set."""
    monkeypatch.setattr(predict_module, "predict", lambda *arguments, spec, **_: made_up.scorer(*arguments, spec))
    monkeypatch.setattr(answering, "find_data", made_up.find)
    data = made_up.add_data("snli-ve", "mini-snli-ve")
    data.submissions = lambda: ["submission", "submission-dev"]
    return made_up, [made_up.add_run("finetune", seed) for seed in range(2)]


def typed(made_up, capsys, *options):
    code = main(["evaluate", "--submission", "--workspace", str(made_up.workspace.root), *options])
    return code, capsys.readouterr()


def test_every_run_has_its_files_and_they_are_written_once(boards, capsys):
    made_up, folders = boards
    code, printed = typed(made_up, capsys, "--json")
    document = json.loads(printed.out)
    assert (code, document["schema"], document["problems"]) == (0, "madkit.submissions/1", [])
    expected = [
        folder / "submissions" / f"{split}.jsonl" for folder in folders for split in ("submission", "submission-dev")
    ]
    assert [one["path"] for one in document["files"]] == [str(path) for path in expected]
    assert {(one["format"], one["questions"], one["new"]) for one in document["files"]} == {("snli-ve-jsonl", 60, True)}
    lines = [json.loads(line) for line in expected[0].read_text().splitlines()]
    assert {line["label"] for line in lines} <= {"entailment", "neutral", "contradiction"}
    scored = len(made_up.scored)
    code, printed = typed(made_up, capsys)
    assert code == 0
    assert len(made_up.scored) == scored
    assert printed.out.count("60 questions answered, as snli-ve-jsonl (there already).") == 4
    expected[1].write_text("changed by hand")
    code, printed = typed(made_up, capsys)
    assert made_up.scored[scored:] == [(folders[0].name, "submission-dev")]
    assert not (made_up.workspace.reports / "full").exists()


def test_a_run_that_fails_costs_no_other(boards, capsys):
    made_up, folders = boards
    made_up.broken.add(folders[0].name)
    code, printed = typed(made_up, capsys, "--json")
    document = json.loads(printed.out)
    assert code == 1
    assert [one["run"] for one in document["files"]] == [folders[1].name] * 2
    assert len(document["problems"]) == 2
    assert "NaN" in document["problems"][0]["error"]


def test_data_without_official_test_sets_is_one_sentence(boards, capsys):
    made_up, _ = boards
    made_up.data["mini-snli-ve", "aaaa000011112222"].submissions = list
    code, printed = typed(made_up, capsys)
    assert code == 1
    assert "has an official test set without labels (mini-snli-ve)" in printed.err
    assert "Try: import the benchmark's test files: madkit data import " in printed.err
