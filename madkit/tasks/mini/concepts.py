"""The 131 glyph concepts of the pictograph world: their names, categories and everyday facts.

Each concept is one glyph of the DejaVu Sans font with one name, one category and two facts. Facts are verb phrases,
so that "the thing that <fact>" and "<tag> <fact>" both read as English. The table is data (`concepts.tsv`).
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np


@dataclass(frozen=True, slots=True)
class Concept:
    """One pictograph: its place in the atlas, what it is called and what everybody knows about it."""

    index: int
    glyph: str
    name: str
    category: str
    facts: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Colour:
    """A colour that things are painted in."""

    name: str
    rgb: tuple[int, int, int]


COLOURS: tuple[Colour, ...] = (
    Colour("red", (205, 30, 35)),
    Colour("orange", (240, 125, 15)),
    Colour("yellow", (240, 215, 20)),
    Colour("green", (30, 140, 50)),
    Colour("blue", (30, 80, 205)),
    Colour("purple", (130, 45, 170)),
    Colour("pink", (245, 105, 175)),
    Colour("black", (20, 20, 25)),
)

# The share of each category that the student knows before fine-tuning: about two fifths of the world.
_SEEN_SHARE = 0.42
_SEEN_SEED = 20260


@cache
def concepts() -> tuple[Concept, ...]:
    """All concepts, in atlas order."""
    text = resources.files(__package__).joinpath("concepts.tsv").read_text(encoding="utf-8")
    # Quoting is off: the table holds no quotes, and a glyph could be one.
    rows = csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    return tuple(
        Concept(i, row["glyph"], row["name"], row["category"], (row["fact"], row["second_fact"]))
        for i, row in enumerate(rows)
    )


@cache
def categories() -> tuple[str, ...]:
    """Category names, in order of first appearance."""
    return tuple(dict.fromkeys(concept.category for concept in concepts()))


@cache
def members(category: str) -> tuple[int, ...]:
    """Concept indices of a category."""
    return tuple(c.index for c in concepts() if c.category == category)


@cache
def seen_in_pretraining() -> frozenset[int]:
    """Concepts that the embedded student met in its pretraining: the same share of each category.

    Declared here, in one place, because both the pretraining recipe and the `concepts` shift suite depend on it.
    """
    state = np.random.RandomState(_SEEN_SEED)
    seen: list[int] = []
    for category in categories():
        order = [int(i) for i in state.permutation(np.asarray(members(category)))]
        seen += order[: max(1, round(_SEEN_SHARE * len(order)))]
    return frozenset(seen)


@cache
def unseen_in_pretraining() -> tuple[int, ...]:
    """Concepts that the embedded student never met before fine-tuning."""
    seen = seen_in_pretraining()
    return tuple(c.index for c in concepts() if c.index not in seen)


def plural(category: str) -> str:
    """Plural of a category name, as counting questions use it."""
    return category[:-1] + "ies" if category.endswith("y") else category + "s"
