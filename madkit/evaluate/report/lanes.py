"""Values with intervals in lanes: a band per group (a suite, a kind of question), and in it a lane per arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from madkit.evaluate.report.svg import Drawing, shortened, text_width

WIDE = 560.0
NARROW = 360.0


@dataclass(frozen=True)
class Lane:
    """A marker: `label` is the arm, `about` what is read of it."""

    group: str
    label: str
    value: float
    low: float | None
    high: float | None
    about: str


@dataclass(frozen=True)
class Axis:
    """The common axis: tick marks, its caption, and values that are marked across all bands, with their names."""

    marks: Sequence[float]
    caption: str
    guides: Sequence[tuple[float, str]] = ()
    signed: bool = False


def lanes(rows: Sequence[Lane], axis: Axis, palette: Mapping[str, int], *, label: str, css: str, width: float) -> str:
    """Draw them, groups in the order of their first row, arms in that of the palette, as SVG text."""
    groups = list(dict.fromkeys(row.group for row in rows))
    arms = sorted({row.label for row in rows}, key=lambda arm: palette[arm])
    narrow = width < 500
    left = 12.0 if narrow else min(max(1.1 * text_width(name) for name in groups) + 20, width * 0.34)
    right, top, bottom = 16.0, 8.0, 40.0
    lane = 15.0 if narrow else 19.0
    head = 22.0 if narrow else 8.0
    band = head + lane * len(arms) + 8.0
    height = top + band * len(groups) + bottom
    marks = axis.marks
    drawing = Drawing(width, height, label=label, css=css)

    def x(value: float) -> float:
        value = min(max(value, marks[0]), marks[-1])
        return left + (value - marks[0]) / (marks[-1] - marks[0]) * (width - left - right)

    floor = height - bottom
    for index, name in enumerate(groups):
        y0 = top + band * index
        if index % 2 == 0:
            drawing.rect(0, y0, width, band, "stripe")
        if narrow:
            drawing.text(left, y0 + 16, shortened(name, 1.05 * (width - left - right)), "name")
        else:
            drawing.text(left - 12, y0 + band / 2 + 4, shortened(name, left - 16), "name", anchor="end")
    clear = head if narrow else 0.0  # names stand above their lanes there, and no line shall cross them
    stretches = [(top + band * index + clear, top + band * (index + 1)) for index in range(len(groups))]
    for mark in marks:
        for begin, end in stretches:
            drawing.line(x(mark), begin, x(mark), end, "zero" if axis.signed and mark == 0 else "grid")
        drawing.text(x(mark), floor + 18, _tick(mark, axis.signed), "tick", anchor="middle")
    drawing.text(left + (width - left - right) / 2, height - 6, axis.caption, "axis", anchor="middle")
    for value, name in axis.guides:
        if marks[0] <= value <= marks[-1]:
            for begin, end in stretches:
                drawing.line(x(value), begin, x(value), end, "chance")
            drawing.text(x(value) + 4, floor - 4, name, "note")
    for row in rows:
        y = top + band * groups.index(row.group) + head + lane * (arms.index(row.label) + 0.5)
        kind = palette[row.label]
        if row.low is not None and row.high is not None:
            drawing.line(x(row.low), y, x(row.high), y, f"whisker a{kind}")
            for value, inwards in ((row.low, 5), (row.high, -5)):
                if not marks[0] <= value <= marks[-1]:  # the interval goes on beyond the plot: an arrow head says so
                    edge = x(value)
                    drawing.path([(edge + inwards, y - 4), (edge, y), (edge + inwards, y + 4)], f"curve a{kind}")
        drawing.marker(x(row.value), y, kind, f"dot a{kind}", title=row.about)
    return str(drawing)


def _tick(mark: float, signed: bool) -> str:
    return f"{mark:+g}".replace("-", "\N{MINUS SIGN}") if signed and mark else f"{mark:g}"
