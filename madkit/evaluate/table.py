"""From scores per run to rows with intervals: the statistics of one report."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from madkit.core.errors import DataError
from madkit.evaluate.grid import Group, Run, find_baseline, suites_of
from madkit.evaluate.kinds import Kinds, name_of_forms
from madkit.evaluate.metrics import FloatArray, Scores
from madkit.evaluate.power import seeds_needed
from madkit.evaluate.results import SIGNIFICANT, Breakdown, Difference, Row
from madkit.evaluate.statistics import VarianceParts, holm, mean_interval, paired_difference

if TYPE_CHECKING:
    from madkit.evaluate.vqa_metric import VqaRule
    from madkit.tasks.spec import TaskSpec

# (run, suite) -> scores by metric; absent where the cell failed
ScoreTable = Mapping[tuple[Run, str], Mapping[str, Scores]]

_PARTS = ("seeds", "images", "both")


def build_rows(
    groups: Sequence[Group],
    scores: ScoreTable,
    *,
    spec_of: Callable[[Run], TaskSpec],
    baseline: str,
    resamples: int,
    vqa_rule: VqaRule = "current",
    advance: Callable[[], None] = lambda: None,
) -> list[Row]:
    """One row per experiment, suite and metric, with the paired difference to the baseline arm and Holm's correction.

    Raises DataError where two seeds of one suite were not scored on the same examples.
    """
    rows: list[Row] = []
    for group in groups:
        spec = spec_of(group.first)
        rule = vqa_rule if spec.kind == "vqa" else None
        against = find_baseline(group, groups, baseline)
        for suite in suites_of(group, scores):
            cells = {run.seed: scores[run, suite] for run in group.runs if (run, suite) in scores}
            theirs = {run.seed: scores[run, suite] for run in against.runs if (run, suite) in scores} if against else {}
            headline = next(iter(next(iter(cells.values()))))
            for metric in next(iter(cells.values())):
                ours = {seed: cell[metric] for seed, cell in cells.items()}
                row = replace(_row(group, spec, suite, metric, ours), headline=metric == headline, vqa_rule=rule)
                if against is not None and metric in spec.metrics:
                    other = {seed: cell[metric] for seed, cell in theirs.items()}
                    row = replace(row, difference=_difference(ours, other, against.label, resamples))
                rows.append(row)
            advance()
    return corrected(rows)


def build_breakdowns(
    groups: Sequence[Group],
    scores: ScoreTable,
    *,
    spec_of: Callable[[Run], TaskSpec],
    kinds_of: Callable[[Run, str], Kinds] = lambda run, suite: {},
    vqa_rule: VqaRule = "current",
) -> list[Breakdown]:
    """The metrics of every experiment and suite by kind of question, where there are several kinds.

    Kinds are those that the benchmark names, and those of `kinds_of` a run's suite (see `kinds`).
    """
    found: list[Breakdown] = []
    for group in groups:
        spec, run = spec_of(group.first), group.first
        for suite in suites_of(group, scores):
            cells = {one.seed: scores[one, suite] for one in group.runs if (one, suite) in scores}
            own = kinds_of(run, suite)
            for metric in spec.metrics:
                by_seed = {seed: cell[metric] for seed, cell in sorted(cells.items()) if metric in cell}
                tables = {name_of_forms(run.source, suite): {seed: one.by_form() for seed, one in by_seed.items()}}
                for by, metrics in own.items():
                    kind = metrics.get(metric, {})
                    tables[by] = {
                        seed: one.by([kind.get(unit, "") for unit in one.units]) for seed, one in by_seed.items()
                    }
                found += [
                    Breakdown(
                        **group.about(),
                        suite=suite,
                        metric=metric,
                        by=by,
                        seeds=tuple(table),
                        mean={kind: float(np.mean([one[kind][0] for one in table.values()])) for kind in kinds},
                        n_examples={kind: n for kind, (_, n) in kinds.items()},
                        vqa_rule=vqa_rule if spec.kind == "vqa" else None,
                    )
                    for by, table in tables.items()
                    if (kinds := next(iter(table.values()), {}))
                ]
    return found


def _row(group: Group, spec: TaskSpec, suite: str, metric: str, scores: Mapping[int, Scores]) -> Row:
    run = group.first
    per_seed = {seed: cell.percent for seed, cell in sorted(scores.items())}
    interval = mean_interval(list(per_seed.values()))
    one = next(iter(scores.values()))
    if any(cell.units != one.units for cell in scores.values()):
        raise DataError(
            f"The runs of {group.label} on {suite} were not scored on the same questions.",
            hint="remove their predictions/ folders and evaluate again",
        )
    least_taught = max(group.runs, key=lambda member: member.untaught)
    phases = {member.pre_phase_seed for member in group.runs if member.pre_phase_seed is not None}
    return Row(
        **group.about(),
        is_mini=run.is_mini,
        teacher=run.teacher,
        suite=suite,
        metric=metric,
        headline=False,  # the caller knows what the suite has
        chance=chance(spec, metric),
        mean=interval.mean,
        low=interval.low,
        high=interval.high,
        n_seeds=len(per_seed),
        n_examples=len(one.units),
        n_images=len(set(one.images)),
        seeds=tuple(per_seed),
        per_seed=tuple(per_seed.values()),
        difference=None,
        n_pre_phases=len(phases) or None,
        n_labelled=least_taught.labelled,
        n_untaught=least_taught.untaught,
        precision=", ".join(sorted({cell.precision for cell in scores.values()})),
        steps=run.steps,
        batch_size=run.batch_size,
    )


def chance(spec: TaskSpec, metric: str) -> float | None:
    """Percent of uniform guessing, where it has a closed form."""
    if metric == spec.metric:
        return spec.chance
    if spec.kind == "multiple-choice" and spec.n_candidates:
        return 100 / spec.n_candidates
    return None


def _difference(
    ours: Mapping[int, Scores], theirs: Mapping[int, Scores], baseline: str, resamples: int
) -> Difference | None:
    seeds = sorted(set(ours) & set(theirs))
    if not seeds:
        return None
    units, images = ours[seeds[0]].units, ours[seeds[0]].images
    if any(theirs[seed].units != units for seed in seeds):
        raise DataError(f"An arm and its baseline {baseline} were not scored on the same questions.")
    found = paired_difference(_stack(ours, seeds), _stack(theirs, seeds), images, resamples=resamples)
    return Difference(
        baseline=baseline,
        mean=found.mean,
        low=found.low,
        high=found.high,
        p=found.p,
        p_holm=None,
        p_images=found.p_images,
        p_seeds=found.p_seeds,
        bootstrap_low=found.bootstrap_low,
        bootstrap_high=found.bootstrap_high,
        seeds=tuple(seeds),
        n_seeds=found.n_seeds,
        n_examples=found.n_examples,
        n_images=found.n_images,
        variance=None if found.parts is None else {name: getattr(found.parts, name) for name in _PARTS},
    )


def _stack(scores: Mapping[int, Scores], seeds: Sequence[int]) -> FloatArray:
    return np.stack([scores[seed].values for seed in seeds]) * 100


def corrected(rows: Sequence[Row]) -> list[Row]:
    """Holm over all comparisons of one table and metric: what stands in one forest plot."""
    families: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        if row.difference is not None and row.difference.p is not None:
            families[row.source, row.revision, row.student, row.shots, row.metric].append(index)
    corrected = list(rows)
    for members in families.values():
        differences = [difference for index in members if (difference := rows[index].difference) is not None]
        adjusted = holm([difference.p for difference in differences if difference.p is not None])
        for index, difference, p in zip(members, differences, adjusted, strict=True):
            made = replace(difference, p_holm=p, n_comparisons=len(members))
            corrected[index] = replace(rows[index], difference=replace(made, seeds_needed=_needed(made)))
    return corrected


def _needed(gap: Difference) -> int | None:
    """How many seeds would show a difference that is not shown; at Holm's strictest level, which suffices."""
    if gap.significant or gap.variance is None or gap.n_comparisons is None:
        return None
    parts = VarianceParts(**gap.variance, n_seeds=gap.n_seeds, n_images=gap.n_images)
    return seeds_needed(gap.mean, parts, alpha=SIGNIFICANT / gap.n_comparisons)
