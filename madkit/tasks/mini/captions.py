"""Cheap captions of the pictograph world: what the embedded teacher and the embedded student's pretraining read.

They are never the tasks' sentences: no question, no hypothesis, no presupposing "the ... is ...".
"""

from __future__ import annotations

from collections.abc import Sequence

from .concepts import COLOURS, concepts, plural
from .draw import Draw
from .scene import Thing
from .wording import PLACES, with_article

NOUNS = ("thing", "person", "sign", "picture", "something", "one", "symbol")
# Words that tasks and their rewordings use but captions do not: in the vocabulary, never in a caption.
TASK_WORDS = (
    "is are does do what which who where how many there color colour of the in on at to left right top bottom "
    "middle centre side part looking we see painted somebody paint whatever did belongs kind number known for "
    "know that as them they both have common he she it its and yes no us say ?"
)  # fmt: skip


def caption_of(thing: Thing, draw: Draw) -> str:
    """One short phrase about one thing: name, fact, category, colour or several of them."""
    concept, colour = concepts()[thing.concept], COLOURS[thing.colour].name
    fact = draw.choice(concept.facts)
    noun = draw.choice(NOUNS)
    shape = draw.below(10)
    if shape <= 1:
        return with_article(f"{colour} {concept.name}")
    if shape == 2:
        return with_article(concept.name)
    if shape <= 4:
        return f"{noun} that {fact}"
    if shape == 5:
        return f"{colour} {noun}, {fact}"
    if shape == 6:
        return f"{concept.name}, {fact}"
    if shape == 7:
        return f"{noun} in {colour}"
    if shape == 8:
        return with_article(f"{colour} {concept.category}")
    return f"one of the {plural(concept.category)}"


def placed_caption_of(thing: Thing, draw: Draw) -> str:
    """A phrase about one thing that may tell where it is: "a red pawn, top left"."""
    text = caption_of(thing, draw)
    return f"{text}, {PLACES[thing.cell]}" if draw.chance(0.3) else text


def scene_caption(things: Sequence[Thing], draw: Draw) -> str:
    """Two phrases about two things of a scene."""
    return " and ".join(caption_of(thing, draw) for thing in draw.sample(things, 2))
