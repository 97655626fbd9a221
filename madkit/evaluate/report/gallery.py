"""Scenes with their boxes, the teacher's selected tokens and the arms' answers, as cards of the HTML page."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from madkit.core.errors import DataError

_PNG = b"\x89PNG\r\n\x1a\n"
_SHOWN = 320.0  # width of a scene on the page in CSS pixels; overlays are drawn in these units


@dataclass(frozen=True)
class GalleryItem:
    """One test example with what every arm answered.

    Attributes:
        image_png: the scene as a PNG file; it is embedded in the page.
        boxes: pixel corners (x1, y1, x2, y2) in the scene.
        labels: one name per box.
        selected_regions: indices of the boxes whose tokens the method selects.
        text: the question or hypothesis.
        selected_spans: (start, end) character ranges of `text` that the method selects.
        truth: the right answer.
        answers: arm -> its answer; an answer equal to `truth` is marked as right, all others as wrong.
        candidates: the choices, where the task has them.
        suite: the test suite the scene is from.
        source: the data it is from ("mini-vcr").
        is_mini: whether that is the embedded benchmark.
    """

    image_png: bytes
    boxes: Sequence[tuple[float, float, float, float]]
    labels: Sequence[str]
    text: str
    truth: str
    answers: Mapping[str, str]
    selected_regions: Sequence[int] = ()
    selected_spans: Sequence[tuple[int, int]] = ()
    candidates: Sequence[str] = ()
    suite: str = "test"
    source: str = ""
    is_mini: bool = True
    note: str = field(default="")

    def size(self) -> tuple[int, int]:
        """Width and height of the scene in pixels. Raises DataError where `image_png` is no PNG file."""
        if self.image_png[:8] != _PNG or len(self.image_png) < 24:
            raise DataError("A gallery picture is not a PNG file.")
        width, height = struct.unpack(">II", self.image_png[16:24])
        return width, height


def picture(item: GalleryItem) -> Markup:
    """The scene with its boxes as SVG; selected regions stand out, the others are thin."""
    width, height = item.size()
    scale = _SHOWN / width
    shown_height = height * scale
    data = base64.b64encode(item.image_png).decode()
    parts = [
        Markup(
            '<svg class="scene" viewBox="0 0 {w} {h}" width="{w}" height="{h}" role="img" aria-label="{label}">'
        ).format(w=_n(_SHOWN), h=_n(shown_height), label=f"Scene with {', '.join(item.labels) or 'no boxes'}"),
        Markup('<image href="data:image/png;base64,{}" width="{}" height="{}"/>').format(
            data, _n(_SHOWN), _n(shown_height)
        ),
    ]
    order = sorted(range(len(item.boxes)), key=lambda index: index in set(item.selected_regions))
    for index in order:
        x1, y1, x2, y2 = (value * scale for value in item.boxes[index])
        chosen = index in set(item.selected_regions)
        label = str(item.labels[index]) if index < len(item.labels) else str(index + 1)
        tag_width = min(6.4 * len(label) + 10, _SHOWN)
        tag_x = min(max(x1, 0), _SHOWN - tag_width)
        tag_y = y1 - 16 if y1 >= 17 else min(y2, shown_height - 16)
        parts.append(
            Markup(
                '<g class="box{chosen}"><rect class="halo" x="{x}" y="{y}" width="{w}" height="{h}" rx="2"/>'
                '<rect class="edge" x="{x}" y="{y}" width="{w}" height="{h}" rx="2"/>'
                '<rect class="tag" x="{tx}" y="{ty}" width="{tw}" height="16" rx="2"/>'
                '<text x="{lx}" y="{ly}">{label}</text></g>'
            ).format(
                chosen=" chosen" if chosen else "",
                x=_n(x1),
                y=_n(y1),
                w=_n(max(x2 - x1, 1)),
                h=_n(max(y2 - y1, 1)),
                tx=_n(tag_x),
                ty=_n(tag_y),
                tw=_n(tag_width),
                lx=_n(tag_x + 5),
                ly=_n(tag_y + 12),
                label=label,
            )
        )
    parts.append(Markup("</svg>"))
    return Markup("").join(parts)


def marked(text: str, spans: Sequence[tuple[int, int]]) -> Markup:
    """`text` with the selected character ranges in `<mark>`; overlapping ranges are joined."""
    out = Markup("")
    at = 0
    for start, end in sorted(spans):
        start, end = max(start, at), min(end, len(text))
        if start >= end:
            continue
        out += escape(text[at:start]) + Markup("<mark>{}</mark>").format(text[start:end])
        at = end
    return out + escape(text[at:])


def _n(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")
