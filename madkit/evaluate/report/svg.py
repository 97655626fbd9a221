"""A few SVG shapes with escaped text. Colours come from CSS classes, so one drawing serves light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

# One shape per arm beside its colour: the plots read in black and white too.
MARKERS = ("circle", "square", "diamond", "triangle", "down", "hexagon")
COLOURS = 6  # of page.css, the baseline's first; arms after the sixth have one of the others again, and another shape


class Drawing:
    """Shapes on a canvas of `width` x `height` units, where one unit is one CSS pixel at natural size."""

    def __init__(self, width: float, height: float, *, label: str, css: str = "") -> None:
        self.width = width
        self.height = height
        self.label = label
        self.css = css
        self._parts: list[str] = []

    def line(self, x1: float, y1: float, x2: float, y2: float, css: str) -> None:
        """A straight line."""
        self._parts.append(f'<line x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}" class="{escape(css)}"/>')

    def rect(self, x: float, y: float, width: float, height: float, css: str, *, title: str = "") -> None:
        """A rectangle."""
        shape = f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}" class="{escape(css)}"'
        self._parts.append(self._titled(shape, "rect", title))

    def path(self, points: Sequence[tuple[float, float]], css: str, *, closed: bool = False) -> None:
        """Straight segments through points."""
        steps = " ".join(f"{'L' if index else 'M'}{_n(x)} {_n(y)}" for index, (x, y) in enumerate(points))
        self._parts.append(f'<path d="{steps}{" Z" if closed else ""}" class="{escape(css)}"/>')

    def text(self, x: float, y: float, text: str, css: str = "", *, anchor: str = "start") -> None:
        """Text with its baseline at y; `anchor` is start, middle or end."""
        self._parts.append(
            f'<text x="{_n(x)}" y="{_n(y)}" text-anchor="{escape(anchor)}" class="{escape(css)}">{escape(text)}</text>'
        )

    def marker(self, x: float, y: float, kind: int, css: str, *, size: float = 4.5, title: str = "") -> None:
        """The shape of arm number `kind`, centred; `title` is shown on hover and read by screen readers."""
        name = MARKERS[_shape(kind)]
        if name == "circle":
            shape = f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(size)}" class="{escape(css)}"'
            self._parts.append(self._titled(shape, "circle", title))
            return
        corners = {
            "square": [(45 + 90 * i, 1.25) for i in range(4)],
            "diamond": [(90 * i, 1.35) for i in range(4)],
            "triangle": [(-90 + 120 * i, 1.4) for i in range(3)],
            "down": [(90 + 120 * i, 1.4) for i in range(3)],
            "hexagon": [(60 * i, 1.15) for i in range(6)],
        }[name]
        points = " ".join(
            f"{_n(x + size * r * math.cos(math.radians(a)))},{_n(y + size * r * math.sin(math.radians(a)))}"
            for a, r in corners
        )
        self._parts.append(self._titled(f'<polygon points="{points}" class="{escape(css)}"', "polygon", title))

    def raw(self, element: str) -> None:
        """An element that the caller has escaped."""
        self._parts.append(element)

    @staticmethod
    def _titled(shape: str, tag: str, title: str) -> str:
        return f"{shape}><title>{escape(title)}</title></{tag}>" if title else f"{shape}/>"

    def __str__(self) -> str:
        return (
            f'<svg viewBox="0 0 {_n(self.width)} {_n(self.height)}" width="{_n(self.width)}" height="{_n(self.height)}"'
            f' role="img" aria-label="{escape(self.label)}" class="{escape(self.css)}">{"".join(self._parts)}</svg>'
        )


def _shape(kind: int) -> int:
    """Index of the marker of arm number `kind`. Of several arms in one colour (there are five beside the baseline's,
    `page.css`) each has another: 30 arms are told apart.
    """
    if kind == 0:
        return 0
    turn, colour = divmod(kind - 1, COLOURS - 1)
    return (1 + colour + turn) % len(MARKERS)


def _n(value: float) -> str:
    """A coordinate with at most two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten apart) that span the range, `about` as many as asked."""
    if high <= low:
        high = low + 1
    raw = (high - low) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((factor * power for factor in (1, 2, 2.5, 5, 10)), key=lambda step: abs(step - raw))
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]


def at_least(low: float, high: float, span: float) -> tuple[float, float]:
    """The range, widened about its middle to at least `span`, within 0 to 100: no axis makes a lot of a little."""
    if high - low >= span:
        return low, high
    low = min(max((low + high - span) / 2, 0.0), 100.0 - span)
    return low, low + span


def text_width(text: str, size: float = 12) -> float:
    """A generous guess of the width of a text in a sans-serif face."""
    return sum(0.34 if char in "iljtf.,:;|!'[]() " else 0.85 if char in "mwMW%@" else 0.58 for char in text) * size


def shortened(text: str, width: float, size: float = 12) -> str:
    """`text`, cut with an ellipsis to fit `width`."""
    if text_width(text, size) <= width:
        return text
    while text and text_width(text + "…", size) > width:
        text = text[:-1]
    return text + "…"
