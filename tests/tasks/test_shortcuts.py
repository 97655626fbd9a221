"""The shortcut rules on the published worked examples and on generated lines."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madkit.core.errors import DataError
from madkit.tasks.shortcuts import rule_plural, rule_singular

GD_VCR = Path(__file__).parents[3] / "shared" / "data" / "vcr" / "gd_vcr_addition.jsonl"


def item(question: list[Any], answers: list[list[Any]], label: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "annot_id": "val-1",
        "objects": ["person", "person", "person", "car", "person", "train"],
        "question": question,
        "answer_choices": answers,
        "answer_label": label,
        "rationale_choices": [["x", "."], ["y", "."]],
        "rationale_label": 0,
    } | more


def singular(question: list[Any], answers: list[list[Any]], label: int = 0, **more: Any) -> list[list[Any]]:
    (result,) = rule_singular([item(question, answers, label, **more)])
    return result["answer_choices"]


def plural(question: list[Any], answers: list[list[Any]], label: int = 0, **more: Any) -> list[list[Any]]:
    (result,) = rule_plural([item(question, answers, label, **more)])
    return result["answer_choices"]


def test_published_example_val_54() -> None:
    """Where is [2] going? (1-based tags there, 0-based here.)"""
    answers: list[list[Any]] = [
        [[1], "is", "going", "into", "the", "store", "."],
        [[0], "is", "going", "to", "the", "bathroom", "."],
        [[0], "and", [1], "are", "leaving", "."],
    ]
    assert singular(["Where", "is", [1], "going", "?"], answers) == [
        ["He", "is", "going", "into", "the", "store", "."],
        [[1], "is", "going", "to", "the", "bathroom", "."],
        [[0], "and", [1], "are", "leaving", "."],
    ]


def test_published_example_val_391() -> None:
    answers: list[list[Any]] = [
        ["She", "wants", "to", "go", "to", "sleep", "."],
        ["She", "is", "planning", "to", "get", "on", [5], "."],
    ]
    assert singular(["What", "does", [0], "want", "?"], answers, label=1) == [
        [[0], "wants", "to", "go", "to", "sleep", "."],
        ["She", "is", "planning", "to", "get", "on", [5], "."],
    ]


def test_published_examples_val_0_and_val_22() -> None:
    """How does [1] feel? The right tag becomes "He" where nothing says her; a wrong [2] becomes the question's [1]."""
    assert singular(
        ["How", "does", [0], "feel", "?"],
        [
            [[0], "is", "amused", "."],
            [[0], "is", "tired", "of", "it", "."],
            [[1], "is", "a", "bit", "upset", "."],
            [[0], "does", "not", "like", [2], "."],
        ],
        label=1,
    ) == [
        [[0], "is", "amused", "."],
        ["He", "is", "tired", "of", "it", "."],
        [[0], "is", "a", "bit", "upset", "."],
        [[0], "does", "not", "like", [2], "."],
    ]


def test_published_example_val_270() -> None:
    """What are [1,2] feeling? A wrong "They" becomes the group; the right "They" and the group itself stay."""
    assert plural(
        ["What", "are", [0, 1], "feeling", "?"],
        [
            [[0, 1], "dislike", "it", "."],
            ["They", "are", "worried", "."],
            ["They", "are", "both", "glad", "."],
            [[0, 1], "are", "tired", "."],
        ],
        label=2,
    ) == [
        [[0, 1], "dislike", "it", "."],
        [[0, 1], "are", "worried", "."],
        ["They", "are", "both", "glad", "."],
        [[0, 1], "are", "tired", "."],
    ]


@pytest.mark.parametrize("group", [[3, 0], [0, 3]])
def test_published_example_val_171(group: list[int]) -> None:
    """The group of the choice stays: it is not in ascending order, or not all persons (3 is a car here)."""
    objects = ["person", "person", "person", "person" if group == [3, 0] else "car"]
    answers: list[list[Any]] = [["We", "wait", "."], ["They", "are", "hiding", "among", group, "."]]
    assert plural(["What", "are", [1, 2], "doing", "?"], answers, objects=objects) == [
        ["We", "wait", "."],
        [[1, 2], "are", "hiding", "among", group, "."],
    ]


def test_published_kind_of_plural_rewriting() -> None:
    answers: list[list[Any]] = [
        [[1, 2], "sing", "while", [1, 2], "dance"],
        [[0, 1], "sing", "."],
        ["Now", "they", "sing", "."],
        [[0], "sings", "."],
        ["Now", [1, 2], "sing"],
    ]
    assert plural(["Why", "do", [2, 1], "sing", "?"], answers, label=4) == [
        [[1, 2], "sing", "while", [1, 2], "dance"],  # two tags: no only group
        [[1, 2], "sing", "."],
        ["Now", [1, 2], "sing", "."],
        [[0], "sings", "."],
        ["Now", "they", "sing"],
    ]
    assert plural(["Why", "do", [1, 2], "sing", "?"], [[[0, 1], "sing"], ["x"]]) == [["They", "sing"], ["x"]]


def test_pronoun_follows_the_majority_of_the_choice_then_of_the_question() -> None:
    about = ["Is", [0], "with", "her", "?"]
    assert singular(about, [[[0], "took", "his", "car"], ["x"]])[0][0] == "He"
    assert singular(about, [[[0], "took", "her", "car"], ["x"]])[0][0] == "She"
    assert singular(about, [["So", [0], "left"], ["x"]])[0][1] == "she"  # tie: the question says her
    assert singular(["Is", [0], "in", "?"], [["So", [0], "left"], ["x"]])[0][1] == "he"
    assert singular(about, [["His", "car", ",", "hers", ":", [0]], ["x"]])[0][-1] == "she"


def test_what_the_singular_rule_leaves() -> None:
    about = ["Is", [0], "near", [3], "?"]
    for choice in (
        [[0], "sees", "him", "as", "she", "left"],  # a tag and a pronoun
        ["he", "and", "she"],
        [[0], [1]],
        [[3], "is", "parked"],  # no person
        ["Nobody"],
    ):
        assert singular(about, [["x"], choice, choice], label=1) == [["x"], choice, choice]
    assert singular(about, [["x"], [[1, 3], "and", [1]]]) == [["x"], [[1, 3], "and", [0]]]  # a group is no [1]
    assert singular(about, [["x"], ["He", "said", "he", "left"]])[1] == [[0], "said", [0], "left"]


def test_which_questions_stay() -> None:
    answers = [["a"], ["b"]]
    people: list[list[Any]] = [
        ["Why", "?"],
        [[0], [1]],
        [[3]],
        [[0], [0], [3]],
        [[0, 1]],
        [[0, 3]],
        [[0, 1], [3]],
        [[10000]],
    ]
    items = [item(question, answers, annot_id=str(n)) for n, question in enumerate(people)]
    counts: dict[str, int] = {}
    assert [kept["annot_id"] for kept in rule_singular(items, counts=counts)] == ["3", "5"]
    assert counts == {"questions": 8, "kept": 2, "answers changed": 0, "rationales changed": 0}
    assert [kept["annot_id"] for kept in rule_plural(items)] == ["4"]


def test_rationales_are_rewritten_too_and_counted() -> None:
    line = item([[0], "?"], [["x"], [[1]]], rationale_choices=[[[1], "a"], [[1], "b"], ["c"]], rationale_label=1)
    counts: dict[str, int] = {}
    (result,) = rule_singular([line], counts=counts)
    assert result["rationale_choices"] == [[[0], "a"], ["He", "b"], ["c"]]
    assert counts == {"questions": 1, "kept": 1, "answers changed": 1, "rationales changed": 2}


def test_lines_without_rationales_of_their_own_have_none_to_count() -> None:
    answers: list[list[Any]] = [["x"], [[1]]]
    for more in ({"rationale_choices": answers}, {"rationale_choices": None, "rationale_label": None}):
        counts: dict[str, int] = {}
        (result,) = rule_singular([item([[0], "?"], answers, **more)], counts=counts)
        assert result["answer_choices"] == [["x"], [[0]]]
        assert result["rationale_choices"] in (None, result["answer_choices"])
        assert counts == {"questions": 1, "kept": 1, "answers changed": 1, "rationales changed": 0}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"answer_label": None}, "val-1: 'answer_label' is missing"),
        ({"rationale_label": 4}, "val-1: 'rationale_label' is missing or no index"),
        ({"question": "Why?"}, "val-1: 'question' is missing or no list"),
        ({"answer_choices": None}, "val-1: 'answer_choices' is missing"),
    ],
)
def test_a_line_that_cannot_be_rewritten_is_named(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        rule_singular([item([[0], "?"], [["a"]]) | change])


TOKENS = st.lists(
    st.sampled_from(["He", "she", "They", "they", "her", "his", "is"])
    | st.lists(st.integers(0, 5) | st.just(10002), min_size=1, max_size=2),
    min_size=1,
    max_size=5,
)


@given(TOKENS, st.lists(TOKENS, min_size=4, max_size=4), st.lists(TOKENS, min_size=4, max_size=4), st.integers(0, 3))
def test_question_objects_and_labels_stay_and_the_input_is_untouched(
    question: list[Any], answers: list[list[Any]], rationales: list[list[Any]], label: int
) -> None:
    line = item(question, answers, label, rationale_choices=rationales, rationale_label=3 - label)
    before = copy.deepcopy(line)
    for rule in (rule_singular, rule_plural):
        results = rule([line])
        assert line == before
        assert results == rule([line])
        for result in results:
            rewritten = {"answer_choices", "rationale_choices"}
            assert {k: v for k, v in result.items() if k not in rewritten} == {
                k: v for k, v in before.items() if k not in rewritten
            }
            for key in rewritten:
                assert [len(tokens) for tokens in result[key]] == [len(tokens) for tokens in before[key]]
                # A right choice never gets a tag that it did not have.
                right = result[key][result[key.replace("choices", "label")]]
                original = before[key][before[key.replace("choices", "label")]]
                assert all(t in original for t in right if isinstance(t, list))


@pytest.mark.skipif(not GD_VCR.is_file(), reason="the sample of GD-VCR lines is not here")
def test_real_gd_vcr_lines() -> None:
    lines = [json.loads(line) for line in GD_VCR.read_text().splitlines()]
    counts: dict[str, int] = {}
    kept = rule_singular(lines, counts=counts)
    assert counts["questions"] == 86
    assert len(kept) == counts["kept"] > 60
    assert counts["answers changed"] > 50
    assert counts["rationales changed"] == 0  # they repeat the answers, so there are none
    assert len(rule_plural(lines)) < 10
