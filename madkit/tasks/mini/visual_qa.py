"""mini-VQA: short open answers about a picture, given by ten annotators who do not always agree.

The kind of question and its answer are drawn first, each answer of a kind equally often, so that neither the words
nor the kind tell anything. The `priors` suite draws answers from a steep distribution instead (as VQA-CP changes
them between train and test).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .concepts import COLOURS, categories, concepts, members, plural
from .draw import Draw
from .scene import Needs, Wanted
from .wording import REFERENCES, SIDES, Reference, fact_of, other_colour, thing, with_article

# Question kind -> (share, official-style question type, answer type).
KINDS: dict[str, tuple[float, str, str]] = {
    "is-colour": (0.16, "is the", "yes/no"),
    "is-there": (0.12, "is there", "yes/no"),
    "is-side": (0.12, "is the", "yes/no"),
    "colour": (0.25, "what color is the", "other"),
    "count": (0.12, "how many", "number"),
    "category": (0.12, "what kind of", "other"),
    "name": (0.11, "what is the", "other"),
}
YES_NO = ("yes", "no")
COUNTS = ("0", "1", "2", "3")
ANNOTATORS = 10
AGREEMENT = 0.9
# Each step down the list of a kind's answers is this much rarer in the `priors` suite.
STEEPNESS = 0.45


@dataclass(frozen=True, slots=True)
class VisualQuestion:
    """One question with its answer and what its scene must hold."""

    kind: str
    answer: str
    text: str
    reworded: str
    needs: Needs

    @property
    def question_type(self) -> str:
        """The official-style question type."""
        return KINDS[self.kind][1]

    @property
    def answer_type(self) -> str:
        """yes/no, number or other."""
        return KINDS[self.kind][2]


def answers_of(kind: str, pool: Sequence[int]) -> tuple[str, ...]:
    """All answers that a kind of question has."""
    if KINDS[kind][2] == "yes/no":
        return YES_NO
    if kind == "count":
        return COUNTS
    if kind == "colour":
        return tuple(colour.name for colour in COLOURS)
    if kind == "category":
        return tuple(c for c in categories() if any(m in pool for m in members(c)))
    return tuple(concepts()[i].name for i in pool)


def uniform_guess(pool: Sequence[int]) -> float:
    """Expected accuracy of guessing each kind's answers uniformly, in 0..1: the chance level of the task."""
    return sum(share / len(answers_of(kind, pool)) for kind, (share, _, _) in KINDS.items())


def draw_visual_question(draw: Draw, pool: Sequence[int], steep: bool = False) -> VisualQuestion:
    """Draw kind and answer, then the words, then the needs. `steep`: answer priors of the `priors` suite."""
    kind = draw.weighted(tuple(KINDS), [share for share, _, _ in KINDS.values()])
    answers = answers_of(kind, pool)
    if steep:
        # "no" is the rarer of the two; numbers, colours, categories and names fall off in list order.
        answer = draw.weighted(answers, [STEEPNESS ** min(i, 6) for i in range(len(answers))])
    else:
        answer = draw.choice(answers)
    reference = draw.choice(REFERENCES)
    concept, second, colour = *draw.sample(pool, 2), draw.below(len(COLOURS))
    if KINDS[kind][2] == "yes/no":
        return _yes_no(draw, kind, answer, reference, concept, second, colour)
    if kind == "count":
        return _count(draw, answer)
    needs = Needs()
    if kind == "colour":
        colour = next(i for i, c in enumerate(COLOURS) if c.name == answer)
        what = thing(concept, reference)
        text, reworded = f"What color is the {what}?", f"In which color did somebody paint the {what}?"
    elif kind == "category":
        concept = draw.choice([m for m in members(answer) if m in pool])
        name = COLOURS[colour].name
        text, reworded = f"What kind of thing is {name}?", f"The thing painted {name} belongs to which kind?"
    else:
        concept = next(i for i in pool if concepts()[i].name == answer)
        name = COLOURS[colour].name
        text, reworded = f"What is the {name} thing?", f"What did somebody paint {name}?"
    needs.present[concept] = Wanted(colour)
    return VisualQuestion(kind, answer, text, reworded, needs)


def _yes_no(
    draw: Draw, kind: str, answer: str, reference: Reference, concept: int, second: int, colour: int
) -> VisualQuestion:
    needs, what = Needs(), thing(concept, reference)
    if kind == "is-colour":
        name = COLOURS[colour].name
        if answer == "yes":
            needs.present[concept] = Wanted(colour)
        else:
            needs.present[concept] = Wanted(other_colour(colour, draw))
            if draw.chance(0.5):
                needs.present[second] = Wanted(colour)
        return VisualQuestion(kind, answer, f"Is the {what} {name}?", f"Did somebody paint the {what} {name}?", needs)
    if kind == "is-there":
        entry = concepts()[concept]
        noun = with_article(entry.name) if reference == "name" else f"a thing that {fact_of(entry, reference)}"
        if answer == "yes":
            needs.present[concept] = Wanted()
        else:
            needs.absent_concepts.add(concept)
        return VisualQuestion(kind, answer, f"Is there {noun}?", f"Do we see {noun}?", needs)
    side = draw.choice(tuple(SIDES))
    here, there = SIDES[side]
    needs.present[concept] = Wanted(cells=here if answer == "yes" else there)
    return VisualQuestion(
        kind, answer, f"Is the {what} {side}?", f"Looking {side[3:]} side, do we see the {what}?", needs
    )


def _count(draw: Draw, answer: str) -> VisualQuestion:
    category = draw.choice(categories())
    needs = Needs()
    for concept in draw.sample(members(category), int(answer)):
        needs.present[concept] = Wanted()
    needs.with_none_else_of(category)
    many = plural(category)
    return VisualQuestion("count", answer, f"How many {many} are there?", f"What is the number of {many}?", needs)


def ten_answers(draw: Draw, question: VisualQuestion, pool: Sequence[int]) -> list[dict[str, object]]:
    """The ten annotators' answers: at least six give the answer, the others any answer of its kind."""
    answers = answers_of(question.kind, pool)
    given = [question.answer if draw.chance(AGREEMENT) else draw.choice(answers) for _ in range(ANNOTATORS)]
    given[:6] = [question.answer] * 6
    return [
        {"answer": given[i], "answer_confidence": "yes" if given[i] == question.answer else "maybe", "answer_id": k + 1}
        for k, i in enumerate(draw.sample(range(ANNOTATORS), ANNOTATORS))
    ]
