from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madkit.core.errors import DataError, NotFoundError, UsageProblem
from madkit.tasks.answer_vocabulary import (
    answer_vocabulary,
    count_answers,
    positions_of,
    read_answer_file,
    soft_targets,
)
from madkit.tasks.example import Example, ImageRef, Segment
from madkit.tasks.formats.vqa import SOFT_SCORES, read_vqa
from madkit.tasks.index.columns import soft_scores
from madkit.tasks.vqa_normalization import vocabulary_form

DATA = Path(__file__).parents[3] / "shared" / "data"
UNITER = DATA / "answers" / "uniter_ans2label.json"
LXMERT = DATA / "answers" / "lxmert_label2ans.json"
published = pytest.mark.skipif(not UNITER.is_file(), reason="the published answer lists are not here")


def question(main: str = "", given: Sequence[str] = (), answers: dict[str, float] | None = None) -> Example:
    scores = soft_scores(tuple(given)) if given else answers
    image = ImageRef("1", Path("1.jpg"))
    return Example(
        "1", "vqa", "1", image, (Segment("Why?"),), answers=scores, annotations=tuple(given), main_answer=main
    )


# -- the rule -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "form"),
    [("t-shirt", "t shirt"), ("a", ""), ("the", ""), ("none", "0"), ("1,000", "1000"), ("red, white", "red white")],
)
def test_forms_of_answers(raw: str, form: str) -> None:
    assert vocabulary_form(raw) == form


def test_nine_questions_make_an_answer_and_spellings_count_together() -> None:
    mains = ["dog"] * 5 + ["the dog"] * 2 + ["Dog."] * 2 + ["cat"] * 8 + ["two"] * 5 + ["2"] * 4 + ["an"] * 9
    assert answer_vocabulary(question(main) for main in mains) == ("dog", "2", "")
    assert answer_vocabulary((question(main) for main in mains), min_questions=8) == ("dog", "cat", "2", "")
    with pytest.raises(DataError, match="10 or more"):
        answer_vocabulary([question("dog")] * 9, min_questions=10)


def test_the_order_is_that_of_first_occurrence_or_of_frequency() -> None:
    mains = ["rare", "often", "yes"] + ["rare"] * 8 + ["yes"] * 9 + ["often"] * 9
    assert answer_vocabulary(question(main) for main in mains) == ("rare", "often", "yes")
    assert answer_vocabulary((question(main) for main in mains), order="frequency") == ("often", "yes", "rare")
    with pytest.raises(UsageProblem):
        answer_vocabulary([], order="random")


def test_without_a_main_answer_the_best_soft_score_counts() -> None:
    examples = [question(answers={"dog": 0.9, "cat": 0.9, "ant": 0.3}), question(answers={}), question()]
    assert dict(count_answers(examples)) == {"cat": 1}


@pytest.mark.skipif(not DATA.is_dir(), reason="the sample of real VQA questions is not here")
def test_real_questions_begin_uniters_list() -> None:
    """Its order is that of first occurrence in train2014, whose first three questions these are."""
    examples = read_vqa(DATA / "vqa_v2" / "questions.json", DATA / "vqa_v2" / "annotations.json", DATA)
    assert answer_vocabulary(examples, min_questions=1) == read_answer_file(UNITER)[:3]


# -- published lists ------------------------------------------------------------------------------------------------


@published
def test_the_published_lists_have_the_same_answers_in_another_order() -> None:
    uniter, lxmert = read_answer_file(UNITER), read_answer_file(LXMERT)
    assert len(uniter) == len(lxmert) == 3129
    assert set(uniter) == set(lxmert)
    assert uniter != lxmert
    assert uniter[:5] == ("net", "pitcher", "orange", "yes", "white")
    assert (uniter.index(""), lxmert.index("")) == (125, 0)
    assert lxmert[1:3] == ("woods", "trash can")


@published
def test_published_answers_are_forms_already() -> None:
    """Whoever made the lists ran the official functions: ours must leave every answer as it is."""
    assert [answer for answer in read_answer_file(UNITER) if vocabulary_form(answer) != answer] == []


# -- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", '{"yes": 1, "no": 0, "": 2}'),
        ("a.json", '["no", "yes", ""]'),
        ("a.json", '{"1": "yes", "0": "no", "2": ""}'),
        ("a.txt", "no\nyes\n\n"),
        ("a.txt", "\ufeffno\r\nyes\r\n\r\n"),
    ],
)
def test_answer_files(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_bytes(content.encode())
    assert read_answer_file(tmp_path / name) == ("no", "yes", "")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.json", '{"yes": 1, "no": 2}', "the position of 'no' is 2, but with 2 answers 0 to 1 exist"),
        ("a.json", '{"yes": 1, "no": 1}', "'yes' and 'no' have the same position, 1"),
        ("a.json", '{"yes": 0, "no": -1}', "the position of 'no' is -1"),
        ("a.json", '{"yes": 0, "no": 1.0}', "the position of 'no' must be an integer"),
        ("a.json", '{"yes": true, "no": 0}', "the position of 'yes' must be an integer, found a boolean"),
        ("a.json", '{"yes": "0"}', "every key must be a position"),
        ("a.json", '{"0": "yes", "1": "yes"}', "'yes' stands there twice, at positions 0 and 1"),
        ("a.json", '["yes", "no", "yes"]', "'yes' stands there twice, at positions 0 and 2"),
        ("a.json", '["yes", 3]', "the answer at position 1 must be a string, found a number"),
        ("a.json", "[]", "holds no answers"),
        ("a.json", "{}", "holds no answers"),
        ("a.json", '"yes"', "a list of answers or an object of answers and positions is needed, found a string"),
        ("a.json", '["yes"', "truncated"),
        ("a.txt", "", "holds no answers"),
        ("a.txt", "yes\nno\nyes\n", "twice"),
        ("a.txt", b"caf\xe9\n", "byte 4 is not UTF-8"),
    ],
)
def test_broken_answer_files(tmp_path: Path, name: str, content: str | bytes, problem: str) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=rf"a\.(json|txt).*{problem}"):
        read_answer_file(tmp_path / name)
    with pytest.raises(NotFoundError):
        read_answer_file(tmp_path / "b.json")


# -- soft targets ---------------------------------------------------------------------------------------------------

POSITIONS = positions_of(("t shirt", "yes", "0", ""))


def test_spellings_of_an_answer_count_together_or_are_lost() -> None:
    example = question("t-shirt", ["t-shirt"] * 2 + ["t shirt", "T-Shirt.", "none", "a", "yes", "yes", "yes", "hat"])
    assert soft_targets(example, POSITIONS) == {0: 1.0, 1: 0.9, 2: 0.3, 3: 0.3}
    assert soft_targets(example, POSITIONS, match="raw") == {0: 0.3, 1: 0.9}


def test_an_identical_answer_goes_before_a_normalised_one() -> None:
    positions = positions_of(("t shirt", "t-shirt"))
    assert soft_targets(question("", ["t-shirt"] * 10), positions) == {1: 1.0}


def test_scores_alone() -> None:
    example = question(answers={"t-shirt": 0.3, "t shirt": 0.9, "none": 0.6, "yes": 0.0})
    assert soft_targets(example, POSITIONS) == {0: 0.9, 2: 0.6}
    assert soft_targets(example, POSITIONS, match="raw") == {0: 0.9}
    assert soft_targets(question(), POSITIONS) == {}


def test_an_unknown_way_to_match() -> None:
    with pytest.raises(UsageProblem, match="'fuzzy'"):
        soft_targets(question(), POSITIONS, match="fuzzy")


@given(
    st.lists(st.sampled_from(["t-shirt", "t shirt", "yes", "Yes", "none", "0", "the", "hat"]), min_size=10, max_size=10)
)
def test_normalised_targets_are_the_raw_ones_of_normalised_answers(given_answers: list[Any]) -> None:
    """Counting by `vocabulary_form`, an independent way to the same numbers."""
    forms = [vocabulary_form(answer) for answer in given_answers]
    want = {place: SOFT_SCORES[forms.count(answer)] for answer, place in POSITIONS.items() if answer in forms}
    assert soft_targets(question("", given_answers), POSITIONS) == want
    raw = {place: SOFT_SCORES[given_answers.count(a)] for a, place in POSITIONS.items() if a in given_answers}
    assert soft_targets(question("", given_answers), POSITIONS, match="raw") == raw


def test_answer_files_of_madkit_itself(tmp_path: Path) -> None:
    (tmp_path / "answers.json").write_text(json.dumps(["b", "a"]))
    assert read_answer_file(tmp_path / "answers.json") == ("b", "a")
