"""How a family writes an example's texts as one sequence: order, special tokens, types, names of tagged people.

A plan is a list of marks (special tokens) and bodies (the texts), each with its type; everything else (tokens, spans,
tags, shortening) is the same for all families.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from madkit.tasks.example import Example, Segment, Tag

PERSON = "person"


class Mark(NamedTuple):
    """A special token."""

    token: Literal["cls", "sep", "mask"]
    type: int


class Body(NamedTuple):
    """The tokens of segment number `segment` (context first, the candidate last)."""

    segment: int
    type: int


Plan = tuple[Mark | Body, ...]
Naming = Callable[[Example], Sequence[Mapping[int, str]]]


@dataclass(frozen=True, slots=True)
class TextStyle:
    """A family's way with text.

    plan: (number of context segments, whether a candidate follows) -> the sequence.
    naming: example -> for each of its sequences {box: name}, what a tag whose surface is "person" reads instead. Equal
        texts of one example get equal names. None leaves texts as they are.
    """

    plan: Callable[[int, bool], Plan]
    naming: Naming | None = None


def segment_plan(types: tuple[int, ...], *, sep_follows: bool = False) -> Callable[[int, bool], Plan]:
    """The usual plan: `[CLS] s0 [SEP] s1 [SEP] ...`.

    Args:
        types: of segment 0, 1, ...; the last one goes on.
        sep_follows: a [SEP] between two segments has the type of what follows it, else of what it closes.
    """

    def plan(context: int, candidate: bool) -> Plan:
        count = context + candidate
        kinds = [types[min(i, len(types) - 1)] for i in range(count)]
        parts: list[Mark | Body] = [Mark("cls", types[0])]
        for i, kind in enumerate(kinds):
            last = i == count - 1
            parts += [Body(i, kind), Mark("sep", kind if last or not sep_follows else kinds[i + 1])]
        return tuple(parts)

    return plan


def query_plan(*slot: Mark) -> Callable[[int, bool], Plan]:
    """The plan `[CLS] query [SEP] response [SEP]` with types 0 and 1: all context is the query, one text after another
    with nothing between them, and the candidate is the response.

    Args:
        slot: what follows a query without a candidate: a [MASK], where the answer is read, and a last [SEP].
    """

    def plan(context: int, candidate: bool) -> Plan:
        query: Plan = (Mark("cls", 0), *(Body(number, 0) for number in range(context)))
        if not candidate:
            return (*query, *slot)
        return (*query, Mark("sep", 0), Body(context, 1), Mark("sep", 1))

    return plan


def is_person(segment: Segment, tag: Tag) -> bool:
    """Whether a tag stands for people without a name: its surface is "person"."""
    return segment.text[tag.start : tag.end].casefold() == PERSON


class Rewritten(NamedTuple):
    """A text as the student reads it; `origin[i]` is what character i stands for: (start, end) in the segment."""

    text: str
    origin: tuple[tuple[int, int], ...] | None  # None: the segment's own text

    def span(self, start: int, end: int) -> tuple[int, int]:
        """The stretch of the segment's own text behind characters start..end of this one."""
        if self.origin is None or start >= end:
            return start, end
        return self.origin[start][0], self.origin[end - 1][1]


def rewrite(segment: Segment, names: Mapping[int, str]) -> Rewritten:
    """`segment` with the people of `names` (box -> name) called by name.

    A name stands for its whole tag, so each of its pieces has the tag's span: it is compared with what a teacher, who
    reads the original text, says about "person".
    """
    changed = [
        (tag, names[tag.boxes[0]])
        for tag in sorted(segment.tags, key=lambda tag: tag.start)
        if tag.boxes and tag.boxes[0] in names and is_person(segment, tag)
    ]
    if not changed:
        return Rewritten(segment.text, None)
    text, origin, at = "", list[tuple[int, int]](), 0
    for tag, name in changed:
        text += segment.text[at : tag.start] + name
        origin += [(i, i + 1) for i in range(at, tag.start)] + [(tag.start, tag.end)] * len(name)
        at = tag.end
    text += segment.text[at:]
    origin += [(i, i + 1) for i in range(at, len(segment.text))]
    return Rewritten(text, tuple(origin))
