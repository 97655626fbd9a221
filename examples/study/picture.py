"""The pictures of docs/results.md, from the committed rows alone: what each arm is above plain fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from madkit.core.files import write_text_atomic
from madkit.evaluate.report.svg import Drawing

Row = Mapping[str, Any]
PICTURES = {"study-test.svg": "test", "study-concepts.svg": "test-concepts"}
ABOUT = {"test": "test split", "test-concepts": "test split of concepts that no training saw"}
TASKS = {"mini-snli-ve": "mini-SNLI-VE", "mini-vqa": "mini-VQA", "mini-vcr": "mini-VCR"}
SHOTS = {"1pct": "200 labels", "5pct": "1,000 labels", "full": "all 20,000 labels"}

LEFT, TOP, PANEL, BETWEEN, BOTTOM = 208.0, 74.0, 236.0, 40.0, 30.0
LINE, GAP = 12.0, 9.0  # one difference, and what parts an arm from the next
LOW, HIGH, STEP = -20, 40, 10  # points; what lies beyond is an arrow at the edge

# One drawing for light and dark pages; an image in a page does not see the page's own style sheet.
STYLE = """
text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; fill: #1d2126; }
.soft { fill: #5c646e; } .head { font-weight: 650; font-size: 13px; }
.rule { stroke: #e4e2dd; } .zero { stroke: #8b939c; } .stripe { fill: #8b939c; fill-opacity: 0.07; }
line, path { stroke-width: 1.6; fill: none; }
.s0 { stroke: #2f7fd6; } .s1 { stroke: #b8440c; } .s2 { stroke: #23956a; }
.dot.s0 { fill: #2f7fd6; } .dot.s1 { fill: #b8440c; } .dot.s2 { fill: #23956a; }
.dot { stroke-width: 1.4; } .dot.hollow { fill: #ffffff; }
@media (prefers-color-scheme: dark) {
  text { fill: #e8e6e1; } .soft { fill: #a5adb6; } .rule { stroke: #2e343a; } .dot.hollow { fill: #14171a; }
  .s0 { stroke: #7fb8f5; } .s1 { stroke: #e8743a; } .s2 { stroke: #4fcba0; }
  .dot.s0:not(.hollow) { fill: #7fb8f5; } .dot.s1:not(.hollow) { fill: #e8743a; }
  .dot.s2:not(.hollow) { fill: #4fcba0; }
}
"""


def draw_pictures(rows: Sequence[Row], labels: Sequence[str], folder: Path) -> None:
    """Write each of PICTURES into `folder`: the headline rows of the study, the arms `labels` from top to bottom."""
    for name, suite in PICTURES.items():
        write_text_atomic(folder / name, picture([row for row in rows if row["suite"] == suite], labels, suite))


def picture(rows: Sequence[Row], labels: Sequence[str], suite: str) -> str:
    """An SVG of paired differences to `finetune` on one suite with 95 % intervals, in points, a panel for each task.

    A filled mark stands where Holm's correction leaves a difference, as an asterisk does in the tables.
    """
    cells = {
        (row["source"], row["label"], row["shots"]): row
        for row in rows
        if row.get("difference") and row["difference"]["low"] is not None
    }
    shown = [label for label in labels if any(label == found for _, found, _ in cells)]
    lane = len(SHOTS) * LINE + GAP
    height = TOP + lane * len(shown) + BOTTOM
    width = LEFT + len(TASKS) * (PANEL + BETWEEN)
    told = f"Differences to finetune on the {ABOUT[suite]} with 95 % intervals; the tables below hold the same numbers"
    drawing = Drawing(width, height, label=told)
    drawing.raw(f"<style>{STYLE}</style>")
    _legend(drawing, suite)
    for place, label in enumerate(shown):
        y = TOP + place * lane
        if place % 2 == 0:
            drawing.rect(0, y, width - BETWEEN / 2, lane, "stripe")
        drawing.text(8, y + lane / 2 + 4, label.removesuffix(" (teacher at inference)"))
    for column, (task, title) in enumerate(TASKS.items()):
        left = LEFT + column * (PANEL + BETWEEN)
        _axis(drawing, left, height - BOTTOM, title)
        for place, label in enumerate(shown):
            for kind, shots in enumerate(SHOTS):
                if row := cells.get((task, label, shots)):
                    y = TOP + place * lane + GAP / 2 + (kind + 0.5) * LINE
                    _difference(drawing, row["difference"], left, y, kind)
    return str(drawing).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


def _legend(drawing: Drawing, suite: str) -> None:
    drawing.text(8, 18, f"Points above finetune, {ABOUT[suite]}", "head")
    x = 8.0
    for kind, name in enumerate(SHOTS.values()):
        drawing.marker(x + 6, 38, kind, f"dot s{kind}")
        drawing.text(x + 16, 42, name)
        x += 42 + 6.2 * len(name)
    drawing.marker(x + 6, 38, 0, "dot hollow s0")
    drawing.text(x + 16, 42, "hollow: not shown after Holm's correction; an arrow: further out", "soft")


def _x(value: float, left: float) -> float:
    return left + (min(max(value, LOW), HIGH) - LOW) / (HIGH - LOW) * PANEL


def _axis(drawing: Drawing, left: float, bottom: float, title: str) -> None:
    drawing.text(left + PANEL / 2, TOP - 8, title, "head", anchor="middle")
    for value in range(LOW, HIGH + 1, STEP):
        x = _x(value, left)
        drawing.line(x, TOP, x, bottom, "zero" if value == 0 else "rule")
        drawing.text(x, bottom + 16, f"{value:+d}" if value else "0", "soft", anchor="middle")


def _difference(drawing: Drawing, found: Row, left: float, y: float, kind: int) -> None:
    drawing.line(_x(found["low"], left), y, _x(found["high"], left), y, f"s{kind}")
    for end, inwards, beyond in (("low", 5, found["low"] < LOW), ("high", -5, found["high"] > HIGH)):
        if beyond:
            edge = _x(found[end], left)
            drawing.path([(edge + inwards, y - 3.5), (edge, y), (edge + inwards, y + 3.5)], f"s{kind}")
    if LOW <= found["mean"] <= HIGH:
        sure = found["p_holm"] is not None and found["p_holm"] < 0.05
        drawing.marker(_x(found["mean"], left), y, kind, f"dot s{kind}{'' if sure else ' hollow'}", size=3.6)
    else:
        below = found["mean"] < LOW
        drawing.text(
            _x(found["mean"], left) + (9 if below else -9), y + 4, f"{found['mean']:+.1f}", "soft",
            anchor="start" if below else "end",
        )  # fmt: skip
