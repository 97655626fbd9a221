"""Scenes of the pictograph world: what a question needs to see, and scenes drawn to meet those needs.

Questions are drawn before scenes. Whatever a question's label, form and words are, they are fixed when its scene is
drawn; a scene that cannot be completed is drawn again, the question never. That order is what keeps labels
independent of words: a label drawn inside a rejection loop correlates with the sentences that survive (seen in a
feasibility study as a seven-point leak).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .concepts import COLOURS, concepts, members
from .draw import Draw

GRID = 3
CELLS = tuple(range(GRID * GRID))
COLUMN_OF = tuple(cell % GRID for cell in CELLS)
ROW_OF = tuple(cell // GRID for cell in CELLS)
LEAST_THINGS, MOST_THINGS = 3, 5


@dataclass(frozen=True, slots=True)
class Thing:
    """One pictograph in a scene: indices of its concept, its colour and its cell in the 3 x 3 grid."""

    concept: int
    colour: int
    cell: int


@dataclass(slots=True)
class Wanted:
    """A thing that a question needs to be there; None means that anything will do."""

    colour: int | None = None
    cells: tuple[int, ...] | None = None


@dataclass(slots=True)
class Needs:
    """What a question needs of its scene."""

    present: dict[int, Wanted] = field(default_factory=dict)
    absent_concepts: set[int] = field(default_factory=set)
    absent_colours: set[int] = field(default_factory=set)
    least_things: int = LEAST_THINGS

    def with_none_else_of(self, category: str) -> None:
        """No concept of the category but those already wanted."""
        self.absent_concepts |= set(members(category)) - set(self.present)

    def merged(self, other: Needs) -> Needs | None:
        """The needs of both questions, or None where they contradict each other."""
        if set(self.present) & set(other.present):
            return None
        present = {**self.present, **other.present}
        absent_concepts = self.absent_concepts | other.absent_concepts
        absent_colours = self.absent_colours | other.absent_colours
        colours = [wanted.colour for wanted in present.values() if wanted.colour is not None]
        if (
            len(present) > MOST_THINGS
            or absent_concepts & set(present)
            or absent_colours & set(colours)
            or len(colours) != len(set(colours))
            or len(absent_colours) > len(COLOURS) - MOST_THINGS
            or not _placeable([wanted.cells for wanted in present.values() if wanted.cells is not None])
        ):
            return None
        return Needs(present, absent_concepts, absent_colours, max(self.least_things, other.least_things))


def _placeable(choices: list[tuple[int, ...]], taken: tuple[int, ...] = ()) -> bool:
    """Whether things restricted to these cells can all have one of their own."""
    if not choices:
        return True
    return any(_placeable(choices[1:], (*taken, cell)) for cell in choices[0] if cell not in taken)


def draw_scene(needs: Needs, draw: Draw, allowed: Sequence[int] | None = None) -> tuple[Thing, ...]:
    """A random scene that meets the needs: 3 to 5 things of different concepts, colours and cells, in random order.

    `allowed` restricts the concepts of the things that no question asked for.
    """
    for _ in range(200):
        scene = _try_scene(needs, draw, allowed)
        if scene is not None:
            return scene
    raise RuntimeError(f"no scene meets {needs}")  # contradictory needs: a mistake in a question's rules


def _try_scene(needs: Needs, draw: Draw, allowed: Sequence[int] | None) -> tuple[Thing, ...] | None:
    count = max(len(needs.present), needs.least_things, draw.between(LEAST_THINGS, MOST_THINGS))
    wanted = dict(needs.present)
    pool = range(len(concepts())) if allowed is None else allowed
    while len(wanted) < count:
        concept = draw.choice(pool)
        if concept not in wanted and concept not in needs.absent_concepts:
            wanted[concept] = Wanted()
    taken = {w.colour for w in wanted.values() if w.colour is not None}
    free = draw.sample([c for c in range(len(COLOURS)) if c not in taken | needs.absent_colours], len(COLOURS))
    cells = _assign_cells([w.cells for w in wanted.values()], draw)
    if cells is None or len(free) < sum(w.colour is None for w in wanted.values()):
        return None
    things = []
    for (concept, want), cell in zip(wanted.items(), cells, strict=True):
        things.append(Thing(concept, want.colour if want.colour is not None else free.pop(), cell))
    return tuple(draw.sample(things, len(things)))


def _assign_cells(choices: list[tuple[int, ...] | None], draw: Draw) -> list[int] | None:
    """Different cells for all, the restricted first."""
    result: dict[int, int] = {}
    for i in sorted(range(len(choices)), key=lambda i: choices[i] is None):
        free = [cell for cell in (choices[i] or CELLS) if cell not in result.values()]
        if not free:
            return None
        result[i] = draw.choice(free)
    return [result[i] for i in range(len(choices))]
