"""Reliability diagrams, and scores under shift against in-domain ones. Pure functions to SVG text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from madkit.evaluate.report.lanes import WIDE, Axis, Lane, lanes
from madkit.evaluate.report.svg import Drawing, ticks
from madkit.evaluate.report.text import arrows, interval, shots_name, suite_name, with_sign
from madkit.evaluate.results import Calibration, Robustness
from madkit.evaluate.robustness import foretold

WIDTH, HEIGHT = 360.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 40.0, 12.0, 12.0, 42.0
LEAST_SHARE = 0.005  # bins with fewer of the answers are noise: they stay in the JSON

Palette = Mapping[str, int]
Place = Callable[[float], float]


def reliability(rows: Sequence[Calibration], palette: Palette) -> str:
    """Mean score against mean probability of the answers, one line per arm; on the diagonal a student is calibrated."""
    errors = "; ".join(f"{row.label} expected calibration error {row.ece:.1f}" for row in rows)
    label = f"Reliability of {rows[0].metric} on {rows[0].suite}: score against probability, in percent. {errors}"
    drawing, x, y = _square(label, [0.0, 25.0, 50.0, 75.0, 100.0], "probability of the answer, %", "score, %")
    drawing.line(x(0), y(0), x(100), y(100), "chance")
    for row in sorted(rows, key=lambda row: palette[row.label]):
        total = sum(one["n"] for one in row.bins)
        told = [one for one in row.bins if one["n"] >= max(1, LEAST_SHARE * total)]
        points = [(x(100 * one["confidence"]), y(100 * one["score"])) for one in told]
        kind = palette[row.label]
        if len(points) > 1:
            drawing.path(points, f"curve a{kind}")
        for one, point in zip(told, points, strict=True):
            about = f"{row.label}: {one['n']:,} answers of probability {100 * one['confidence']:.0f} %"
            title = f"{about}, score {100 * one['score']:.1f} %"
            drawing.marker(*point, kind, f"dot a{kind}", size=2.5 + 3 * (one["n"] / total) ** 0.5, title=title)
    return str(drawing)


def shift_line(rows: Sequence[Robustness], palette: Palette) -> str:
    """Score under one shift against the in-domain score: the baseline's line, and every arm and number of labels."""
    scores = [value for row in rows for value in (row.in_domain_score, row.shifted_score)]
    marks = ticks(max(min(scores) - 1, 0.0), min(max(scores) + 1, 100.0), 5)
    metric = arrows(rows[0].metric)
    label = f"{rows[0].metric} on {rows[0].suite} against {rows[0].in_domain}"
    drawing, x, y = _square(label, marks, f"{metric} in-domain, %", f"{metric} under shift, %")
    low, high = marks[0], marks[-1]
    drawing.line(x(low), y(low), x(high), y(high), "chance")
    line = next((row.line for row in rows if row.line is not None), None)
    if line is not None:
        steps = [low + (high - low) * index / 40 for index in range(41)]
        curve = [(value, foretold(line["slope"], line["intercept"], value)) for value in steps]
        drawing.path([(x(a), y(b)) for a, b in curve if low <= b <= high], "trend")
    for row in rows:
        kind = palette[row.label]
        title = f"{row.label}, {shots_name(row.shots)}: {row.in_domain_score:.1f} in-domain, {row.shifted_score:.1f}"
        if row.effective is not None:
            spread = interval(row.effective_low, row.effective_high, signed=True)
            title += f"; effective robustness {with_sign(row.effective)} {spread}"
        drawing.marker(x(row.in_domain_score), y(row.shifted_score), kind, f"dot a{kind}", title=title)
    return str(drawing)


def gaps(rows: Sequence[Robustness], palette: Palette, *, width: float = WIDE) -> str:
    """Score under each shift minus the in-domain score, one marker per arm; `rows` are of one number of labels."""
    found = [
        Lane(
            suite_name(row.suite),
            row.label,
            row.gap,
            row.gap_low,
            row.gap_high,
            f"{row.label}, {suite_name(row.suite)}, {shots_name(row.shots)}: "
            f"{with_sign(row.gap)} {interval(row.gap_low, row.gap_high, signed=True)}",
        )
        for row in rows
    ]
    values = [row.gap for row in rows]
    room = max(max(values) - min(values), 4.0)  # two seeds can have intervals far beyond the data
    low = max(min(row.low if row.low is not None else row.value for row in found), min(values) - 1.5 * room)
    high = min(max(row.high if row.high is not None else row.value for row in found), max(values) + 1.5 * room)
    axis = Axis(
        marks=ticks(min(low, 0.0), max(high, 0.0), 5 if width < 500 else 6),
        caption="points against in-domain",
        signed=True,
    )
    told = "; ".join(f"{row.group}, {row.label} {with_sign(row.value)}" for row in found)
    return lanes(found, axis, palette, label=f"Loss under shift, in points. {told}", css="plot gaps", width=width)


def _square(label: str, marks: Sequence[float], below: str, beside: str) -> tuple[Drawing, Place, Place]:
    """A drawing with equal axes, and where its values lie."""
    drawing = Drawing(WIDTH, HEIGHT, label=label, css="plot square")
    low, high = marks[0], marks[-1]

    def x(value: float) -> float:
        return LEFT + (min(max(value, low), high) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return TOP + (high - min(max(value, low), high)) / (high - low) * (HEIGHT - TOP - BOTTOM)

    for mark in marks:
        drawing.line(LEFT, y(mark), WIDTH - RIGHT, y(mark), "grid")
        drawing.line(x(mark), TOP, x(mark), HEIGHT - BOTTOM, "grid")
        drawing.text(LEFT - 6, y(mark) + 4, f"{mark:g}", "tick", anchor="end")
        drawing.text(x(mark), HEIGHT - BOTTOM + 16, f"{mark:g}", "tick", anchor="middle")
    drawing.text(LEFT + (WIDTH - LEFT - RIGHT) / 2, HEIGHT - 8, below, "axis", anchor="middle")
    drawing.text(LEFT + 4, TOP + 12, beside, "axis")
    return drawing, x, y
