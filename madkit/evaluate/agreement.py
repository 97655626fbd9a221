"""Agreement: how often two students give the same answer, whether it is right or wrong."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import combinations, combinations_with_replacement
from typing import TYPE_CHECKING

import numpy as np

from madkit.evaluate.grid import suites_of
from madkit.evaluate.results import Agreement
from madkit.evaluate.statistics import mean_interval

if TYPE_CHECKING:
    from collections.abc import Hashable

    from madkit.evaluate.grid import Group
    from madkit.evaluate.metrics import Scores
    from madkit.evaluate.table import ScoreTable


def same_answers(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """The share 0..1 of questions with equal answers; both are over the same questions."""
    return sum(a == b for a, b in zip(first, second, strict=True)) / len(first)


def kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float | None:
    """Cohen's kappa (1960): agreement beyond that of answers drawn at the students' own rates; None where it is 0/0."""
    n = len(first)
    ours, theirs = Counter(first), Counter(second)
    by_chance = sum(count * theirs[answer] for answer, count in ours.items()) / n**2
    return None if by_chance == 1 else (same_answers(first, second) - by_chance) / (1 - by_chance)


def build_agreements(groups: Sequence[Group], scores: ScoreTable) -> list[Agreement]:
    """Every pair of experiments with the same data, student and labels, by the headline metric of every suite."""
    tables: dict[tuple[str, ...], list[Group]] = defaultdict(list)
    for group in groups:
        tables[*group.first.table, group.first.student, group.first.shots].append(group)
    made: list[Agreement] = []
    for members in tables.values():
        cells = {
            (group.label, suite): {
                run.seed: next(iter(scores[run, suite].values())) for run in group.runs if (run, suite) in scores
            }
            for group in members
            for suite in suites_of(group, scores)
        }
        suites = list(dict.fromkeys(suite for _, suite in cells))
        for suite in suites:
            for first, second in combinations_with_replacement(members, 2):
                one, other = (cells.get((group.label, suite), {}) for group in (first, second))
                row = _row(first, second, suite, one, other)
                if row is not None:
                    made.append(row)
    return made


def _row(first: Group, second: Group, suite: str, one: dict[int, Scores], other: dict[int, Scores]) -> Agreement | None:
    if first is second:
        pairs = [(one[a], one[b]) for a, b in combinations(sorted(one), 2)]
        seeds = sorted(one)
    else:
        seeds = sorted(set(one) & set(other))
        pairs = [(one[seed], other[seed]) for seed in seeds]
    pairs = [(a, b) for a, b in pairs if a.units == b.units and a.metric == b.metric]
    if not pairs:
        return None
    shares = [100 * same_answers(a.answers, b.answers) for a, b in pairs]
    spread = mean_interval(shares)
    alone = first is second
    return Agreement(
        **first.condition(),
        suite=suite,
        metric=pairs[0][0].metric,
        first=first.label,
        second=second.label,
        seeds=tuple(seeds),
        n_examples=len(pairs[0][0].units),
        mean=spread.mean,
        low=None if alone else spread.low,  # pairs of seeds share seeds: they are not independent
        high=None if alone else spread.high,
        first_better=float(np.mean([100 * np.mean(a.values > b.values) for a, b in pairs])),
        second_better=float(np.mean([100 * np.mean(a.values < b.values) for a, b in pairs])),
    )
