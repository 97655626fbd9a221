"""VQA accuracy as the official evaluation computes it.

Two versions of the official rule exist, and their numbers differ slightly. "current" (since March 2021): answers and
prediction are normalised together, and only when the ten answers are not all the same string; when they are, plain
strings are compared. "pre2021": the prediction is always normalised, the answers lose their punctuation only, and only
when they are not all the same.

The normalisation keeps the official one's oddities, because numbers are compared with published ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from madkit.core.errors import UsageProblem

VqaRule = Literal["current", "pre2021"]
RULES: tuple[VqaRule, ...] = ("current", "pre2021")

# Period, apostrophe, colon, $, %, # and & are not among them.
_SIGNS = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA_DIGIT = re.compile(r"[0-9],[0-9]")
# The official expression has a mistyped look-behind that is always true: what is left is "no digit follows".
_LOOSE_PERIOD = re.compile(r"\.(?![0-9])")
_MAX_PERIODS = 32  # the official call passes a flag (value 32) where the number of replacements stands

_NUMBERS = {"none": "0"} | {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
}
_ARTICLES = frozenset({"a", "an", "the"})

_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's I'd've I'm I've isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _misspellings() -> dict[str, str]:
    """Each contraction with one of its apostrophes left out -> the contraction, plus the table's three exceptions."""
    table: dict[str, str] = {}
    for word in _CONTRACTED.split():
        for position, character in enumerate(word):
            if character == "'":
                table[word[:position] + word[position + 1 :]] = word
    return table | {"let's": "let's", "she's": "she's", "somebody'd": "somebodyd"}


CONTRACTIONS: Mapping[str, str] = _misspellings()


def _strip_punctuation(text: str) -> str:
    thousands = _DIGIT_COMMA_DIGIT.search(text) is not None
    result = text
    for sign in _SIGNS:
        if sign in text:
            loose = thousands or f"{sign} " in text or f" {sign}" in text
            result = result.replace(sign, "" if loose else " ")
    return _LOOSE_PERIOD.sub("", result, count=_MAX_PERIODS)


def _normalise_words(text: str) -> str:
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _plain(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _check_rule(rule: str) -> None:
    if rule not in RULES:
        raise UsageProblem(f"There is no VQA rule {rule!r}.", hint=f"use one of: {', '.join(RULES)}")


def normalize_vqa_answer(text: str, rule: VqaRule = "current") -> str:
    """A predicted answer in the form in which the official evaluation compares it.

    Punctuation goes, number words up to ten become digits, articles go, and apostrophes missing from contractions come
    back. Both rules treat a prediction alike; they differ in when they do it and in what they do to the annotators'
    answers, see `vqa_accuracy`. Raises UsageProblem for an unknown rule.
    """
    _check_rule(rule)
    return _normalise_words(_strip_punctuation(_plain(text)))


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
        given = [_plain(answer) for answer in given]
        guess = _plain(prediction)
        if len(set(given)) > 1:
            given = [_normalise_words(_strip_punctuation(answer)) for answer in given]
            guess = _normalise_words(_strip_punctuation(guess))
    else:
        guess = normalize_vqa_answer(prediction)
        if len(set(given)) > 1:
            given = [_strip_punctuation(answer) for answer in given]
    entries = [
        (answer, position) if isinstance(original, str) else {**original, "answer": answer}
        for position, (answer, original) in enumerate(zip(given, answers, strict=True))
    ]
    matching = [entry for entry, answer in zip(entries, given, strict=True) if answer == guess]
    scores = [min(1.0, sum(other != entry for other in matching) / 3) for entry in entries]
    return sum(scores) / len(scores)


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
        return round(100 * sum(values) / len(values), digits)

    return VqaSummary(
        overall=percent(list(scores.values())),
        per_answer_type={name: percent(values) for name, values in by_answer.items()},
        per_question_type={name: percent(values) for name, values in by_question.items()},
        per_question={name: round(100 * score, digits) for name, score in scores.items()},
    )
