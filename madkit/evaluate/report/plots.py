"""The plots of a report: low-shot curves, suites side by side, and paired differences. Pure functions to SVG text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from madkit.core.console import counted
from madkit.evaluate.report.lanes import NARROW, WIDE, Axis, Lane, lanes
from madkit.evaluate.report.svg import Drawing, at_least, shortened, text_width, ticks
from madkit.evaluate.report.text import (
    NO_INTERVAL,
    arrows,
    difference,
    interval,
    p_value,
    shots_name,
    suite_name,
    with_sign,
)
from madkit.evaluate.results import Row

# Index of an arm's colour and marker, the same in every plot of a page. 0 is the baseline.
Palette = Mapping[str, int]
LEAST_SPAN = 5.0  # points on an axis of scores: tenths of a point shall not look like a difference


def _about(row: Row) -> str:
    spread = interval(row.low, row.high)
    return f"{row.label}, {row.suite}, {row.shots}: {row.mean:.1f} {spread}, {counted(row.n_seeds, 'seeds')}"


def _span(rows: Sequence[Row], about: int) -> list[float]:
    lows = [row.mean if row.low is None else row.low for row in rows]
    highs = [row.mean if row.high is None else row.high for row in rows]
    chance = rows[0].chance
    low, high = max(min(lows), 0.0), min(max(highs), 100.0)
    # Two seeds can have intervals far beyond the data; they may not squeeze everything else into a line.
    means = [row.mean for row in rows]
    room = max(max(means) - min(means), 4.0)
    low, high = max(low, min(means) - 1.5 * room), min(high, max(means) + 1.5 * room)
    if chance is not None and low - chance < 2 * (high - low):
        low = min(low, chance)
    return ticks(*at_least(low, high, LEAST_SPAN), about)


def low_shot(rows: Sequence[Row], shots: Sequence[str], palette: Palette, *, width: float = NARROW) -> str:
    """Score against the number of labels, one line per arm with its 95 % band; `rows` are of one suite and metric."""
    height = 252.0
    left, right, top, bottom = 38.0, 12.0, 14.0, 40.0
    marks = _span(rows, 5)
    told = "; ".join(f"{row.label}, {shots_name(row.shots)}: {row.mean:.1f}" for row in rows)
    label = f"{rows[0].metric} on {rows[0].suite} by number of labels, in percent. {told}"
    drawing = Drawing(width, height, label=label, css="plot low-shot")

    def y(value: float) -> float:
        value = min(max(value, marks[0]), marks[-1])
        return top + (marks[-1] - value) / (marks[-1] - marks[0]) * (height - top - bottom)

    step = (width - left - right) / len(shots)

    def x(label: str) -> float:
        return left + step * (shots.index(label) + 0.5)

    for mark in marks:
        drawing.line(left, y(mark), width - right, y(mark), "grid")
        drawing.text(left - 7, y(mark) + 4, f"{mark:g}", "tick", anchor="end")
    for name in shots:
        drawing.text(x(name), height - bottom + 18, _shots_name(name), "tick", anchor="middle")
    drawing.text(left + (width - left - right) / 2, height - 6, "labelled questions", "axis", anchor="middle")
    chance = rows[0].chance
    if chance is not None and marks[0] <= chance <= marks[-1]:
        drawing.line(left, y(chance), width - right, y(chance), "chance")
        drawing.text(width - right - 2, y(chance) - 4, "chance", "note", anchor="end")

    arms = sorted({row.label for row in rows}, key=lambda label: palette[label])
    lines = {
        arm: sorted((row for row in rows if row.label == arm), key=lambda row: shots.index(row.shots)) for arm in arms
    }
    for arm, line in lines.items():
        band = [row for row in line if row.low is not None]
        if len(band) > 1:
            upper = [(x(row.shots), y(row.high or row.mean)) for row in band]
            lower = [(x(row.shots), y(row.low or 0.0)) for row in reversed(band)]
            drawing.path([*upper, *lower], f"band a{palette[arm]}", closed=True)
    for position, (arm, line) in enumerate(lines.items()):
        shift = 0.0 if len(shots) > 1 else (position - (len(arms) - 1) / 2) * min(34.0, step * 0.8 / max(len(arms), 1))
        if len(line) > 1:
            drawing.path([(x(row.shots), y(row.mean)) for row in line], f"curve a{palette[arm]}")
        for row in line:
            at = x(row.shots) + shift
            if row.low is not None and row.high is not None and len(shots) == 1:
                drawing.line(at, y(row.low), at, y(row.high), f"whisker a{palette[arm]}")
            drawing.marker(at, y(row.mean), palette[arm], f"dot a{palette[arm]}", title=_about(row))
    return str(drawing)


def _shots_name(shots: str) -> str:
    return f"{shots.removesuffix('pct')} %" if shots.endswith("pct") else shots


def suites(rows: Sequence[Row], palette: Palette, *, width: float = WIDE) -> str:
    """Score on every suite, in-domain on top, one marker per arm; `rows` are of one metric and number of labels."""
    chance = rows[0].chance
    axis = Axis(
        marks=_span(rows, 5 if width < 500 else 6),
        caption=f"{arrows(rows[0].metric)}, %",
        guides=[] if chance is None else [(chance, "chance")],
    )
    told = "; ".join(f"{suite_name(row.suite)}, {row.label} {row.mean:.1f}" for row in rows)
    found = [Lane(suite_name(row.suite), row.label, row.mean, row.low, row.high, _about(row)) for row in rows]
    label = f"{rows[0].metric} on every test suite, in percent. {told}"
    return lanes(found, axis, palette, label=label, css="plot suites", width=width)


def forest(rows: Sequence[Row], palette: Palette, *, width: float = WIDE) -> str:
    """Paired differences to the baseline with their intervals; hollow where the corrected test does not reject."""
    rows = [row for row in rows if row.difference is not None]
    names = list(dict.fromkeys(row.suite for row in rows))
    narrow = width < 500
    left = min(max(text_width(row.label) for row in rows) + 26, width * 0.36)
    right = 20.0 if narrow else 158.0
    top, bottom, lane, head = 6.0, 40.0, 21.0, 26.0
    height = top + sum(head + lane * sum(row.suite == name for row in rows) + 4 for name in names) + bottom
    marks = _gap_span(rows, 4 if narrow else 5)
    told = "; ".join(f"{suite_name(row.suite)}, {row.label} {difference(row.difference)}" for row in rows)
    label = f"Paired differences in {rows[0].metric}, in points. {told}"
    drawing = Drawing(width, height, label=label, css="plot forest")

    def x(value: float) -> float:
        value = min(max(value, marks[0]), marks[-1])
        return left + (value - marks[0]) / (marks[-1] - marks[0]) * (width - left - right)

    floor = height - bottom
    for mark in marks:
        drawing.line(x(mark), top, x(mark), floor, "zero" if mark == 0 else "grid")
        drawing.text(
            x(mark), floor + 18, f"{mark:+g}".replace("-", "\N{MINUS SIGN}") if mark else "0", "tick", anchor="middle"
        )
    against = rows[0].difference.baseline if rows[0].difference else ""
    against = against.partition(" [")[0]
    caption = f"points against {against}"
    drawing.text((x(marks[0]) + x(marks[-1])) / 2, height - 6, caption, "axis", anchor="middle")
    at = top
    for name in names:
        drawing.text(8, at + 17, suite_name(name), "name")
        at += head
        for row in (row for row in rows if row.suite == name):
            _forest_row(drawing, row, palette[row.label], at + lane / 2, x, (marks[0], marks[-1]))
            drawing.text(18, at + lane / 2 + 4, shortened(row.label, left - 22), "")
            if not narrow:
                drawing.text(width - 6, at + lane / 2 + 4, _gap_text(row), "number", anchor="end")
            at += lane
        at += 4
    return str(drawing)


def _forest_row(
    drawing: Drawing, row: Row, kind: int, y: float, x: Callable[[float], float], ends: tuple[float, float]
) -> None:
    gap = row.difference
    assert gap is not None
    if gap.low is not None and gap.high is not None:
        drawing.line(x(gap.low), y, x(gap.high), y, f"whisker a{kind}")
        for value, inwards in ((gap.low, 5), (gap.high, -5)):
            if not ends[0] <= value <= ends[1]:  # the interval goes on beyond the plot: an arrow head says so
                edge = x(value)
                drawing.path([(edge + inwards, y - 4), (edge, y), (edge + inwards, y + 4)], f"curve a{kind}")
    state = "" if gap.significant else " hollow"
    title = f"{row.label}, {row.suite}, {row.shots}: {difference(gap)}, p (Holm) {p_value(gap.p_holm) or 'none'}"
    drawing.marker(x(gap.mean), y, kind, f"dot a{kind}{state}", title=title)


def _gap_text(row: Row) -> str:
    gap = row.difference
    assert gap is not None
    numbers = f"{with_sign(gap.mean)} {interval(gap.low, gap.high, signed=True) if gap.low is not None else ''}"
    return (
        numbers.replace("-", "\N{MINUS SIGN}")
        + (NO_INTERVAL if gap.low is None else "")
        + (" *" if gap.significant else "")
    )


def _gap_span(rows: Sequence[Row], about: int) -> list[float]:
    gaps = [row.difference for row in rows if row.difference is not None]
    means = [gap.mean for gap in gaps]
    room = max(max(means) - min(means), max(abs(mean) for mean in means), 2.0)
    low = min([0.0, *(gap.mean if gap.low is None else gap.low for gap in gaps)])
    high = max([0.0, *(gap.mean if gap.high is None else gap.high for gap in gaps)])
    low, high = max(low, min(0.0, *means) - 1.5 * room), min(high, max(0.0, *means) + 1.5 * room)
    low, high = min(low, -1.0), max(high, 1.0)
    return ticks(low - 0.02 * (high - low), high + 0.02 * (high - low), about)
