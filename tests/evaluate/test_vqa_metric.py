"""The official VQA evaluation: golden vectors that were made by running the official functions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madkit.core.errors import UsageProblem
from madkit.evaluate import normalize_vqa_answer, vqa_accuracy
from madkit.evaluate.vqa_metric import CONTRACTIONS, VqaItem, summarize_vqa

SHARED = Path(__file__).parents[3] / "shared" / "data" / "vqa_v2"

GOLDEN = [
    ("Yes.", "yes"),
    ("1,000", "1000"),
    ("t-shirt", "t shirt"),
    ("1,000-2,000", "10002000"),
    ("left- right", "left right"),
    ("10,000 people", "10000 people"),
    ("red, white", "red white"),
    ("5:30 pm", "5:30 pm"),
    ("p.m.", "pm"),
    ("5.30", "5.30"),
    ("U.S.A.", "usa"),
    ("10.", "10"),
    ("st. louis", "st louis"),
    ("3.5", "3.5"),
    ("none", "0"),
    ("...", ""),
    ("No one", "no 1"),
    ("$5", "$5"),
    ("The two dogs", "2 dogs"),
    ("5%", "5%"),
    ("a", ""),
    ("-5", "5"),
    ("N/A", "n"),
    ("1/2", "1 2"),
    ("dont", "don't"),
    ("2 1/2", "2 1 2"),
    ("im", "im"),
    ("black/white", "black white"),
    ("youre", "you're"),
    ("rock & roll", "rock & roll"),
    ("somebody'd", "somebodyd"),
    ('"stop"', "stop"),
    ("what?!", "what"),
    ("half-eaten", "half eaten"),
    ("three-four", "3 4"),
    ("e-mail, web", "e mail web"),
    ("  twelve ", "twelve"),
    ("#1", "#1"),
]

# The keys of the official table.
CONTRACTION_KEYS = """
aint arent cant couldve couldnt couldn'tve couldnt've didnt doesnt dont hadnt hadnt've hadn'tve hasnt havent hed
hed've he'dve hes howd howll hows Id've I'dve Im Ive isnt itd itd've it'dve itll let's maam mightnt mightnt've
mightn'tve mightve mustnt mustve neednt notve oclock oughtnt ow's'at 'ows'at 'ow'sat shant shed've she'dve she's
shouldve shouldnt shouldnt've shouldn'tve somebody'd somebodyd've somebody'dve somebodyll somebodys someoned
someoned've someone'dve someonell someones somethingd somethingd've something'dve somethingll thats thered thered've
there'dve therere theres theyd theyd've they'dve theyll theyre theyve twas wasnt wed've we'dve weve werent whatll
whatre whats whatve whens whered wheres whereve whod whod've who'dve wholl whos whove whyll whyre whys wont wouldve
wouldnt wouldnt've wouldn'tve yall yall'll y'allll yall'd've y'alld've y'all'dve youd youd've you'dve youll youre
youve
"""

NET = ["net", "net", "net", "netting", "net", "net", "mesh", "net", "pitcher", "orange"]


@pytest.mark.parametrize(("text", "expected"), GOLDEN)
@pytest.mark.parametrize("rule", ["current", "pre2021"])
def test_normalisation_gives_the_official_result(text: str, expected: str, rule: str) -> None:
    assert normalize_vqa_answer(text, rule) == expected


def test_the_contraction_table_has_the_official_keys() -> None:
    assert set(CONTRACTIONS) == set(CONTRACTION_KEYS.split())
    assert len(CONTRACTIONS) == 120


def test_values_of_the_contraction_table() -> None:
    assert CONTRACTIONS["'ows'at"] == CONTRACTIONS["ow's'at"] == "'ow's'at"
    assert CONTRACTIONS["yall'd've"] == CONTRACTIONS["y'all'dve"] == "y'all'd've"
    assert CONTRACTIONS["let's"] == "let's"
    assert CONTRACTIONS["twas"] == "'twas"


def test_only_the_first_32_loose_periods_go() -> None:
    assert normalize_vqa_answer("x." * 40) == "x" * 33 + ".x" * 7 + "."


def test_the_worked_example() -> None:
    assert vqa_accuracy("net", NET) == 1.0
    assert vqa_accuracy("mesh", NET) == pytest.approx(0.3)
    assert vqa_accuracy("bat", NET) == 0.0


def test_accuracy_by_number_of_equal_answers() -> None:
    expected = {0: 0.0, 1: 0.3, 2: 0.6, 3: 0.9, 4: 1.0, 9: 1.0}
    for count, score in expected.items():
        assert vqa_accuracy("red", ["red"] * count + ["blue"] * (10 - count)) == pytest.approx(score)


def test_unanimous_answers_are_compared_as_plain_strings() -> None:
    assert vqa_accuracy("yes", ["yes"] * 10) == 1.0
    assert vqa_accuracy("Yes", ["yes"] * 10) == 0.0
    assert vqa_accuracy("the dog", ["dog"] * 10) == 0.0
    assert vqa_accuracy("none", ["none"] * 10) == 1.0
    assert vqa_accuracy(" dog\n", ["dog"] * 10) == 1.0


def test_disagreeing_answers_are_normalised_with_the_prediction() -> None:
    answers = ["the dog"] * 5 + ["Dog."] * 4 + ["cat"]
    assert vqa_accuracy("A dog", answers) == 1.0


def test_the_older_rule_always_normalises_the_prediction() -> None:
    assert vqa_accuracy("Yes", ["yes"] * 10, "pre2021") == 1.0
    assert vqa_accuracy("none", ["none"] * 10, "pre2021") == 0.0  # becomes "0"
    # Annotators' answers lose their punctuation only: "two." is not "2".
    answers = ["two."] * 9 + ["3"]
    assert vqa_accuracy("two", answers, "pre2021") == 0.0
    assert vqa_accuracy("two", answers, "current") == 1.0
    assert vqa_accuracy("pm", ["p.m."] * 9 + ["3"], "pre2021") == 1.0


def test_entries_equal_in_every_field_leave_each_other_out() -> None:
    with_ids = [{"answer": "red", "answer_id": i} for i in range(10)]
    without = [{"answer": "red"}] * 5 + [{"answer": "blue"}] * 5
    assert vqa_accuracy("red", with_ids) == 1.0
    assert vqa_accuracy("red", without) == 0.5  # the five who said blue see five others, the red ones none


def test_unknown_rule_and_missing_answers() -> None:
    with pytest.raises(UsageProblem, match="no VQA rule 'new'"):
        vqa_accuracy("a", ["a"], "new")
    with pytest.raises(UsageProblem, match="no VQA rule"):
        normalize_vqa_answer("a", "new")
    with pytest.raises(UsageProblem, match="annotators"):
        vqa_accuracy("a", [])


@given(st.text(max_size=30), st.lists(st.sampled_from(["red", "Red.", "a blue", "2", "two"]), min_size=10, max_size=10))
def test_accuracy_lies_between_0_and_1_and_a_shared_answer_scores(prediction: str, answers: list[str]) -> None:
    for rule in ("current", "pre2021"):
        assert 0.0 <= vqa_accuracy(prediction, answers, rule) <= 1.0
    assert vqa_accuracy(answers[0], answers) >= 0.3 - 1e-9


def by_the_description(prediction: str, answers: list[dict[str, object]]) -> float:
    """The official steps one after the other, over whole entries."""
    entries = [
        {**entry, "answer": str(entry["answer"]).replace("\n", " ").replace("\t", " ").strip()} for entry in answers
    ]
    prediction = prediction.replace("\n", " ").replace("\t", " ").strip()
    if len({entry["answer"] for entry in entries}) > 1:
        entries = [{**entry, "answer": normalize_vqa_answer(str(entry["answer"]))} for entry in entries]
        prediction = normalize_vqa_answer(prediction)
    scores = []
    for entry in entries:
        others = [other for other in entries if other != entry]
        matching = [other for other in others if other["answer"] == prediction]
        scores.append(min(1, len(matching) / 3))
    return sum(scores) / len(scores)


@given(
    st.sampled_from(["red", "Red", "the red", "2", "none", "t-shirt", " red\n"]),
    st.lists(
        st.sampled_from(["red", "Red.", "a red", "2", "two", "none", "t shirt", "red "]), min_size=10, max_size=10
    ),
)
def test_strings_score_as_the_officials_entries(prediction: str, answers: list[str]) -> None:
    entries = [{"answer": answer, "answer_confidence": "yes", "answer_id": n} for n, answer in enumerate(answers, 1)]
    want = by_the_description(prediction, [dict(entry) for entry in entries])
    assert vqa_accuracy(prediction, answers) == vqa_accuracy(prediction, entries) == pytest.approx(want, abs=1e-12)
    assert vqa_accuracy(prediction, answers, "pre2021") == vqa_accuracy(prediction, entries, "pre2021")


def test_summary_rounds_means_of_unrounded_accuracies() -> None:
    items = [
        VqaItem("1", "red", ["red"] * 10, "other", "what color"),
        VqaItem("2", "red", ["red"] + ["blue"] * 9, "other", "what color"),
        VqaItem("3", "2", ["two"] * 5 + ["2"] * 5, "number", "how many"),
    ]
    summary = summarize_vqa(items)
    assert summary.overall == 76.67
    assert summary.per_answer_type == {"other": 65.0, "number": 100.0}
    assert summary.per_question_type == {"what color": 65.0, "how many": 100.0}
    assert summary.per_question == {"1": 100.0, "2": 30.0, "3": 100.0}
    assert summarize_vqa(items, digits=0).overall == 77
    with pytest.raises(UsageProblem):
        summarize_vqa([])


@pytest.mark.skipif(not SHARED.is_dir(), reason="the sample of real VQA annotations is not here")
def test_real_annotations() -> None:
    annotations = json.loads((SHARED / "annotations.json").read_text())["annotations"]
    net = next(entry for entry in annotations if entry["question_id"] == 458752000)
    assert vqa_accuracy("net", net["answers"]) == 1.0
    assert vqa_accuracy("mesh", net["answers"]) == pytest.approx(0.3)
    assert all(vqa_accuracy("zebra crossing", entry["answers"]) == 0 for entry in annotations)
