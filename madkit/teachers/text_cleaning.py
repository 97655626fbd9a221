"""open_clip's ways of cleaning a text before it is tokenized, with the characters that every character came from.

``whitespace``: ftfy's repairs, HTML entities, runs of white space joined. ``lower``: that, in lower case.
``canonicalize``: repairs and entities, no ASCII punctuation, underscores as spaces, lower case (SigLIP's). The cleaned
text is open_clip's own by construction of the same steps; every step keeps a span of the original per character.
"""

from __future__ import annotations

import html
import re
import string
from dataclasses import dataclass
from difflib import SequenceMatcher

from madkit.teachers.text_alignment import align_characters

KINDS = ("whitespace", "lower", "canonicalize")
_PIECE = re.compile(r"\s+|\S+")
_PUNCTUATION = frozenset(string.punctuation) - {"_"}
# Printable ASCII and plain white space without '&' (entities): nothing to repair.
_PLAIN = re.compile(r"[ -%'-~\t\n]*")

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class CleanText:
    """A cleaned text.

    Attributes:
        text: what the tokenizer reads.
        spans: a half-open span of the original for each character of ``text``, starts never decreasing.
        approximate: true where repairs changed the text, so that some spans cover a stretch of characters.
    """

    text: str
    spans: tuple[Span, ...]
    approximate: bool


def clean_text(text: str, kind: str) -> CleanText:
    """Clean a text as open_clip's tokenizers do. ``kind`` is one of :data:`KINDS`."""
    fixed, spans = _repaired(text)
    characters = list(zip(fixed, spans, strict=True))
    if kind == "canonicalize":
        characters = [(" " if c == "_" else c, span) for c, span in characters if c not in _PUNCTUATION]
    if kind != "whitespace":
        lowered = "".join(c for c, _ in characters).lower()  # as a whole: a final sigma depends on its place
        wide = [span for c, span in characters for _ in c.lower()]
        characters = list(zip(lowered, wide, strict=True))
    joined: list[tuple[str, Span]] = []
    for character, span in characters:
        if not character.isspace():
            joined.append((character, span))
        elif joined and joined[-1][0] != " ":
            joined.append((" ", span))
    if joined and joined[-1][0] == " ":
        joined.pop()
    return CleanText("".join(c for c, _ in joined), tuple(span for _, span in joined), fixed != text)


def _repaired(text: str) -> tuple[str, list[Span]]:
    """Repair broken encodings and resolve entities; return the text and a span of the original per character."""
    own = [(place, place + 1) for place in range(len(text))]
    if _PLAIN.fullmatch(text) is not None:
        return text, own
    import ftfy

    fixed = html.unescape(html.unescape(ftfy.fix_text(text)))
    return (fixed, own) if fixed == text else (fixed, _aligned(text, fixed))


def _aligned(text: str, fixed: str) -> list[Span]:
    """Align two texts by words and runs of white space first, by characters inside what differs."""
    ours, theirs = ([match.group() for match in _PIECE.finditer(side)] for side in (text, fixed))
    ends = [0]
    for piece in ours:
        ends.append(ends[-1] + len(piece))
    spans: list[Span] = []
    for kind, i1, i2, j1, j2 in SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes():
        source, target = "".join(ours[i1:i2]), "".join(theirs[j1:j2])
        own = [(place, place + 1) for place in range(ends[i1], ends[i2])]
        if kind == "equal":
            spans += own
        elif target and not source:
            spans += [(ends[i1], ends[i1])] * len(target)
        elif target:
            spans += align_characters(source, own, target)
    low_start = low_end = 0
    for place, (start, end) in enumerate(spans):
        low_start, low_end = max(low_start, start), max(low_end, end, start)
        spans[place] = (low_start, low_end)
    return spans
