"""mini-SNLI-VE: does the picture entail the sentence, contradict it, or leave it open?

Sentences presuppose something ("the umbrella is red"). It is entailed where the umbrella is there and red, contradicted
where it is there and not red, and open (neutral) where there is no umbrella to look at. Label, kind and reference
are drawn first, then the words, then a scene to match; the words never depend on the label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .concepts import COLOURS
from .draw import Draw
from .scene import Needs, Wanted
from .wording import REFERENCES, SIDES, Reference, is_a, other_colour, sentence, thing

LABELS = ("contradiction", "entailment", "neutral")
KINDS = ("colour", "identity", "place")
# How often a scene that must not confirm the sentence shows the mentioned colour (or concept) elsewhere: without it,
# a bag of words and colours would do, and nothing would have to be bound to anything.
DECOY = 0.5


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One sentence with its label and what its scene must hold."""

    label: str
    kind: str
    text: str
    reworded: str
    needs: Needs


def draw_hypothesis(draw: Draw, pool: Sequence[int]) -> Hypothesis:
    """Draw label, kind and reference form, then the words, then the needs. `pool`: concepts to speak about."""
    label, kind, reference = draw.choice(LABELS), draw.choice(KINDS), draw.choice(REFERENCES)
    concept, second, colour = *draw.sample(pool, 2), draw.below(len(COLOURS))
    side = draw.choice(tuple(SIDES))
    if kind == "colour":
        return _colour(draw, label, reference, concept, second, colour)
    if kind == "identity":
        return _identity(draw, label, reference, concept, second, colour)
    return _place(label, reference, concept, side)


def _colour(draw: Draw, label: str, reference: Reference, concept: int, second: int, colour: int) -> Hypothesis:
    name, what = COLOURS[colour].name, thing(concept, reference)
    needs = Needs()
    if label == "entailment":
        needs.present[concept] = Wanted(colour)
    elif label == "contradiction":
        needs.present[concept] = Wanted(other_colour(colour, draw))
    else:
        needs.absent_concepts.add(concept)
    if label != "entailment":
        if draw.chance(DECOY):
            needs.present[second] = Wanted(colour)
        else:
            needs.absent_colours.add(colour)
    text = draw.choice((f"The {what} is {name}.", f"The colour of the {what} is {name}."))
    reworded = draw.choice((f"Somebody painted the {what} {name}.", f"We see the {what} painted in {name}."))
    return Hypothesis(label, "colour", text, reworded, needs)


def _identity(draw: Draw, label: str, reference: Reference, concept: int, second: int, colour: int) -> Hypothesis:
    name, verb = COLOURS[colour].name, is_a(concept, reference)
    needs = Needs()
    if label == "entailment":
        needs.present[concept] = Wanted(colour)
    elif label == "contradiction":
        needs.present[second] = Wanted(colour)
    else:
        needs.absent_colours.add(colour)
    if label != "entailment":
        if draw.chance(DECOY):
            needs.present[concept] = Wanted(other_colour(colour, draw))
        else:
            needs.absent_concepts.add(concept)
    text = draw.choice((f"The {name} thing {verb}.", f"The thing in {name} {verb}."))
    reworded = draw.choice((f"Whatever is painted {name} {verb}.", f"We see something painted {name} that {verb}."))
    return Hypothesis(label, "identity", text, reworded, needs)


def _place(label: str, reference: Reference, concept: int, side: str) -> Hypothesis:
    here, there = SIDES[side]
    what = thing(concept, reference)
    needs = Needs()
    if label == "neutral":
        needs.absent_concepts.add(concept)
    else:
        needs.present[concept] = Wanted(cells=here if label == "entailment" else there)
    return Hypothesis(
        label, "place", sentence(f"the {what} is {side}."), f"Looking {side[3:]} side, we see the {what}.", needs
    )
