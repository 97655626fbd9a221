"""The gate of the design: nobody scores by reading alone, looking alone, or knowing which form has which label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch

from madkit.tasks.mini.chunks import Question, scenes_of
from madkit.tasks.mini.commonsense import Conundrum, Token
from madkit.tasks.mini.concepts import COLOURS, concepts
from madkit.tasks.mini.draw import Draw
from madkit.tasks.mini.entailment import LABELS, Hypothesis
from madkit.tasks.mini.plan import splits_of
from madkit.tasks.mini.scene import Thing
from madkit.tasks.mini.visual_qa import VisualQuestion, uniform_guess
from madkit.tasks.mini.vocabulary import words_of

from .blind import linear_accuracy, majority_accuracy, ngrams

TRAIN_CHUNKS, TEST_CHUNKS = 24, 12
MARGIN = 2.0

Item = tuple[Question, tuple[Thing, ...]]


@cache
def items(task: str, split: str) -> list[Item]:
    """Questions with scenes; the test split goes on beyond its shipped size, for a narrower estimate."""
    plan = next(plan for plan in splits_of(task, "full") if plan.name == split)
    plan = replace(plan, questions=10**6)
    chunks = range(TRAIN_CHUNKS if split == "train" else TEST_CHUNKS)
    return [(q, scene) for i in chunks for questions, scene in scenes_of(task, plan, i) for q in questions]


def looks(scene: Sequence[Thing]) -> list[str]:
    """Everything in a picture, as an ideal detector would list it."""
    listed = [f"things={len(scene)}"]
    for thing in scene:
        concept, colour = concepts()[thing.concept], COLOURS[thing.colour].name
        listed += [concept.name, concept.category, colour, f"cell{thing.cell}", f"{colour} {concept.category}"]
        listed += [f"{colour} at {thing.cell}", f"{concept.category} at {thing.cell}"]
    return listed


def labels(task: str, split: str) -> torch.Tensor:
    """Class numbers: label, answer or right choice."""
    truths = [truth_of(q) for q, _ in items(task, split)]
    table = {
        name: i for i, name in enumerate(sorted({truth_of(q) for s in ("train", "test") for q, _ in items(task, s)}))
    }
    return torch.tensor([table[truth] for truth in truths])


def truth_of(question: Question) -> str:
    """What has to be said."""
    if isinstance(question, Hypothesis):
        return question.label
    return question.answer if isinstance(question, VisualQuestion) else str(question.answer_label)


def spoken(tokens: Sequence[Token]) -> list[str]:
    """VCR's tokens as words; a tag is a word of its own."""
    return [f"[{t}]" if isinstance(t, list) else t.lower() for t in tokens]


CHANCE = {"snli-ve": 100 / len(LABELS), "vqa": 100 * uniform_guess(range(len(concepts()))), "vcr": 25.0}


@pytest.mark.parametrize("task", ["snli-ve", "vqa"])
def test_text_only_is_at_chance(task: str) -> None:
    train, test = (
        [ngrams(words_of(q.text)) for q, _ in items(task, s) if not isinstance(q, Conundrum)] for s in ("train", "test")
    )
    accuracy = linear_accuracy(train, labels(task, "train"), test, labels(task, "test"))
    assert accuracy < CHANCE[task] + MARGIN


@pytest.mark.parametrize("part", ["answer", "rationale"])
def test_text_only_is_at_chance_in_vcr(part: str) -> None:
    def bags(split: str) -> tuple[list[list[str]], torch.Tensor]:
        rows, truth = [], []
        for i, (question, scene) in enumerate(items("vcr", split)):
            assert isinstance(question, Conundrum)
            asked = spoken(question.tokens(question.question[0], scene))
            answers = [spoken(a) for a in question.answer_tokens(scene, Draw("blind", split, i), False)]
            choices = answers
            if part == "rationale":
                asked = asked + answers[question.answer_label]
                choices = [spoken(question.tokens(draft, scene)) for draft in question.rationales[0]]
            for k, choice in enumerate(choices):
                others = {word for j, other in enumerate(choices) if j != k for word in other}
                shared = sum(word in asked for word in choice)
                central = sum(word in others for word in choice)
                pairs = [f"{a}~{b}" for a in asked for b in choice]
                rows.append([*ngrams(choice), *pairs, f"shared={shared}", f"central={central}", f"k={k}"])
            truth.append(question.answer_label if part == "answer" else question.rationale_label)
        return rows, torch.tensor(truth)

    (train, truth), (test, test_truth) = bags("train"), bags("test")
    assert linear_accuracy(train, truth, test, test_truth, choices=4) < CHANCE["vcr"] + MARGIN


@pytest.mark.parametrize("task", ["snli-ve", "vqa", "vcr"])
def test_image_only_is_at_chance(task: str) -> None:
    train, test = ([looks(scene) for _, scene in items(task, s)] for s in ("train", "test"))
    accuracy = linear_accuracy(train, labels(task, "train"), test, labels(task, "test"))
    # A picture does not say what will be asked; "yes" is then the best answer to VQA, and far below guessing by form.
    assert accuracy < CHANCE[task] + MARGIN


@pytest.mark.parametrize("task", ["snli-ve", "vqa", "vcr"])
def test_majority_by_form_is_at_chance(task: str) -> None:
    def forms(split: str) -> list[str]:
        return [" ".join(sorted({q.kind} | (FORM_WORDS & set(words_of(form_text(q)))))) for q, _ in items(task, split)]

    truth = {s: [truth_of(q) for q, _ in items(task, s)] for s in ("train", "test")}
    accuracy = majority_accuracy(forms("train"), truth["train"], forms("test"), truth["test"])
    assert accuracy < CHANCE[task] + MARGIN


FORM_WORDS = frozenset(
    [
        "the",
        "is",
        "that",
        "on",
        "at",
        "left",
        "right",
        "top",
        "bottom",
        "thing",
        "in",
        "a",
        "an",
        "of",
        "colour",
        "there",
        "what",
        "kind",
    ]
)


def form_text(question: Question) -> str:
    """The text whose function words make up a form."""
    if isinstance(question, Conundrum):
        return " ".join(word for word in question.question[0] if isinstance(word, str))
    return question.text


def test_a_leak_would_be_seen() -> None:
    """The text classifier finds a leak as small as one word in ten sentences of one label."""
    draw = Draw("leak")
    spoiled = {}
    for split in ("train", "test"):
        spoiled[split] = [
            ngrams([*words_of(q.text), *(["indeed"] if q.label == "neutral" and draw.chance(0.25) else [])])
            for q, _ in items("snli-ve", split)
            if isinstance(q, Hypothesis)
        ]
    accuracy = linear_accuracy(spoiled["train"], labels("snli-ve", "train"), spoiled["test"], labels("snli-ve", "test"))
    assert accuracy > CHANCE["snli-ve"] + MARGIN
