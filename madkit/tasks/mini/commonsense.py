"""mini-VCR: a question about tagged things, four answers, then four rationales.

Every pictograph is a "person", so that nothing but the picture tells what a tag is, and the rules that make
shortcut-mitigated VCR (which turn on persons and pronouns) apply. Tokens are VCR's: words, and lists of 0-based indices
into the scene's objects. Both labels are drawn first; choices are exchangeable, so that reading them tells nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .concepts import COLOURS, categories, concepts, members, plural
from .draw import Draw
from .scene import CELLS, Needs, Thing, Wanted
from .wording import PLACES, REFERENCES, fact_of, is_a

CHOICES = 4
KINDS = ("does", "look", "where", "common", "who")
# How often a wrong choice's concept (or colour) stands in the picture, on another thing.
DECOY = 0.35
PRONOUN = 0.3

Token = str | list[int]


@dataclass(frozen=True, slots=True)
class Tagged:
    """A tag whose object index is known only once the scene is drawn."""

    concepts: tuple[int, ...]


Draft = list[str | Tagged]


@dataclass(frozen=True, slots=True)
class Conundrum:
    """A drafted VCR question: tags still name concepts; `who` answers are filled in from the scene."""

    kind: str
    asked: tuple[int, ...]
    question: tuple[Draft, Draft]
    answers: tuple[list[Draft], list[Draft]]
    rationales: tuple[list[Draft], list[Draft]]
    answer_label: int
    rationale_label: int
    needs: Needs

    def tokens(self, draft: Draft, scene: Sequence[Thing]) -> list[Token]:
        """VCR's mixed list for a draft, given the scene."""
        where = {thing.concept: i for i, thing in enumerate(scene)}
        return [part if isinstance(part, str) else sorted(where[c] for c in part.concepts) for part in draft]

    def answer_tokens(self, scene: Sequence[Thing], draw: Draw, reworded: bool) -> list[list[Token]]:
        """The four answers; those of a `who` question are four tags of the scene."""
        drafts = self.answers[int(reworded)]
        if self.kind == "who":
            others = draw.sample([thing.concept for thing in scene if thing.concept != self.asked[0]], CHOICES - 1)
            others.insert(self.answer_label, self.asked[0])
            drafts = [["It", "is", Tagged((c,)), "."] if reworded else [Tagged((c,)), "does", "."] for c in others]
        return [self.tokens(draft, scene) for draft in drafts]


def draw_conundrum(draw: Draw, pool: Sequence[int]) -> Conundrum:
    """Draw both labels and the kind, then the words, then the needs. `pool`: concepts to speak about."""
    answer_label, rationale_label = draw.below(CHOICES), draw.below(CHOICES)
    kind = draw.choice(KINDS)
    if kind == "common":
        return _common(draw, pool, answer_label, rationale_label)
    about_concept = draw.sample(pool, CHOICES)
    hues = draw.sample(range(len(COLOURS)), CHOICES)
    places = draw.sample(CELLS, CHOICES)
    concept_label, other_label = (
        (answer_label, rationale_label) if kind in ("does", "who") else (rationale_label, answer_label)
    )
    asked = about_concept[concept_label]
    needs = Needs(least_things=CHOICES if kind == "who" else 3)
    if kind == "where":
        needs.present[asked] = Wanted(cells=(places[other_label],))
    else:
        needs.present[asked] = Wanted(colour=hues[other_label])
    spare_hues = [hue for i, hue in enumerate(hues) if i != other_label]
    for i, concept in enumerate(about_concept):
        if i != concept_label and draw.chance(DECOY):
            needs.present[concept] = Wanted() if kind == "where" else Wanted(colour=spare_hues.pop())
    tag = Tagged((asked,))
    reference = [draw.choice(REFERENCES[1:] if kind in ("does", "who") else REFERENCES) for _ in range(CHOICES)]
    saying = [is_a(c, r).split() for c, r in zip(about_concept, reference, strict=True)]
    by_concept: tuple[list[Draft], list[Draft]] = (
        [_subject(draw, tag, kind, [*words, "."]) for words in saying],
        [["We", "know", "that", tag, *words, "."] for words in saying],
    )
    if kind == "where":
        spots = [PLACES[place].split() for place in places]
        by_sight: tuple[list[Draft], list[Draft]] = (
            [_subject(draw, tag, kind, ["is", "at", "the", *spot, "."]) for spot in spots],
            [["We", "see", tag, "in", "the", *spot, "part", "."] for spot in spots],
        )
    else:
        by_sight = (
            [_subject(draw, tag, kind, ["is", COLOURS[hue].name, "."]) for hue in hues],
            [["Somebody", "painted", tag, COLOURS[hue].name, "."] for hue in hues],
        )
    first, second = (by_concept, by_sight) if kind in ("does", "who") else (by_sight, by_concept)
    return Conundrum(
        kind, (asked,), _ask(kind, tag, fact_of(concepts()[asked], reference[concept_label])), first, second,
        answer_label, rationale_label, needs,
    )  # fmt: skip


def _ask(kind: str, tag: Tagged, fact: str) -> tuple[Draft, Draft]:
    """The question, in the words of training and reworded."""
    if kind == "does":
        return ["What", "does", tag, "do", "?"], ["What", "is", tag, "known", "for", "?"]
    if kind == "look":
        return ["How", "does", tag, "look", "?"], ["What", "color", "did", "somebody", "paint", tag, "?"]
    if kind == "where":
        return ["Where", "is", tag, "?"], ["In", "which", "part", "do", "we", "see", tag, "?"]
    return ["Who", *fact.split(), "?"], ["Do", "we", "see", "who", *fact.split(), "?"]


def _subject(draw: Draw, tag: Tagged, kind: str, rest: list[str]) -> Draft:
    """The tag, or a pronoun for it: drawn for each choice alone, so that the form tells nothing about the label."""
    if kind != "who" and draw.chance(PRONOUN):
        return [draw.choice(("He", "She")), *rest]
    return [tag, *rest]


def _common(draw: Draw, pool: Sequence[int], answer_label: int, rationale_label: int) -> Conundrum:
    able = [c for c in categories() if sum(m in pool for m in members(c)) >= 2]
    kinds = draw.sample(able, CHOICES)
    asked = tuple(draw.sample([m for m in members(kinds[answer_label]) if m in pool], 2))
    # Pairs of colours drawn alone: were they made by swapping the right pair, the right one would be the most central.
    pairs: list[tuple[int, int]] = []
    while len(pairs) < CHOICES:
        first, second = draw.sample(range(len(COLOURS)), 2)
        if (first, second) not in pairs:
            pairs.append((first, second))
    needs = Needs({c: Wanted(hue) for c, hue in zip(asked, pairs[rationale_label], strict=True)})
    tag, left, right = Tagged(asked), Tagged(asked[:1]), Tagged(asked[1:])
    answers: tuple[list[Draft], list[Draft]] = (
        [["They" if draw.chance(PRONOUN) else tag, "are", *plural(k).split(), "."] for k in kinds],
        [["We", "know", "them", "as", *plural(k).split(), "."] for k in kinds],
    )
    names = [(COLOURS[a].name, COLOURS[b].name) for a, b in pairs]
    rationales: tuple[list[Draft], list[Draft]] = (
        [[left, "is", a, "and", right, "is", b, "."] for a, b in names],
        [["Somebody", "painted", left, a, "and", right, b, "."] for a, b in names],
    )
    question: tuple[Draft, Draft] = (
        ["What", "do", tag, "have", "in", "common", "?"],
        ["What", "kind", "do", "we", "know", tag, "as", "?"],
    )
    return Conundrum("common", asked, question, answers, rationales, answer_label, rationale_label, needs)
