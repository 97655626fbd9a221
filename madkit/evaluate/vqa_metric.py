"""VQA accuracy as the official evaluation computes it.

Two versions of the official rule exist, and their numbers differ slightly. "current" (since March 2021): answers and
prediction are normalised together, and only when the ten answers are not all the same string; when they are, plain
strings are compared. "pre2021": the prediction is always normalised, the answers lose their punctuation only, and only
when they are not all the same.

The normalisation keeps the official one's oddities, because numbers are compared with published ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import fsum
from typing import Any, Literal

from madkit.core.errors import UsageProblem
from madkit.tasks.vqa_normalization import CONTRACTIONS as CONTRACTIONS
from madkit.tasks.vqa_normalization import normalise_words, plain, strip_punctuation

VqaRule = Literal["current", "pre2021"]
RULES: tuple[VqaRule, ...] = ("current", "pre2021")


def _check_rule(rule: str) -> None:
    if rule not in RULES:
        raise UsageProblem(f"There is no VQA rule {rule!r}.", hint=f"use one of: {', '.join(RULES)}")


@lru_cache(maxsize=1 << 18)
def _normalised(text: str) -> str:
    """Both steps of the normalisation; kept, because the same answers are given again and again."""
    return normalise_words(strip_punctuation(text))


def normalize_vqa_answer(text: str, rule: VqaRule = "current") -> str:
    """A predicted answer in the form in which the official evaluation compares it.

    Punctuation goes, number words up to ten become digits, articles go, and apostrophes missing from contractions come
    back. Both rules treat a prediction alike; they differ in when they do it and in what they do to the annotators'
    answers, see `vqa_accuracy`. Raises UsageProblem for an unknown rule.
    """
    _check_rule(rule)
    return _normalised(plain(text))


def vqa_accuracy(prediction: str, answers: Sequence[str | Mapping[str, Any]], rule: VqaRule = "current") -> float:
    """The accuracy in 0..1 of one prediction: the mean over annotators of min(1, equal answers of the others / 3).

    Args:
        prediction: the raw predicted answer.
        answers: the ten raw answers, as strings or as the annotation's own entries ({"answer", "answer_id", ...}).
            Officially "the others" are the entries that differ from the annotator's in any field, so entries that are
            equal in all fields (`answer_id` missing) leave each other out. Strings count as entries with different ids.
        rule: which version of the official rule, see the module.

    Raises:
        UsageProblem: an unknown rule, or no answers.
    """
    _check_rule(rule)
    if not answers:
        raise UsageProblem("VQA accuracy needs the annotators' answers, but there are none.")
    given = [answer if isinstance(answer, str) else str(answer["answer"]) for answer in answers]
    if rule == "current":
        given = [plain(answer) for answer in given]
        guess = plain(prediction)
        if len(set(given)) > 1:
            given = [_normalised(answer) for answer in given]
            guess = _normalised(guess)
    else:
        guess = normalize_vqa_answer(prediction)
        if len(set(given)) > 1:
            given = [strip_punctuation(answer) for answer in given]
    if all(isinstance(original, str) for original in answers):
        equal = given.count(guess)
        others = {True: min(1.0, (equal - 1) / 3), False: min(1.0, equal / 3)}
        return fsum(others[answer == guess] for answer in given) / len(given)  # `sum` rounds as the Python does
    entries = [
        (answer, position) if isinstance(original, str) else {**original, "answer": answer}
        for position, (answer, original) in enumerate(zip(given, answers, strict=True))
    ]
    matching = [entry for entry, answer in zip(entries, given, strict=True) if answer == guess]
    scores = [min(1.0, sum(other != entry for other in matching) / 3) for entry in entries]
    return fsum(scores) / len(scores)


@dataclass(frozen=True, slots=True)
class VqaItem:
    """A prediction with what it is compared to, and the types under which it is counted ("" for none)."""

    question_id: str
    prediction: str
    answers: Sequence[str | Mapping[str, Any]]
    answer_type: str = ""
    question_type: str = ""


@dataclass(frozen=True, slots=True)
class VqaSummary:
    """Accuracies in percent, rounded as officially; `per_question` by question id."""

    overall: float
    per_answer_type: dict[str, float] = field(default_factory=dict)
    per_question_type: dict[str, float] = field(default_factory=dict)
    per_question: dict[str, float] = field(default_factory=dict)


def summarize_vqa(items: Iterable[VqaItem], *, rule: VqaRule = "current", digits: int = 2) -> VqaSummary:
    """Accuracy over questions: overall, per answer type and per question type, in percent.

    Means are taken over unrounded accuracies; each number is rounded to `digits` places at the end. Raises
    UsageProblem when there is no item.
    """
    scores: dict[str, float] = {}
    by_answer: dict[str, list[float]] = {}
    by_question: dict[str, list[float]] = {}
    for item in items:
        score = vqa_accuracy(item.prediction, item.answers, rule)
        scores[item.question_id] = score
        if item.answer_type:
            by_answer.setdefault(item.answer_type, []).append(score)
        if item.question_type:
            by_question.setdefault(item.question_type, []).append(score)
    if not scores:
        raise UsageProblem("There are no predictions to score.")

    def percent(values: Sequence[float]) -> float:
        return round(100 * fsum(values) / len(values), digits)

    return VqaSummary(
        overall=percent(list(scores.values())),
        per_answer_type={name: percent(values) for name, values in by_answer.items()},
        per_question_type={name: percent(values) for name, values in by_question.items()},
        per_question={name: round(100 * score, digits) for name, score in scores.items()},
    )
