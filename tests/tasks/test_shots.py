from __future__ import annotations

import random
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from madkit.core.errors import DataError, UsageProblem
from madkit.tasks.example import Example, ImageRef, Segment
from madkit.tasks.shots import parse_shots, question_order, select_shots, stratum


def example(number: int, image: int, label: int | None = None, *, answer_type: str = "", subtask: str = "") -> Example:
    return Example(
        id=f"{number}/{subtask}",
        task="vcr",
        question_id=str(number),
        image=ImageRef(str(image), Path("x.png")),
        context=(Segment("Why?"),),
        label=label,
        answer_type=answer_type,
        subtask=subtask,
    )


def select(examples: list[Example], shots: str, seed: int = 0, revision: str = "r") -> list[str]:
    return [e.id for e in select_shots(examples, shots, seed=seed, revision=revision)]


def worst_deviation(examples: list[Example], seed: int = 0) -> float:
    """How far any stratum of any prefix is from its share of the prefix."""
    kinds = {e.question_id: stratum(e) for e in reversed(examples)}
    total = Counter(kinds.values())
    taken: Counter[str] = Counter()
    worst = 0.0
    for size, question in enumerate(question_order(examples, seed=seed, revision="r"), 1):
        taken[kinds[question]] += 1
        worst = max(worst, *(abs(taken[k] - size * n / len(kinds)) for k, n in total.items()))
    return worst


MIXED = [example(i, i // 4, random.Random(i).choice([0, 1, 1, 2])) for i in range(400)]


@pytest.mark.parametrize(
    ("text", "count"),
    [("full", 1000), ("1pct", 10), ("5pct", 50), ("10pct", 100), ("0.5pct", 5), ("100pct", 1000), ("7", 7), (" 7 ", 7)],
)
def test_sizes(text: str, count: int) -> None:
    assert parse_shots(text).questions(1000) == count


def test_shares_are_rounded_half_up_and_never_empty() -> None:
    assert parse_shots("1pct").questions(150) == 2
    assert parse_shots("1pct").questions(149) == 1
    assert parse_shots("1pct").questions(3) == 1


def test_text_of_shots() -> None:
    assert [str(parse_shots(t)) for t in ("FULL", "1pct", "2.50pct", "007")] == ["full", "1pct", "2.5pct", "7"]


@pytest.mark.parametrize("text", ["", "0", "-1", "1%", "pct", "101pct", "0pct", "1.5", "few", "1e3", "nanpct", "٣"])
def test_wrong_shots_are_refused_with_examples(text: str) -> None:
    with pytest.raises(UsageProblem) as caught:
        parse_shots(text)
    assert "1pct" in (caught.value.hint or "")


def test_more_questions_than_there_are() -> None:
    with pytest.raises(UsageProblem, match=r"--shots 401 asks for more questions than the training set has \(400\)"):
        select(MIXED, "401")
    assert select(MIXED, "400") == [e.id for e in MIXED]


def test_full_is_everything_in_order() -> None:
    assert select(MIXED, "full") == [e.id for e in MIXED]


def test_sizes_are_nested_and_exact() -> None:
    sizes = ["1", "1pct", "5", "5pct", "33", "10pct", "41", "200", "399", "full"]
    chosen = [set(select(MIXED, size)) for size in sorted(sizes, key=lambda s: parse_shots(s).questions(400))]
    assert all(small < large for small, large in pairwise(chosen))
    for size in sizes:
        assert len(select(MIXED, size)) == parse_shots(size).questions(400)


def test_the_subset_depends_on_revision_and_seed_alone() -> None:
    shuffled = MIXED.copy()
    random.Random(1).shuffle(shuffled)
    assert set(select(shuffled, "10pct")) == set(select(MIXED, "10pct"))
    assert select(MIXED, "10pct", seed=1) != select(MIXED, "10pct")
    assert select(MIXED, "10pct", revision="s") != select(MIXED, "10pct")


def test_the_order_is_fixed_for_ever() -> None:
    """Published results name their subset by revision and seed."""
    fixed = [example(i, i // 3, i * i % 5 // 2) for i in range(300)]
    assert question_order(fixed, seed=7, revision="0123456789abcdef", limit=12) == [
        "198",
        "200",
        "199",
        "152",
        "151",
        "150",
        "292",
        "291",
        "293",
        "215",
        "213",
        "214",
    ]


def test_questions_of_an_image_are_taken_together() -> None:
    order = question_order(MIXED, seed=3, revision="r")
    images = [int(question) // 4 for question in order]
    assert images[::4] == images[3::4]
    assert len(set(images[::4])) == 100
    partly = Counter(int(i.split("/")[0]) // 4 for i in select(MIXED, "42"))
    assert sorted(partly.values()) == [2] + [4] * 10


def test_both_examples_of_a_vcr_question_come_together() -> None:
    both = [example(i, i, i % 4, subtask=s) for i in range(50) for s in ("answer", "rationale")]
    chosen = select_shots(both, "8", seed=0, revision="r")
    assert len(chosen) == 16
    assert Counter(e.question_id for e in chosen) == dict.fromkeys({e.question_id for e in chosen}, 2)
    assert Counter(e.label for e in chosen) == {0: 4, 1: 4, 2: 4, 3: 4}


def test_answer_types_are_strata_of_vqa() -> None:
    questions = [example(i, i, answer_type="yes/no" if i % 5 < 2 else "other") for i in range(100)]
    chosen = select_shots(questions, "10", seed=0, revision="r")
    assert Counter(e.answer_type for e in chosen) == {"yes/no": 4, "other": 6}


@pytest.mark.parametrize("per_image", [1, 2, 4, 5])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_prefix_keeps_the_labels_within_one_of_their_share(per_image: int, seed: int) -> None:
    draw = random.Random(seed)
    examples = [
        example(i, i // per_image, label)
        for i, label in enumerate(draw.choices(range(3), weights=[0.4, 0.12, 0.48], k=600))
    ]
    kinds = {e.question_id: e.label for e in examples}
    total = Counter(kinds.values())
    taken: Counter[int | None] = Counter()
    # Where images hold several questions, the last ones are forced to be what is left.
    for size, question in enumerate(question_order(examples, seed=seed, revision="r", limit=300), 1):
        taken[kinds[question]] += 1
        assert all(abs(taken[k] - size * n / 600) <= 1 for k, n in total.items())


@given(st.lists(st.integers(0, 3), min_size=1, max_size=80), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_single_question_images_are_always_within_one(labels: list[int], seed: int) -> None:
    assert worst_deviation([example(i, i, label) for i, label in enumerate(labels)], seed) <= 1


def test_images_are_drawn_without_favour() -> None:
    """Each image comes first about equally often: the balance of labels must not favour some images."""
    examples = [example(i, i, i % 2) for i in range(20)]
    first = Counter(i for seed in range(400) for i in select(examples, "5", seed=seed))
    assert len(first) == 20
    assert all(60 <= n <= 140 for n in first.values())  # 100 expected, standard deviation below 9


def test_examples_of_one_question_with_two_images_are_refused() -> None:
    with pytest.raises(DataError, match="question '1' have different images"):
        select([example(1, 1), example(1, 2)], "1")


def test_20000_questions_take_little_time() -> None:
    examples = [example(i, i // 3, i * i % 4) for i in range(20_000)]
    start = time.process_time()
    assert len(select(examples, "10pct")) == 2000
    assert time.process_time() - start < 3  # CPU time, about 0.1 s on an idle core
