"""How things of the pictograph world are referred to, in the words of training and in the words of the rewording
suite.
"""

from __future__ import annotations

from typing import Literal

from .concepts import COLOURS, Concept, concepts
from .draw import Draw
from .scene import CELLS, COLUMN_OF, ROW_OF

Reference = Literal["name", "fact", "second-fact"]
REFERENCES: tuple[Reference, ...] = ("name", "fact", "second-fact")

# One side of the picture, the cells that are clearly on it, and the cells that are clearly on the other one.
SIDES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "on the left": (tuple(c for c in CELLS if COLUMN_OF[c] == 0), tuple(c for c in CELLS if COLUMN_OF[c] == 2)),
    "on the right": (tuple(c for c in CELLS if COLUMN_OF[c] == 2), tuple(c for c in CELLS if COLUMN_OF[c] == 0)),
    "at the top": (tuple(c for c in CELLS if ROW_OF[c] == 0), tuple(c for c in CELLS if ROW_OF[c] == 2)),
    "at the bottom": (tuple(c for c in CELLS if ROW_OF[c] == 2), tuple(c for c in CELLS if ROW_OF[c] == 0)),
}
PLACES: tuple[str, ...] = tuple(
    f"{('top', 'middle', 'bottom')[ROW_OF[cell]]} {('left', 'centre', 'right')[COLUMN_OF[cell]]}" for cell in CELLS
)


def with_article(noun: str) -> str:
    """With its indefinite article: "a pawn", "an anchor"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def fact_of(concept: Concept, reference: Reference) -> str:
    """The first or the second fact."""
    return concept.facts[1 if reference == "second-fact" else 0]


def thing(concept: int, reference: Reference) -> str:
    """A definite noun phrase without its article: "umbrella" or "thing that keeps off the rain"."""
    entry = concepts()[concept]
    return entry.name if reference == "name" else f"thing that {fact_of(entry, reference)}"


def is_a(concept: int, reference: Reference) -> str:
    """A verb phrase: "is an umbrella" or "keeps off the rain"."""
    entry = concepts()[concept]
    return f"is {with_article(entry.name)}" if reference == "name" else fact_of(entry, reference)


def other_colour(colour: int, draw: Draw) -> int:
    """A colour that is not this one, uniformly."""
    return (colour + draw.between(1, len(COLOURS) - 1)) % len(COLOURS)


def sentence(text: str) -> str:
    """With a capital first letter."""
    return text[0].upper() + text[1:]
