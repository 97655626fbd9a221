"""What a prediction is worth: per-unit scores of one test suite, and their means in percent.

The unit of all statistics is the *question*: for VCR Q->A the answer choice, for QA->R the rationale choice given the
right answer, for Q->AR both of one question (formats: an Example per subtask, joined by `question_id`); for SNLI-VE
one hypothesis; for VQA one question with its soft score in 0..1.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from sys import intern
from typing import TYPE_CHECKING, Any

import numpy as np

from madkit.core.errors import DataError
from madkit.evaluate.calibration import confidences

if TYPE_CHECKING:
    from madkit.evaluate.vqa_metric import VqaRule
    from madkit.tasks.example import Example
    from madkit.tasks.spec import TaskSpec

# Stored with every result. Raise it when a formula or a field of the rows below changes: predictions of another version
# are scored anew (the students' answers are kept).
METRIC_VERSION = 2

FloatArray = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Scores:
    """Scores of one metric on one suite.

    `units` are the ids of the scored questions, `images` the image id of each (questions that share one are not
    independent), `values` [n] their scores in 0..1, `forms` the kind of each ("" where the benchmark names none),
    `answers` what was answered (a pair of choices where two are joined). `confidence` [n] and `brier` [n] are the
    probability of the answer given and the Brier score (see `calibration`), None where the rows do not tell them.
    `precision` is what the answers were computed in.
    """

    metric: str
    units: tuple[str, ...]
    images: tuple[str, ...]
    values: FloatArray
    forms: tuple[str, ...] = ()
    answers: tuple[Hashable, ...] = ()
    confidence: FloatArray | None = None
    brier: FloatArray | None = None
    precision: str = "fp32"

    @property
    def percent(self) -> float:
        """The metric itself: the mean score, 0..100."""
        return float(self.values.mean() * 100)

    def by_form(self) -> dict[str, tuple[float, int]]:
        """Percent and number of questions of each kind, by name; empty where the benchmark names fewer than two."""
        return self.by(self.forms)

    def by(self, kinds: Sequence[str]) -> dict[str, tuple[float, int]]:
        """The same for kinds [n] of one's own; "" for a question of none."""
        values: dict[str, list[float]] = defaultdict(list)
        for kind, value in zip(kinds, self.values.tolist(), strict=True):
            if kind:
                values[kind].append(value)
        if len(values) < 2:
            return {}
        return {kind: (100 * sum(values[kind]) / len(values[kind]), len(values[kind])) for kind in sorted(values)}


def score_prediction(example: Example, prediction: Any, rule: VqaRule = "current") -> float | None:
    """Score 0..1 of one answer; None where the benchmark's files do not tell the truth (hidden test sets).

    `prediction` is the index of the chosen candidate or class, or the answer string (VQA). VQA uses the official
    accuracy over the raw answers of the annotators by one of its two rules, else the soft scores of the example
    (LXMERT-style files), to which the older rule does not apply: None.
    """
    if isinstance(prediction, str):
        if example.annotations:
            from madkit.evaluate.vqa_metric import vqa_accuracy

            return float(vqa_accuracy(prediction, example.annotations, rule))
        if example.answers is not None and rule == "current":
            from madkit.tasks.answer_vocabulary import soft_targets

            return soft_targets(example, {prediction: 0}).get(0, 0.0)
        return None
    if example.label is None:
        return None
    return float(int(prediction) == example.label)


def prediction_row(example: Example, logits: Sequence[float], prediction: Any) -> dict[str, Any]:
    """One line of `predictions/<suite>.jsonl`: what was answered, and all that later statistics need of the example.

    `score` is by the current VQA rule; `score_pre2021` stands beside it where annotators' answers are scored.
    """
    row: dict[str, Any] = {
        "id": example.id,
        "question_id": example.question_id,
        "image": example.image.id,
        "logits": [round(float(value), 6) for value in logits],
        "prediction": prediction,
        "score": score_prediction(example, prediction),
    }
    if isinstance(prediction, str) and example.annotations:
        row["score_pre2021"] = score_prediction(example, prediction, "pre2021")
    if example.subtask:
        row["subtask"] = example.subtask
    if example.label is not None:
        row["label"] = example.label
    if example.answer_type:
        row["answer_type"] = example.answer_type
    if example.form:
        row["form"] = example.form
    return row


def score(spec: TaskSpec, rows: Iterable[Mapping[str, Any]], rule: VqaRule = "current") -> dict[str, Scores]:
    """All metrics of a suite from its prediction rows, the headline metric (`spec.metric`) first.

    A suite without rationales (VCR: GD-VCR's second half) has no joint metric; what it has comes first then. `rule` is
    VQA's; no other task has one.

    Raises DataError for an empty suite, a question twice, a suite whose answers are hidden, or one that keeps no
    annotators' answers when the older rule is asked for.
    """
    rows = list(rows)
    if not rows:
        raise DataError("The suite holds no examples.")
    key = score_key(spec, rule)
    hidden = sum(row.get(key) is None for row in rows)
    if hidden and all(row.get("score") is not None for row in rows):
        raise DataError(
            f"{hidden} of {len(rows)} examples have soft scores in place of the annotators' answers, which the rule "
            f"{rule} needs.",
            hint="--vqa-rule current",
        )
    if hidden:
        raise DataError(f"{hidden} of {len(rows)} examples have no right answer in the files and cannot be scored.")
    if spec.subtasks:
        found = _joined(spec, rows)
    else:
        found = {spec.metric: _collect(spec.metric, rows, key)}
        for name, part in _parts(spec, rows):
            found[name] = _collect(name, part, key)
    headline = spec.metric if spec.metric in found else next(iter(found))
    return {headline: found[headline], **found}


def score_key(spec: TaskSpec, rule: VqaRule) -> str:
    """Where a prediction row keeps the score by a VQA rule."""
    return f"score_{rule}" if spec.kind == "vqa" and rule != "current" else "score"


def _parts(spec: TaskSpec, rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Breakdown of the headline metric: by label (classification) or by answer type (VQA)."""
    if spec.kind == "classification":
        return [
            (f"{spec.metric} ({label})", part)
            for index, label in enumerate(spec.labels)
            if (part := [row for row in rows if row.get("label") == index])
        ]
    types = sorted({str(row["answer_type"]) for row in rows if row.get("answer_type")})
    if len(types) < 2:
        return []
    return [(f"{spec.metric} ({kind})", [row for row in rows if row.get("answer_type") == kind]) for kind in types]


def _joined(spec: TaskSpec, rows: Sequence[Mapping[str, Any]]) -> dict[str, Scores]:
    """VCR: Q->A and QA->R from their own rows; Q->AR, over questions that have both, is right iff both are."""
    first, second = spec.subtasks
    halves = {name: _collect(name, [row for row in rows if row.get("subtask") == name]) for name in (first, second)}
    answers, rationales = halves[first], halves[second]
    both = dict(zip(rationales.units, rationales.values, strict=True))
    kept = [index for index, unit in enumerate(answers.units) if unit in both]
    reasons = dict(zip(rationales.units, rationales.answers, strict=True))
    joint = Scores(
        "Q->AR",
        tuple(answers.units[index] for index in kept),
        tuple(answers.images[index] for index in kept),
        np.array([answers.values[index] * both[answers.units[index]] for index in kept], dtype=np.float64),
        tuple(answers.forms[index] for index in kept),
        tuple((answers.answers[index], reasons[answers.units[index]]) for index in kept),
    )
    found = {"Q->A": replace(answers, metric="Q->A"), "QA->R": replace(rationales, metric="QA->R"), "Q->AR": joint}
    found = {name: scores for name, scores in found.items() if len(scores.units)}
    if not found:
        raise DataError(f"No example of the suite says whether it asks for an {first} or a {second}.")
    return found


def _collect(metric: str, rows: Sequence[Mapping[str, Any]], key: str = "score") -> Scores:
    rows = sorted(rows, key=lambda row: str(row["question_id"]))
    units = tuple(intern(str(row["question_id"])) for row in rows)  # runs on one suite share their names
    if len(set(units)) != len(units):
        twice = next(unit for position, unit in enumerate(units[1:]) if unit == units[position])
        raise DataError(f"Question {twice!r} is in the suite twice, so its score would count twice.")
    values = np.array([float(row[key]) for row in rows], dtype=np.float64)
    told = confidences(rows, values)
    return Scores(
        metric,
        units,
        tuple(intern(str(row["image"])) for row in rows),
        values,
        forms=tuple(intern(str(row.get("form") or "")) for row in rows),
        answers=tuple(intern(one) if isinstance(one := row.get("prediction"), str) else one for row in rows),
        confidence=told["confidence"],
        brier=told["brier"],
    )
