"""Scores by kind of question on a page: by class or answer type, which are metrics, and by question type or region."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from madkit.evaluate.report import text
from madkit.evaluate.report.lanes import NARROW, WIDE, Axis, Lane, lanes
from madkit.evaluate.report.plots import LEAST_SPAN
from madkit.evaluate.report.svg import at_least, ticks
from madkit.evaluate.results import Breakdown, Results, Row, Source

MOST_DRAWN = 12  # of 65 question types the largest ones; the table has all


@dataclass(frozen=True)
class Kinds:
    """One table: a column per arm, a row per kind; `lines` are (kind, questions, mean per column). `plot` is of the
    in-domain suite alone.
    """

    suite: str
    metric: str
    shots: str
    by: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, int, tuple[float | None, ...]], ...]
    plot: Markup | None


Key = tuple[str, str, str, str]  # suite, metric, shots, by
Cells = dict[str, dict[str, tuple[float, float | None, float | None, int]]]  # arm -> kind -> mean, low, high, questions


def kinds_of(results: Results, source: Source, student: str, palette: Mapping[str, int]) -> tuple[Kinds, ...]:
    """The breakdowns of a section: one table per suite, metric, number of labels and sort of kind."""
    tables: dict[Key, Cells] = {}
    for row in text.rows_of(results, source):
        metric, _, kind = row.metric.partition(" (")
        if kind and row.student == student:
            key = (row.suite, metric, row.shots, _sort(row))
            cell = (row.mean, row.low, row.high, row.n_examples)
            tables.setdefault(key, {}).setdefault(row.label, {})[kind.removesuffix(")")] = cell
    for one in results.breakdowns:
        if (one.source, one.revision, one.student) == (source.name, source.revision, student):
            key = (one.suite, one.metric, one.shots, one.by)
            tables.setdefault(key, {})[one.label] = _cells(one)
    in_domain = source.suites[0] if source.suites else ""
    return tuple(_kinds(key, cells, palette, drawn=key[0] == in_domain) for key, cells in tables.items())


def _sort(row: Row) -> str:
    return "answer type" if row.vqa_rule else "label"


def _cells(one: Breakdown) -> dict[str, tuple[float, float | None, float | None, int]]:
    return {kind: (mean, None, None, one.n_examples[kind]) for kind, mean in one.mean.items()}


def _kinds(key: Key, cells: Cells, palette: Mapping[str, int], *, drawn: bool) -> Kinds:
    columns = tuple(sorted(cells, key=lambda label: palette[label]))
    sizes: dict[str, int] = {}
    for column in columns:
        for kind, cell in cells[column].items():
            sizes.setdefault(kind, cell[3])
    lines = tuple(
        (kind, n, tuple(cells[column][kind][0] if kind in cells[column] else None for column in columns))
        for kind, n in sizes.items()
    )
    largest = sorted(sizes, key=lambda kind: -sizes[kind])[:MOST_DRAWN]
    shown = [kind for kind in sizes if kind in largest]
    return Kinds(*key, columns, lines, _plot(key, cells, shown, palette) if drawn and len(shown) > 1 else None)


def _plot(key: Key, cells: Cells, shown: Sequence[str], palette: Mapping[str, int]) -> Markup:
    rows = [
        Lane(kind, label, mean, low, high, f"{label}, {kind}: {mean:.1f} {spread}")
        for kind in shown
        for label, found in cells.items()
        if kind in found
        for mean, low, high, _ in [found[kind]]
        for spread in ["" if low is None else text.interval(low, high)]
    ]
    values = [value for row in rows for value in (row.value, row.low, row.high) if value is not None]
    marks = ticks(*at_least(max(min(values), 0.0), min(max(values), 100.0), LEAST_SPAN), 5)
    axis = Axis(marks, f"{text.arrows(key[1])}, %")
    told = "; ".join(f"{row.group}, {row.label} {row.value:.1f}" for row in rows)
    label = f"{key[1]} on {key[0]} by {key[3]}, in percent. {told}"
    wide, narrow = (lanes(rows, axis, palette, label=label, css="plot kinds", width=width) for width in (WIDE, NARROW))
    return Markup(f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>')
