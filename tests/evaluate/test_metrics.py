from __future__ import annotations

from pathlib import Path

import pytest

from madkit.core.errors import DataError
from madkit.evaluate.metrics import prediction_row, score
from madkit.tasks.example import Example, ImageRef
from madkit.tasks.spec import custom_spec, get_task


def example(task: str, name: str, **values) -> Example:
    return Example(
        name, task, values.pop("question_id", name), ImageRef(f"image of {name}", Path("x.png")), (), **values
    )


def vcr_rows(answers: list[bool], rationales: list[bool]):
    rows = []
    for index, pair in enumerate(zip(answers, rationales, strict=True)):
        for subtask, right in zip(("answer", "rationale"), pair, strict=True):
            one = example("vcr", f"{index}/{subtask}", question_id=str(index), label=2, subtask=subtask)
            rows.append(prediction_row(one, [0.0, 0.0, 1.0, 0.0], 2 if right else 1))
    return rows


def test_vcr_joint_metric_needs_both_answers_of_one_question():
    found = score(get_task("vcr"), vcr_rows([True, True, False, False], [True, False, True, False]))
    assert {name: one.percent for name, one in found.items()} == {"Q->AR": 25.0, "Q->A": 50.0, "QA->R": 50.0}
    assert next(iter(found)) == "Q->AR"
    assert found["Q->AR"].units == ("0", "1", "2", "3")
    assert found["Q->AR"].values.tolist() == [1.0, 0.0, 0.0, 0.0]


def test_vcr_join_is_by_question_and_not_by_position():
    rows = vcr_rows([True, False, True], [False, True, True])
    mixed = [rows[index] for index in (5, 0, 3, 2, 1, 4)]
    assert (
        score(get_task("vcr"), mixed)["Q->AR"].values.tolist() == score(get_task("vcr"), rows)["Q->AR"].values.tolist()
    )


def test_a_question_without_rationale_does_not_count_for_the_joint_metric():
    rows = vcr_rows([True, True], [True, True])[:-1]
    found = score(get_task("vcr"), rows)
    assert len(found["Q->A"].units) == 2
    assert found["Q->AR"].units == ("0",)


def test_entailment_accuracy_overall_and_per_label():
    labels = [0, 0, 1, 1, 1, 2]
    chosen = [0, 1, 1, 1, 0, 0]
    rows = [
        prediction_row(example("snli-ve", str(i), label=label), [0, 0, 0], pick)
        for i, (label, pick) in enumerate(zip(labels, chosen, strict=True))
    ]
    found = {name: round(one.percent, 2) for name, one in score(get_task("snli-ve"), rows).items()}
    assert found == {
        "accuracy": 50.0,
        "accuracy (contradiction)": 50.0,
        "accuracy (entailment)": 66.67,
        "accuracy (neutral)": 0.0,
    }


def test_vqa_uses_the_official_accuracy_of_the_annotators_answers():
    # the worked example of a real annotation: six of ten said net, one said mesh -> 1.0 and 9/10 * 1/3
    annotations = ("net",) * 6 + ("netting", "mesh", "pitcher", "orange")
    rows = [
        prediction_row(example("vqa", name, annotations=annotations, answer_type="other"), [1.0], name)
        for name in ("net", "mesh")
    ]
    found = score(get_task("vqa"), rows)
    assert found["accuracy"].values.tolist() == pytest.approx([0.3, 1.0])  # sorted by question: mesh, net
    assert found["accuracy"].percent == pytest.approx(65.0)


def test_vqa_soft_scores_where_there_are_no_raw_answers():
    one = example("vqa", "q", answers={"red": 0.6})
    assert [prediction_row(one, [1.0], answer)["score"] for answer in ("red", "blue")] == [0.6, 0.0]


def test_vqa_is_broken_down_by_answer_type():
    rows = [
        prediction_row(example("vqa", str(i), answers={"yes": 1.0}, answer_type=kind), [1.0], answer)
        for i, (kind, answer) in enumerate([("yes/no", "yes"), ("yes/no", "no"), ("number", "no")])
    ]
    found = {name: one.percent for name, one in score(get_task("vqa"), rows).items()}
    assert found["accuracy (yes/no)"] == 50.0
    assert found["accuracy (number)"] == 0.0


def test_hidden_answers_empty_suites_and_doubles_are_refused():
    hidden = prediction_row(example("snli-ve", "a"), [0.0] * 3, 1)
    with pytest.raises(DataError, match="1 of 1 examples have no right answer"):
        score(get_task("snli-ve"), [hidden])
    with pytest.raises(DataError, match="no examples"):
        score(get_task("snli-ve"), [])
    twice = prediction_row(example("snli-ve", "a", label=1), [0.0] * 3, 1)
    with pytest.raises(DataError, match="'a' is in the suite twice"):
        score(get_task("snli-ve"), [twice, twice])


def test_a_vcr_suite_without_rationales_has_the_metric_of_its_answers():
    rows = [row for row in vcr_rows([True, False], [True, True]) if row["subtask"] == "answer"]
    found = score(get_task("vcr"), rows)
    assert {name: one.percent for name, one in found.items()} == {"Q->A": 50.0}


def test_kinds_of_question_are_counted_where_there_are_several():
    def rows(forms):
        examples = [example("snli-ve", str(i), label=1, form=form) for i, form in enumerate(forms)]
        return [prediction_row(one, [0, 0, 0], i % 2) for i, one in enumerate(examples)]

    found = score(get_task("snli-ve"), rows(["a", "b", "b", "b", ""]))["accuracy"].by_form()
    assert found == {"a": (0.0, 1), "b": (pytest.approx(200 / 3), 3)}
    assert score(get_task("snli-ve"), rows(["a", "a", ""]))["accuracy"].by_form() == {}


def test_soft_scores_have_no_older_rule():
    rows = [prediction_row(example("vqa", "q", answers={"red": 0.6}), [1.0], "red")]
    assert score(get_task("vqa"), rows)["accuracy"].percent == pytest.approx(60)
    with pytest.raises(DataError, match="soft scores in place of the annotators' answers"):
        score(get_task("vqa"), rows, "pre2021")


def test_the_rule_is_vqas_alone():
    rows = vcr_rows([True, False], [True, True])
    assert score(get_task("vcr"), rows, "pre2021")["Q->A"].percent == 50.0


def test_multiple_choice_of_ones_own_has_one_metric():
    spec = custom_spec("birds", "multiple-choice", n_candidates=3)
    rows = [prediction_row(example("birds", str(i), label=2), [0, 0, 1], pick) for i, pick in enumerate((2, 2, 0, 2))]
    assert {name: one.percent for name, one in score(spec, rows).items()} == {"accuracy": 75.0}
