"""Scenes with their boxes, the teacher's selected tokens and the arms' answers, as cards of the HTML page."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from madkit.core.errors import DataError

_PNG = b"\x89PNG\r\n\x1a\n"
_TAG = 16.0  # height of a box's name
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
        candidates: the choices or classes, where the task has them.
        chances: arm -> probability 0..1 of each of `candidates`; of its answer alone, where there are none.
        scores: arm -> score 0..1 of its answer; right or wrong by `truth` where left out.
        selected_patches: pixel corners of the patches that the method selects, where there are no boxes.
        truth_spans: character ranges of the right one of `candidates` that the method selects.
        group: scenes of one group stand together under this heading.
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
    chances: Mapping[str, Sequence[float]] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    selected_patches: Sequence[tuple[float, float, float, float]] = ()
    truth_spans: Sequence[tuple[int, int]] = ()
    group: str = ""

    @property
    def selects(self) -> bool:
        """Whether anything of it was selected."""
        return bool(self.selected_regions or self.selected_spans or self.selected_patches or self.truth_spans)

    def verdict(self, arm: str) -> str:
        """Whether an arm's answer is "right", "wrong" or, where annotators disagree, "partly right"."""
        score = self.scores.get(arm, float(self.answers[arm] == self.truth))
        return "right" if score >= 0.995 else "wrong" if score <= 0 else "partly right"

    def table(self) -> list[tuple[str, bool, Markup, list[tuple[str, float | None, bool]]]]:
        """A row per choice: (its text, whether it is the truth, that text with marks, cells), and a cell per arm: (the
        arm, its probability of the choice or None, whether it answers so). Empty where there are no choices.
        """
        return [
            (
                choice,
                choice == self.truth,
                marked(choice, self.truth_spans if choice == self.truth else ()),
                [
                    (arm, given[number] if len(given := self.chances.get(arm, ())) > number else None, answer == choice)
                    for arm, answer in self.answers.items()
                ],
            )
            for number, choice in enumerate(self.candidates)
        ]

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
        ).format(w=_n(_SHOWN), h=_n(shown_height), label=_aloud(item)),
        Markup('<image href="data:image/png;base64,{}" width="{}" height="{}"/>').format(
            data, _n(_SHOWN), _n(shown_height)
        ),
    ]
    for corners in item.selected_patches:
        a, b, c, d = (value * scale for value in corners)
        place = {"x": _n(a), "y": _n(b), "w": _n(max(c - a, 1)), "h": _n(max(d - b, 1))}
        for css in ("halo", "edge"):
            parts.append(
                Markup('<rect class="box patch {css}" x="{x}" y="{y}" width="{w}" height="{h}"/>').format(
                    css=css, **place
                )
            )
    tags: list[tuple[float, float, float, float]] = []
    order = sorted(range(len(item.boxes)), key=lambda index: index in set(item.selected_regions))
    for index in order:
        x1, y1, x2, y2 = (value * scale for value in item.boxes[index])
        chosen = index in set(item.selected_regions)
        label = str(item.labels[index]) if index < len(item.labels) else str(index + 1)
        tag_width = min(6.4 * len(label) + 10, _SHOWN)
        tag_x, tag_y = _free((x1, y1, x2, y2), (tag_width, _TAG), (_SHOWN, shown_height), tags)
        tags.append((tag_x, tag_y, tag_x + tag_width, tag_y + _TAG))
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


def _free(
    box: tuple[float, float, float, float],
    size: tuple[float, float],
    room: tuple[float, float],
    taken: Sequence[tuple[float, float, float, float]],
) -> tuple[float, float]:
    """Where a box's name goes: the first of its corners where it lies in the picture and on no other name."""
    (x1, y1, x2, y2), (wide, high) = box, size
    lefts, tops = (x1, x2 - wide), (y1 - high, y2, y1, y2 - high)
    wanted = [
        (min(max(left, 0.0), room[0] - wide), top) for top in tops for left in lefts if 0 <= top <= room[1] - high
    ] or [(min(max(x1, 0.0), room[0] - wide), min(max(y1, 0.0), room[1] - high))]

    def clear(x: float, y: float) -> bool:
        return all(x + wide <= a or c <= x or y + high <= b or d <= y for a, b, c, d in taken)

    return next((place for place in wanted if clear(*place)), wanted[0])


def _aloud(item: GalleryItem) -> str:
    """The scene for who does not see it: what it is from, and its boxes."""
    names = [str(name) for name in item.labels[: len(item.boxes)]]
    chosen = [names[index] for index in item.selected_regions if index < len(names)]
    boxes = f"{'box' if len(names) == 1 else 'boxes'} {', '.join(names)}" if names else "no boxes"
    count = len(item.selected_patches)
    patches = f"; {count} {'patch' if count == 1 else 'patches'} selected" if count else ""
    kept = f"; selected: {', '.join(chosen)}" if chosen else ""
    return f"Scene with {boxes}{kept}{patches}. {item.text}"


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
