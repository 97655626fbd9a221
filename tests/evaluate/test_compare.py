from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from madkit.cli.main import main
from madkit.core.errors import NotFoundError, UsageProblem
from madkit.evaluate import compare as compare_module
from madkit.evaluate import predict as predict_module
from madkit.evaluate.compare import SCHEMA, compare


@pytest.fixture
def two(made_up, monkeypatch):
    """(made-up workspace, folder of a run, folder of a better one)."""
    monkeypatch.setattr(compare_module, "find_data", made_up.find)
    monkeypatch.setattr(predict_module, "predict", lambda *arguments, spec, **_: made_up.scorer(*arguments, spec))
    made_up.add_data("snli-ve", "mini-snli-ve", n=200)
    return made_up, made_up.add_run("finetune", 0), made_up.add_run("affinity", 0)


def compared(two, **options):
    made_up, first, second = two
    return compare(made_up.workspace, first.name, second.name, scorer=made_up.scorer, **options)


def rows_of(folder, suite="test"):
    return [json.loads(line) for line in (folder / "predictions" / f"{suite}.jsonl").read_text().splitlines()]


def test_the_difference_is_over_the_same_questions_with_images_kept_together(two):
    found = compared(two)
    assert [one.suite for one in found.metrics] == ["test", "test-rendering"]
    one = found.metrics[0]
    scores = [[row["score"] * 100 for row in rows_of(folder)] for folder in two[1:]]
    assert (one.first, one.second) == pytest.approx(tuple(map(np.mean, scores)))
    by_image = np.subtract(scores[1], scores[0]).reshape(-1, 2).mean(axis=1)  # two questions about every image
    test = stats.ttest_1samp(by_image, 0)
    interval = test.confidence_interval(0.95)
    assert (one.difference, one.low, one.high, one.p) == pytest.approx(
        (by_image.mean(), interval.low, interval.high, test.pvalue)
    )
    assert one.p_holm >= one.p
    assert 0 < one.p_images < 0.05
    assert (one.n_examples, one.n_images) == (200, 100)


def test_agreement_counts_who_is_better_and_how_many_differ(two):
    found = compared(two, limit=0)
    one = found.agreements[0]
    first, second = (rows_of(folder) for folder in two[1:])
    differ = [a["id"] for a, b in zip(first, second, strict=True) if a["prediction"] != b["prediction"]]
    assert one.n_different == len(differ) == round(200 * (1 - one.same / 100))
    assert {example.id for example in found.examples if example.suite == "test"} == set(differ)
    assert one.second_better - one.first_better == pytest.approx(found.metrics[0].difference)
    assert -1 <= one.kappa < 1


def test_examples_hold_ids_texts_both_answers_and_the_truth_those_that_matter_first(two):
    found = compared(two, limit=3)
    assert len(found.examples) == 6
    one = found.examples[0]
    first, second = ({row["id"]: row for row in rows_of(folder)}[one.id] for folder in two[1:])
    labels = ("contradiction", "entailment", "neutral")
    assert (one.first, one.second) == (labels[first["prediction"]], labels[second["prediction"]])
    assert one.truth == labels[first["label"]]
    assert one.text == "What is it?"
    assert (one.image, one.question_id) == (first["image"], first["question_id"])
    everything = compared(two, limit=0).examples
    gaps = [abs(example.first_score - example.second_score) for example in everything if example.suite == "test"]
    assert gaps == sorted(gaps, reverse=True)
    assert [example for example in everything if example.suite == "test"][:3] == list(found.examples[:3])


def test_choices_are_told_by_their_texts_and_halves_by_themselves(made_up, monkeypatch):
    monkeypatch.setattr(compare_module, "find_data", made_up.find)
    made_up.add_data("vcr", "mini-vcr")
    a, b = (made_up.add_run(arm, 0, task="vcr", source="mini-vcr") for arm in ("finetune", "affinity"))
    found = compare(made_up.workspace, str(a), f"mini-vcr/{b.name}", suites=["test"], scorer=made_up.scorer)
    assert [one.metric for one in found.metrics] == ["Q->AR", "Q->A", "QA->R"]
    assert [one.headline for one in found.metrics] == [True, False, False]
    one = found.examples[0]
    assert one.subtask in ("answer", "rationale")
    assert one.first in one.candidates
    assert one.second in one.candidates
    assert one.first != one.second


def test_kinds_are_told_by_label_answer_type_and_question_type(two, made_up, monkeypatch):
    assert {(one.by, one.kind) for one in compared(two).kinds} == {
        ("label", "contradiction"),
        ("label", "entailment"),
        ("label", "neutral"),
    }
    made_up.add_data("vqa", "mini-vqa")
    a, b = (made_up.add_run(arm, 1, task="vqa", source="mini-vqa") for arm in ("finetune", "affinity"))
    found = compare(made_up.workspace, a.name, b.name, vqa_rule="pre2021", scorer=made_up.scorer)
    assert {(one.by, one.kind) for one in found.kinds} == {
        ("answer type", "yes/no"),
        ("answer type", "other"),
        ("question type", "what is"),
        ("question type", "is the"),
    }
    assert found.vqa_rule == "pre2021"
    assert found.metrics[0].first < compare(made_up.workspace, a.name, b.name, scorer=made_up.scorer).metrics[0].first
    assert "a red" in {example.truth.partition(" (")[0] for example in found.examples}


def test_settings_that_differ_are_named_and_a_whole_section_is_one_entry(two):
    made_up = two[0]
    other = made_up.add_run(
        "mad", 3, config={"arm": "mad", "optim": {"learning_rate": 2e-4, "optimizer": "adamw"}, "mad": {"weight": 1.0}}
    )
    plain = made_up.add_run(seed=3, config={"arm": "finetune", "optim": {"learning_rate": 1e-4}, "mad": None})
    found = compare(made_up.workspace, plain.name, other.name, scorer=made_up.scorer)
    assert found.settings == {
        "arm": ("finetune", "mad"),
        "teacher": (None, "mini"),
        "mad": (None, "given"),
        "optim.learning_rate": (1e-4, 2e-4),
    }


def test_what_is_answered_already_is_not_answered_again(two):
    compared(two)
    answered = len(two[0].scored)
    assert answered == 4
    compared(two)
    assert len(two[0].scored) == answered


def test_runs_that_cannot_be_compared_are_one_sentence(two):
    made_up, first, second = two
    with pytest.raises(UsageProblem, match="Both are the run"):
        compare(made_up.workspace, first.name, str(first))
    other = made_up.add_run("mad", 0, data_revision="bbbb000011112222")
    with pytest.raises(UsageProblem, match="different questions"):
        compare(made_up.workspace, first.name, other.name)
    with pytest.raises(NotFoundError, match="Did you mean"):
        compare(made_up.workspace, first.name, second.name[:-1])
    with pytest.raises(UsageProblem, match="no split or test suite"):
        compare(made_up.workspace, first.name, second.name, suites=["test-renderin"])
    made_up.data.clear()
    with pytest.raises(NotFoundError, match="does not hold revision"):
        compare(made_up.workspace, first.name, second.name)


def test_a_suite_that_fails_does_not_cost_the_others(two, capsys):
    made_up, first, second = two
    made_up.broken.add(second.name)
    found = compared(two)
    assert [problem["where"] for problem in found.problems] == ["test", "test-rendering"]
    assert found.metrics == ()
    where = ["--workspace", str(made_up.workspace.root)]
    assert main(["compare", first.name, second.name, *where]) == 1
    assert "NaN" in capsys.readouterr().err


def test_the_command_prints_tables_and_examples_in_80_columns(two, capsys):
    made_up, first, second = two
    where = ["--workspace", str(made_up.workspace.root)]
    assert main(["compare", first.name, second.name, "--limit", "1", *where]) == 0
    out = capsys.readouterr().out
    for words in ("B - A", "embedded benchmark", "kappa", "accuracy by label", "truth: ", "arm: finetune | affinity"):
        assert words in out
    assert out.count("truth: ") == 2
    assert main(["compare", first.name, second.name, "--limit", "1", "--suite", "test", *where]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
    assert main(["compare", first.name, second.name, "--json", *where]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == SCHEMA
    assert {"metrics", "kinds", "agreements", "examples", "settings", "problems"} <= set(document)
    assert main(["compare", first.name, first.name, *where]) == 2


def test_answers_in_different_precisions_are_told(two, capsys):
    second = two[2]
    compared(two, suites=["test"])
    assert "answered in" not in capsys.readouterr().err
    path = second / "results.jsonl"
    path.write_text(path.read_text().replace('"precision": "fp32"', '"precision": "bf16"'))
    compared(two, suites=["test"])
    assert "On test A answered in fp32 and B in bf16; --precision fp32" in capsys.readouterr().err
