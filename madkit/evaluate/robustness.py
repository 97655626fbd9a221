"""Effective robustness: is an arm better under shift than its in-domain score alone lets expect?

Scores in-domain and under a shift lie on a line after both went through the logit (Taori et al. 2020; Miller et al.
2021). The line is fitted here by least squares to the runs of the baseline arm on the same data with the same student,
over all numbers of labels and seeds. An arm that is merely better moves along the line; effective robustness is how far
it lies above, in points, seed by seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from madkit.evaluate.grid import IN_DOMAIN, find_baseline, shots_order, suites_of
from madkit.evaluate.results import Robustness
from madkit.evaluate.statistics import mean_interval

if TYPE_CHECKING:
    from madkit.evaluate.grid import Group, Run
    from madkit.evaluate.table import ScoreTable
    from madkit.tasks.spec import TaskSpec

LEAST_RUNS = 3


@dataclass(frozen=True)
class Line:
    """logit(shifted) = intercept + slope * logit(in-domain); `low` and `high` bound the in-domain scores, percent."""

    slope: float
    intercept: float
    n_runs: int
    shots: tuple[str, ...]
    r2: float
    low: float
    high: float

    def foretells(self, in_domain: float) -> float:
        """The score under shift, in percent, that goes with an in-domain score in percent."""
        return foretold(self.slope, self.intercept, in_domain)

    def beyond(self, in_domain: float) -> bool:
        """Whether the line is used outside the scores that it was fitted to."""
        return not self.low <= in_domain <= self.high


def foretold(slope: float, intercept: float, in_domain: float) -> float:
    """The score under shift, in percent, that a line of logits foretells from an in-domain score in percent."""
    share = min(max(in_domain / 100, 1e-3), 1 - 1e-3)
    return 100 / (1 + math.exp(-(intercept + slope * math.log(share / (1 - share)))))


def fit_line(in_domain: Sequence[float], shifted: Sequence[float], shots: Sequence[str]) -> Line | None:
    """The line through runs with these scores (percent) and numbers of labels.

    None with fewer than three runs or one number of labels: seeds alone differ by chance, which makes no line.
    """
    from scipy import stats
    from scipy.special import logit

    if len(in_domain) < LEAST_RUNS or len(set(shots)) < 2 or len(set(in_domain)) < 2:
        return None
    x, y = (logit(np.clip(np.asarray(values) / 100, 1e-3, 1 - 1e-3)) for values in (in_domain, shifted))
    if np.ptp(x) == 0:
        return None
    fit = stats.linregress(x, y)
    names = tuple(sorted(set(shots), key=shots_order))
    # where every shifted score is the same, there is no variance to explain, and scipy's correlation is NaN
    r2 = 0.0 if np.ptp(y) == 0 else float(fit.rvalue) ** 2
    return Line(float(fit.slope), float(fit.intercept), len(x), names, r2, min(in_domain), max(in_domain))


def build_robustness(
    groups: Sequence[Group], scores: ScoreTable, *, spec_of: Callable[[Run], TaskSpec], baseline: str
) -> list[Robustness]:
    """The loss under every shift, of every experiment that was scored in-domain too, by the suite's headline metric."""
    made: list[Robustness] = []
    for group in groups:
        suites = suites_of(group, scores)
        if IN_DOMAIN not in suites:
            continue
        for suite in suites:
            metric = next(iter(next(scores[run, suite] for run in group.runs if (run, suite) in scores)))
            if suite == IN_DOMAIN or metric not in spec_of(group.first).metrics:
                continue
            ours = _pairs(group, scores, suite, metric)
            if ours:
                against = find_baseline(group, groups, baseline)
                theirs = _pairs(against, scores, suite, metric) if against is not None else {}
                line = _line_of(group, groups, scores, suite, metric, baseline)
                made.append(_row(group, suite, metric, baseline, ours, theirs, line))
    return made


def _pairs(group: Group, scores: ScoreTable, suite: str, metric: str) -> dict[int, tuple[float, float]]:
    """In-domain and shifted score, percent, by seed."""
    found = {}
    for run in group.runs:
        here, there = scores.get((run, IN_DOMAIN), {}), scores.get((run, suite), {})
        if metric in here and metric in there:
            found[run.seed] = (here[metric].percent, there[metric].percent)
    return found


def _line_of(
    group: Group, groups: Sequence[Group], scores: ScoreTable, suite: str, metric: str, baseline: str
) -> Line | None:
    here = group.first
    points: list[tuple[float, float, str]] = []
    for other in groups:
        there = other.first
        if there.arm == baseline and (there.table, there.student) == (here.table, here.student):
            points += [(*pair, there.shots) for pair in _pairs(other, scores, suite, metric).values()]
    return fit_line(*zip(*points, strict=True)) if points else None


def _row(
    group: Group,
    suite: str,
    metric: str,
    baseline: str,
    ours: Mapping[int, tuple[float, float]],
    theirs: Mapping[int, tuple[float, float]],
    line: Line | None,
) -> Robustness:
    gap = mean_interval([shifted - usual for usual, shifted in ours.values()])
    common = [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
    apart = mean_interval([(a[1] - a[0]) - (b[1] - b[0]) for a, b in common]) if common else None
    above = [shifted - line.foretells(usual) for usual, shifted in ours.values()] if line is not None else []
    effective = mean_interval(above) if above else None
    usual = float(np.mean([pair[0] for pair in ours.values()]))
    return Robustness(
        **group.about(),
        suite=suite,
        in_domain=IN_DOMAIN,
        metric=metric,
        baseline=baseline,
        seeds=tuple(ours),
        in_domain_score=usual,
        shifted_score=float(np.mean([pair[1] for pair in ours.values()])),
        gap=gap.mean,
        gap_low=gap.low,
        gap_high=gap.high,
        gap_difference=apart.mean if apart is not None else None,
        gap_difference_low=apart.low if apart is not None else None,
        gap_difference_high=apart.high if apart is not None else None,
        effective=effective.mean if effective is not None else None,
        effective_low=effective.low if effective is not None else None,
        effective_high=effective.high if effective is not None else None,
        effective_per_seed=tuple(above),
        line=None
        if line is None
        else {
            "slope": line.slope,
            "intercept": line.intercept,
            "n_runs": line.n_runs,
            "shots": list(line.shots),
            "r2": line.r2,
        },
        beyond=line is not None and line.beyond(usual),
    )
