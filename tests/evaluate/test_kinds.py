from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from madkit.core.files import read_jsonl
from madkit.evaluate.kinds import kinds_of, name_of_forms
from madkit.tasks.example import Segment, Tag
from madkit.tasks.spec import custom_spec, get_task

from .conftest import make_examples

BOX = (0.0, 0.0, 1.0, 1.0)


def with_boxes(examples):
    """The examples with 1, 2, ... boxes, and a right choice that names one in every third question."""
    made = []
    for index, example in enumerate(examples):
        named = (Tag(0, 1, (0,)),) if index // 2 % 3 == 0 else ()
        choices = tuple(
            Segment(choice.text, named if place == example.label else ())
            for place, choice in enumerate(example.candidates)
        )
        made.append(replace(example, candidates=choices, boxes=(BOX,) * (1 + index // 2 % 12)))
    return made


def test_kinds_are_counted_by_boxes_and_by_what_the_right_choice_names():
    examples = with_boxes(make_examples(get_task("vcr"), "test", 12))
    kinds = kinds_of(get_task("vcr"), examples)
    assert set(kinds) == {"number of boxes", "right choice"}
    for metric in ("Q->A", "QA->R", "Q->AR"):
        assert list(kinds["number of boxes"][metric].values()) == (
            ["1-2"] * 2 + ["3-4"] * 2 + ["5-8"] * 4 + ["9 or more"] * 4
        )
        assert list(kinds["right choice"][metric].values()) == ["names a box", "names none", "names none"] * 4


def test_tasks_without_choices_or_boxes_have_none():
    assert kinds_of(get_task("snli-ve"), make_examples(get_task("snli-ve"), "test", 4)) == {}
    assert kinds_of(get_task("vcr"), make_examples(get_task("vcr"), "test", 4)) == {}


def test_ones_own_choices_have_one_metric():
    spec = custom_spec("birds", "multiple-choice", n_candidates=4)
    examples = with_boxes(make_examples(spec, "test", 6))
    assert set(kinds_of(spec, examples)["number of boxes"]) == {"accuracy"}


@pytest.mark.parametrize(
    ("source", "suite", "name"),
    [("vcr", "test", "question type"), ("gd-vcr", "test", "region"), ("vcr", "test-gd-vcr", "region")],
)
def test_gd_vcr_names_regions(source, suite, name):
    assert name_of_forms(source, suite) == name


def test_breakdowns_are_means_of_the_predictions_on_disk(made_up):
    data = made_up.add_data("vcr", "mini-vcr", names=("test",))
    plain = data.examples
    data.examples = lambda suite: with_boxes(plain(suite))
    folders = [made_up.add_run("finetune", seed, task="vcr", source="mini-vcr") for seed in range(2)]
    results = made_up.evaluate("smoke")
    kinds = kinds_of(data.spec, data.examples("test"))["right choice"]["Q->A"]
    (one,) = [one for one in results.breakdowns if (one.by, one.metric) == ("right choice", "Q->A")]
    by_hand = []
    for folder in folders:
        rows = [row for row in read_jsonl(folder / "predictions" / "test.jsonl") if row["subtask"] == "answer"]
        by_hand.append(np.mean([100 * row["score"] for row in rows if kinds[row["question_id"]] == "names a box"]))
    assert one.mean["names a box"] == pytest.approx(np.mean(by_hand))
    assert one.n_examples == {"names a box": 20, "names none": 40}
    assert {one.by for one in results.breakdowns} == {"right choice", "number of boxes"}
    made_up.data.clear()
    assert made_up.evaluate("smoke").breakdowns == ()
