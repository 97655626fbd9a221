"""The unlabelled pool knows no label: the same examples with other labels give the same pool."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from madkit.distill.pool.pool import split_held_out, unlabelled_pairs
from madkit.tasks.example import Example, ImageRef, Segment


def vcr_question(number: int, answer: int, rationale: int) -> list[Example]:
    """Both examples of a question as the reader makes them: the rationale's context ends in the right answer."""
    question = Segment(f"question {number}")
    answers = tuple(Segment(f"answer {number}.{place}") for place in range(4))
    rationales = tuple(Segment(f"rationale {number}.{place}") for place in range(4))
    base = Example(
        id=f"q{number}/answer", task="vcr", question_id=f"q{number}", image=ImageRef(f"image-{number % 25}", Path("x")),
        context=(question,), candidates=answers, label=answer, subtask="answer",
    )  # fmt: skip
    follow = replace(
        base, id=f"q{number}/rationale", context=(question, answers[answer]), candidates=rationales, label=rationale,
        subtask="rationale",
    )  # fmt: skip
    return [base, follow]


def questions(label) -> list[Example]:
    return [example for number in range(50) for example in vcr_question(number, label(number), label(number + 1))]


def test_the_pool_is_blind_to_every_label():
    one = unlabelled_pairs(questions(lambda n: n % 4), draws=10_000, seed=3)
    other = unlabelled_pairs(questions(lambda n: (n * 7 + 2) % 4), draws=10_000, seed=3)
    assert one == other
    assert len(one) == 50 * 8
    assert all(pair.label is None and pair.answers is None and len(pair.candidates) == 1 for pair in one)


def test_answers_in_rationale_pairs_are_drawn_evenly():
    pairs = [pair for pair in unlabelled_pairs(questions(lambda n: 0), draws=10_000, seed=0) if len(pair.context) == 2]
    drawn = [int(pair.context[1].text[-1]) for pair in pairs]
    assert len(drawn) == 200
    assert all(25 <= drawn.count(place) <= 80 for place in range(4))


def test_no_more_pairs_than_training_can_use():
    assert len(unlabelled_pairs(questions(lambda n: 0), draws=100, seed=0)) == 100
    assert len(unlabelled_pairs(questions(lambda n: 0), draws=10_000, limit=10, seed=0)) == 80
    assert len({pair.question_id for pair in unlabelled_pairs(questions(lambda n: 0), draws=10, seed=0)}) == 50


def test_examples_without_candidates_lose_their_answers():
    example = Example(
        id="1", task="vqa", question_id="1", image=ImageRef("i", Path("x")), context=(Segment("what?"),),
        answers={"red": 1.0}, annotations=("red",) * 10, answer_type="other", form="what",
    )  # fmt: skip
    (pair,) = unlabelled_pairs([example], draws=5, seed=0)
    assert pair == replace(example, answers=None, annotations=(), answer_type="", form="")


def test_held_out_pairs_share_no_image_with_the_rest():
    pairs = unlabelled_pairs(questions(lambda n: 0), draws=10_000, seed=0)
    train, held = split_held_out(pairs, 0.1, 0)
    assert len(train) + len(held) == len(pairs)
    assert len({pair.image.id for pair in held}) == 2
    assert not {pair.image.id for pair in held} & {pair.image.id for pair in train}
    assert split_held_out(pairs, 0.1, 0) == (train, held)
