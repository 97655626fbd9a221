"""What a page tells beyond scores: calibration, loss under shift, and agreement, arm by arm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from madkit.evaluate.grid import shots_order
from madkit.evaluate.report import behaviour_plots, text
from madkit.evaluate.report.lanes import NARROW, WIDE
from madkit.evaluate.results import Agreement, Calibration, Results, Robustness, Source, TeacherAgreement


@dataclass(frozen=True)
class Matrix:
    """Agreement of every arm with every other on one suite; `cells` [row][column] are percent, None where unknown."""

    shots: str
    suite: str
    labels: tuple[str, ...]
    cells: tuple[tuple[Agreement | None, ...], ...]


@dataclass(frozen=True)
class Behaviour:
    """The parts of one section: plots with their captions, and rows of tables in the order of the arms."""

    reliability: tuple[tuple[str, Markup], ...]
    calibrations: tuple[Calibration, ...]
    gaps: tuple[tuple[str, Markup], ...]
    shifts: tuple[tuple[str, Markup], ...]
    robustness: tuple[Robustness, ...]
    matrices: tuple[Matrix, ...]
    teachers: tuple[TeacherAgreement, ...]


def behaviour_of(results: Results, source: Source, student: str, palette: Mapping[str, int]) -> Behaviour:
    """What there is of one source, revision and student."""
    key = (source.name, source.revision, student)
    suites = {suite: index for index, suite in enumerate(source.suites)}

    def place(shots: str, suite: str, label: str) -> tuple[object, ...]:
        return (shots_order(shots), suites.get(suite, len(suites)), palette.get(label, 0), label)

    calibrations = sorted(
        (one for one in results.calibrations if (one.source, one.revision, one.student) == key),
        key=lambda one: (place(one.shots, one.suite, one.label), one.metric),
    )
    robustness = sorted(
        (one for one in results.robustness if (one.source, one.revision, one.student) == key),
        key=lambda one: place(one.shots, one.suite, one.label),
    )
    metrics = list(dict.fromkeys(row.metric for row in text.rows_of(results, source)))
    rank = {metric: index for index, metric in enumerate(metrics)}  # the headline first, as in every table
    agreements = [one for one in results.agreements if (one.source, one.revision, one.student) == key]
    teachers = sorted(
        (one for one in results.teacher_agreements if (one.source, one.revision, one.student) == key),
        key=lambda one: (*place(one.shots, one.suite, one.label)[:2], rank.get(one.metric, 9), one.teacher,
                         one.method, palette.get(one.label, 0)),
    )  # fmt: skip
    return Behaviour(
        reliability=tuple(_reliability(calibrations, source.suites, palette)),
        calibrations=tuple(calibrations),
        gaps=tuple(_gaps(robustness, palette)),
        shifts=tuple(_shifts(robustness, palette)),
        robustness=tuple(robustness),
        matrices=tuple(_matrices(agreements, source.suites[0] if source.suites else "")),
        teachers=tuple(teachers),
    )


def _reliability(
    calibrations: Sequence[Calibration], suites: Sequence[str], palette: Mapping[str, int]
) -> list[tuple[str, Markup]]:
    """A diagram per number of labels and metric, in-domain; of every suite, where there is one number of labels."""
    levels = {one.shots for one in calibrations}
    shown = set(suites) if len(levels) == 1 else set(suites[:1])
    drawn = []
    for suite, shots, metric in dict.fromkeys((one.suite, one.shots, one.metric) for one in calibrations):
        if suite in shown:
            rows = [one for one in calibrations if (one.suite, one.shots, one.metric) == (suite, shots, metric)]
            where = text.suite_name(suite).capitalize() if len(levels) == 1 else text.shots_name(shots).capitalize()
            drawn.append((f"{where}, {text.arrows(metric)}", Markup(behaviour_plots.reliability(rows, palette))))
    return drawn


def _gaps(robustness: Sequence[Robustness], palette: Mapping[str, int]) -> list[tuple[str, Markup]]:
    """What is lost under every shift, a plot per number of labels."""
    return [
        (
            text.shots_name(shots).capitalize(),
            both(behaviour_plots.gaps, [one for one in robustness if one.shots == shots], palette),
        )
        for shots in dict.fromkeys(one.shots for one in robustness)
    ]


def both(draw: Callable[..., str], rows: Sequence[Any], palette: Mapping[str, int]) -> Markup:
    """A drawing for wide screens and one for narrow ones; the style sheet shows one of them."""
    wide, narrow = draw(rows, palette, width=WIDE), draw(rows, palette, width=NARROW)
    return Markup(f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>')


def _shifts(robustness: Sequence[Robustness], palette: Mapping[str, int]) -> list[tuple[str, Markup]]:
    """In-domain against shifted scores, a plot per suite that has a line."""
    suites = dict.fromkeys(one.suite for one in robustness if one.line is not None)
    return [
        (
            text.suite_name(suite),
            Markup(behaviour_plots.shift_line([one for one in robustness if one.suite == suite], palette)),
        )
        for suite in suites
    ]


def _matrices(agreements: Sequence[Agreement], in_domain: str) -> list[Matrix]:
    found = []
    for shots in sorted({one.shots for one in agreements}, key=shots_order):
        here = [one for one in agreements if (one.shots, one.suite) == (shots, in_domain)]
        labels = tuple(dict.fromkeys(label for one in here for label in (one.first, one.second)))
        if len(labels) < 2:
            continue
        pairs = {frozenset((one.first, one.second)): one for one in here}
        cells = tuple(tuple(pairs.get(frozenset((row, column))) for column in labels) for row in labels)
        found.append(Matrix(shots, in_domain, labels, cells))
    return found
