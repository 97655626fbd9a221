"""Files of answers: the official columns, the check against the question set, and nothing written where it fails."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from madkit.core.errors import DataError, UsageProblem
from madkit.core.workspace import Workspace
from madkit.evaluate.metrics import prediction_row
from madkit.evaluate.submission import (
    VCR_COLUMNS,
    check_submission,
    conditioned,
    format_of,
    id_order,
    known,
    official_format,
    probabilities,
    write_submission,
)
from madkit.tasks.data import open_task
from madkit.tasks.example import Example, ImageRef, Segment
from madkit.tasks.spec import custom_spec, get_task

from .owners_files import ANSWERS, import_vcr

HIDDEN = ("test-10", "test-9", "test-100")


@pytest.fixture(scope="module")
def vcr(tmp_path_factory):
    base = tmp_path_factory.mktemp("submission")
    workspace = Workspace.at(base / "workspace")
    import_vcr(workspace, base / "vcr", submission=HIDDEN)
    return open_task(workspace, "vcr")


def answered(examples: list[Example], **odd: list[float]):
    """Every example answered with scores that its id decides."""
    rows = []
    for example in examples:
        scores = odd.get(example.id) or [float(len(example.id) % 3 == choice) + 0.1 * choice for choice in range(4)]
        rows.append(prediction_row(example, scores, 0))
    return rows


def vqa_examples(*ids: str) -> list[Example]:
    return [Example(name, "vqa", name, ImageRef("1", Path("x.jpg")), (Segment("What?"),)) for name in ids]


def test_the_columns_are_the_leaderboards():
    assert ",".join(VCR_COLUMNS) == (
        "annot_id,answer_0,answer_1,answer_2,answer_3,"
        "rationale_conditioned_on_a0_0,rationale_conditioned_on_a0_1,rationale_conditioned_on_a0_2,"
        "rationale_conditioned_on_a0_3,rationale_conditioned_on_a1_0,rationale_conditioned_on_a1_1,"
        "rationale_conditioned_on_a1_2,rationale_conditioned_on_a1_3,rationale_conditioned_on_a2_0,"
        "rationale_conditioned_on_a2_1,rationale_conditioned_on_a2_2,rationale_conditioned_on_a2_3,"
        "rationale_conditioned_on_a3_0,rationale_conditioned_on_a3_1,rationale_conditioned_on_a3_2,"
        "rationale_conditioned_on_a3_3"
    )


def test_the_official_test_set_becomes_a_row_a_question_sorted_by_number(vcr, tmp_path):
    examples = conditioned(vcr.examples("submission"))
    assert len(examples) == 5 * len(HIDDEN)
    rows = answered(examples, **{"test-9/rationale-a2": [0.0, 0.0, 3.0, 1.0]})
    path = tmp_path / "vcr.csv"
    assert write_submission(path, rows[::-1], examples, vcr.spec, "vcr-csv") == 3
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["annot_id"] for line in lines] == ["test-9", "test-10", "test-100"]
    groups = [
        [float(line[name]) for name in VCR_COLUMNS[start : start + 4]] for line in lines for start in range(1, 21, 4)
    ]
    assert all(sum(group) == pytest.approx(1) for group in groups)
    whole = sum(math.exp(value) for value in (0, 0, 3, 1))
    assert [float(lines[0][f"rationale_conditioned_on_a2_{n}"]) for n in range(4)] == pytest.approx(
        [1 / whole, 1 / whole, math.exp(3) / whole, math.e / whole]
    )
    write_submission(path, rows, examples, vcr.spec, "vcr-csv", raw=True)
    with path.open(newline="") as file:
        assert float(next(csv.DictReader(file))["rationale_conditioned_on_a2_2"]) == 3.0


def test_a_labelled_split_gets_its_conditioned_rationales(vcr):
    examples = conditioned(vcr.examples("test"))
    assert [example.id for example in examples[:5]] == ["val-0/answer", *(f"val-0/rationale-a{n}" for n in range(4))]
    answer = examples[0]
    for number, example in enumerate(examples[1:5]):
        assert [part.text for part in example.context] == [answer.context[0].text, answer.candidates[number].text]
        assert (example.label is not None) == (number == ANSWERS[0])
    with pytest.raises(DataError, match="val-0 has no rationales"):
        conditioned([answer])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows[1:], r"1 missing \(test-10/answer\), of 15"),
        (lambda rows: [*rows, rows[3]], r"1 answered twice"),
        (lambda rows: [*rows, {**rows[0], "id": "test-4/answer"}], r"1 not of this split \(test-4/answer\)"),
        (lambda rows: [{**rows[0], "logits": [0.0, math.nan, 0.0, 0.0]}, *rows[1:]], "1 of 15 have NaN or infinite"),
    ],
)
def test_what_does_not_fit_is_not_written(vcr, tmp_path, change, words):
    examples = conditioned(vcr.examples("submission"))
    path = tmp_path / "vcr.csv"
    path.write_text("the last good one")
    with pytest.raises(DataError, match=words) as caught:
        write_submission(path, change(answered(examples)), examples, vcr.spec, "vcr-csv")
    assert caught.value.hint
    assert [file.read_text() for file in tmp_path.iterdir()] == ["the last good one"]


def test_many_wrong_ids_are_counted_and_the_first_five_named():
    with pytest.raises(DataError) as caught:
        check_submission(["1", "1", "x"], (str(number) for number in range(2000)), where="f.json")
    assert caught.value.message == (
        "f.json: 1,999 missing (0, 2, 3, 4, 5, ...); 1 answered twice (1); 1 not of this split (x), "
        "of 2,000 that are asked."
    )
    assert "--subset" not in str(caught.value.hint)  # which would fail in the same way
    with pytest.raises(DataError) as caught:
        check_submission(["1"], ["1", "2"], where="f.json")
    assert "--subset" in str(caught.value.hint)
    check_submission(["1"], ["1", "2"], where="f.json", subset=True)
    with pytest.raises(DataError, match="1 not of this split") as caught:
        check_submission(["1", "3"], ["1", "2"], where="f.json", subset=True)
    assert "--subset" not in str(caught.value.hint)


def test_vqa_is_a_list_of_question_ids_and_answers(tmp_path):
    examples = vqa_examples("262148000", "9")
    rows = [{**prediction_row(example, [1.0, 0.5], "café"), "top": ["café", "no"]} for example in examples]
    write_submission(tmp_path / "a.json", rows, examples, get_task("vqa"), "vqa-json")
    assert json.loads((tmp_path / "a.json").read_text()) == [
        {"question_id": 262148000, "answer": "café"},
        {"question_id": 9, "answer": "café"},
    ]
    odd = vqa_examples("q-1")
    with pytest.raises(DataError, match="'q-1' is no number"):
        write_submission(tmp_path / "b.json", [prediction_row(odd[0], [1.0], "no")], odd, get_task("vqa"), "vqa-json")


def test_classes_are_written_by_name_with_their_scores(tmp_path):
    spec = get_task("snli-ve")
    examples = [replace(one, task="snli-ve") for one in vqa_examples("a.jpg#1", "b.jpg#2")]
    rows = [prediction_row(example, [0.0, 2.0, 1.0], 1) for example in examples]
    path = tmp_path / "out"
    write_submission(path, rows, examples, spec, "snli-ve-jsonl", raw=True)
    assert json.loads(path.read_text().splitlines()[0]) == {
        "pairID": "a.jpg#1",
        "label": "entailment",
        "scores": {"contradiction": 0.0, "entailment": 2.0, "neutral": 1.0},
    }
    write_submission(path, rows, examples, spec, "jsonl")
    line = json.loads(path.read_text().splitlines()[1])
    assert (line["id"], line["prediction"]) == ("b.jpg#2", "entailment")
    assert line["scores"] == pytest.approx(probabilities([0.0, 2.0, 1.0]))
    write_submission(path, rows, examples, spec, "csv", raw=True)
    assert path.read_text().splitlines()[:2] == [
        "id,prediction,score_contradiction,score_entailment,score_neutral",
        "a.jpg#1,entailment,0.0,2.0,1.0",
    ]


def test_every_task_has_its_formats():
    assert {name: official_format(get_task(name)) for name in ("vcr", "vqa", "snli-ve")} == {
        "vcr": "vcr-csv",
        "vqa": "vqa-json",
        "snli-ve": "snli-ve-jsonl",
    }
    mine = custom_spec("birds", "multiple-choice", n_candidates=3)
    assert known(mine) == ("jsonl", "csv")
    with pytest.raises(UsageProblem, match="does not hold answers of the task birds"):
        write_submission(Path("never"), [], [], mine, "vcr-csv")


def test_ids_are_sorted_by_their_number():
    assert sorted(["test-10", "test-9", "b", "test-1"], key=id_order) == ["b", "test-1", "test-9", "test-10"]


def test_probabilities_do_not_overflow():
    assert probabilities([1e4, 0.0, -1e4]) == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("name", "asked", "usual", "fitting", "form"),
    [
        ("a.csv", None, "jsonl", ("vcr-csv", "jsonl", "csv"), "csv"),
        ("a.CSV", None, "vcr-csv", ("vcr-csv", "jsonl", "csv"), "vcr-csv"),
        ("a.json", None, "jsonl", ("vqa-json", "jsonl", "csv"), "vqa-json"),
        ("a.jsonl", None, "snli-ve-jsonl", ("snli-ve-jsonl", "jsonl", "csv"), "snli-ve-jsonl"),
        ("a.csv", None, "vqa-json", ("vqa-json", "jsonl", "csv"), "csv"),
        ("answers", None, "vqa-json", ("vqa-json", "jsonl", "csv"), "vqa-json"),
        ("a.txt", "csv", "jsonl", ("jsonl", "csv"), "csv"),
        (None, None, "jsonl", ("jsonl", "csv"), "jsonl"),
    ],
)
def test_a_files_name_says_its_format(name, asked, usual, fitting, form):
    assert format_of(None if name is None else Path(name), asked, usual, fitting) == form


@pytest.mark.parametrize(
    ("name", "asked", "hint"),
    [("a.csv", "jsonl", "--out a.jsonl"), ("a.parquet", "csv", "--out a.csv"), ("a.parquet", None, "jsonl or csv")],
)
def test_a_name_that_contradicts_the_format_is_refused(name, asked, hint):
    with pytest.raises(UsageProblem) as caught:
        format_of(Path(name), asked, "jsonl", ("jsonl", "csv"))
    assert hint in (caught.value.hint or "")
