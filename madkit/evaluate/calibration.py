"""Calibration: does a student know when it is right?

The probability of an answer is the softmax over the choices or classes (what `madkit predict` writes), and for VQA the
softmax over all answers of the head, which the rows keep as `confidence`. Of one suite and seed:

- ECE, the expected calibration error (Naeini et al. 2015; Guo et al. 2017): answers are sorted into `BINS` equally wide
  bins of their probability; the distances between mean probability and mean score of the bins are averaged, weighted by
  their numbers of answers. In points, 0..100.
- Brier score (Brier 1950): the squared distance between the probabilities of all choices and the truth (1 for the right
  choice), 0..2. VQA's answers have soft scores in place of one truth: there it is the squared distance between the
  probability of the given answer and its score, 0..1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from madkit.evaluate.grid import suites_of
from madkit.evaluate.results import Calibration
from madkit.evaluate.statistics import mean_interval

if TYPE_CHECKING:
    from madkit.evaluate.grid import Group, Run
    from madkit.evaluate.table import ScoreTable
    from madkit.tasks.spec import TaskSpec

BINS = 15
ALL_CHOICES, GIVEN_ANSWER = "all choices", "the answer given"

FloatArray = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Bin:
    """Answers whose probability lies in (`low`, `high`]: how many, their mean probability and mean score, 0..1."""

    low: float
    high: float
    n: int
    confidence: float | None
    score: float | None


def confidences(rows: Sequence[Mapping[str, Any]], values: FloatArray) -> dict[str, FloatArray | None]:
    """`confidence` [n] and `brier` [n] of prediction rows with scores `values` [n]; None where they do not tell.

    Rows of choices and classes tell by their logits; rows of answers (VQA) only where they keep a `confidence`.
    """
    nothing: dict[str, FloatArray | None] = {"confidence": None, "brier": None}
    if not rows or isinstance(rows[0].get("prediction"), str):
        if not all("confidence" in row for row in rows) or not rows:
            return nothing
        given = np.array([float(row["confidence"]) for row in rows])
        return {"confidence": given, "brier": (given - values) ** 2}
    given, brier = np.empty(len(rows)), np.empty(len(rows))
    widths = np.array([len(row["logits"]) for row in rows])
    for width in np.unique(widths):
        members = np.flatnonzero(widths == width).tolist()
        logits = np.array([rows[index]["logits"] for index in members], dtype=np.float64)
        chosen = np.array([int(rows[index]["prediction"]) for index in members])
        labels = np.array([-1 if (label := rows[index].get("label")) is None else int(label) for index in members])
        if not np.isfinite(logits).all() or (labels < 0).any() or max(chosen.max(), labels.max()) >= width:
            return nothing
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = weights / weights.sum(axis=1, keepdims=True)
        line = np.arange(len(members))
        given[members] = probabilities[line, chosen]
        brier[members] = (probabilities**2).sum(axis=1) - 2 * probabilities[line, labels] + 1
    return {"confidence": given, "brier": brier}


def reliability(confidence: FloatArray, scores: FloatArray, bins: int = BINS) -> list[Bin]:
    """The reliability diagram's data: `confidence` and `scores` [n] in 0..1, in equally wide bins of confidence."""
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    sums = np.bincount(place, weights=confidence, minlength=bins), np.bincount(place, weights=scores, minlength=bins)
    return [
        Bin(
            low=index / bins,
            high=(index + 1) / bins,
            n=int(n),
            confidence=float(sums[0][index] / n) if n else None,
            score=float(sums[1][index] / n) if n else None,
        )
        for index, n in enumerate(counts)
    ]


def expected_calibration_error(confidence: FloatArray, scores: FloatArray, bins: int = BINS) -> float:
    """ECE in points, 0..100, of `confidence` and `scores` [n] in 0..1."""
    found = reliability(confidence, scores, bins)
    gaps = [one.n * abs((one.confidence or 0.0) - (one.score or 0.0)) for one in found if one.n]
    return 100 * sum(gaps) / len(scores)


def build_calibrations(
    groups: Sequence[Group], scores: ScoreTable, *, spec_of: Callable[[Run], TaskSpec]
) -> list[Calibration]:
    """Calibration of every experiment on every suite, for the metrics whose answers have one probability.

    VCR's joint metric has none, and a VQA head that was trained with `bce` gives none that add up to one: left out.
    """
    made: list[Calibration] = []
    for group in groups:
        spec = spec_of(group.first)
        if spec.kind == "vqa" and group.first.config.get("optim.vqa_loss") == "bce":
            continue
        for suite in suites_of(group, scores):
            cells = {one.seed: scores[one, suite] for one in group.runs if (one, suite) in scores}
            for metric in spec.metrics:
                seeds = {
                    seed: (cell[metric].confidence, cell[metric].brier, cell[metric].values)
                    for seed, cell in sorted(cells.items())
                    if metric in cell
                }
                told = {
                    seed: (confidence, brier, values)
                    for seed, (confidence, brier, values) in seeds.items()
                    if confidence is not None and brier is not None
                }
                if not told:
                    continue
                errors = [expected_calibration_error(confidence, values) for confidence, _, values in told.values()]
                briers = [float(brier.mean()) for _, brier, _ in told.values()]
                pooled = (
                    np.concatenate([one[0] for one in told.values()]),
                    np.concatenate([one[2] for one in told.values()]),
                )
                of_ece, of_brier = mean_interval(errors), mean_interval(briers)
                made.append(
                    Calibration(
                        **group.about(),
                        suite=suite,
                        metric=metric,
                        seeds=tuple(told),
                        n_examples=len(pooled[0]) // len(told),
                        ece=of_ece.mean,
                        ece_low=of_ece.low,
                        ece_high=of_ece.high,
                        ece_per_seed=tuple(errors),
                        brier=of_brier.mean,
                        brier_low=of_brier.low,
                        brier_high=of_brier.high,
                        brier_per_seed=tuple(briers),
                        brier_of=GIVEN_ANSWER if spec.kind == "vqa" else ALL_CHOICES,
                        confidence=100 * float(pooled[0].mean()),
                        score=100 * float(pooled[1].mean()),
                        n_bins=BINS,
                        bins=tuple(asdict(one) for one in reliability(*pooled)),
                    )
                )
    return made
