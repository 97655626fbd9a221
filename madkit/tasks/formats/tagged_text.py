"""Token lists with box tags, as VCR writes them, turned into readable text with character spans.

VCR stores text as a list that mixes tokens and lists of box indices: ["Does", [2], "feel", "comfortable", "?"]. The
text here reads "Does person feel comfortable?" and a `Tag` says that characters 5..11 mean box 2. A list with several
indices becomes "person and car", with **one Tag per index**: each name is linked to its own box, and the "and"
between them to none.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from madkit.tasks.example import Segment, Tag

MASK = "[MASK]"
MASKED_TAG = 10_000  # a tag of this value or more stands for a masked one: text "[MASK]", no box

_OPENING = frozenset("([{$#“‘¿¡")  # nothing between these and the next token
_CLOSING = frozenset(".,;:!?)]}%…”’")  # nothing between the previous token and these
_JOINING = frozenset({"-", "/"})  # the tokenisers split "t-shirt" and "black/white" at these
_CLITICS = frozenset({"s", "t", "m", "d", "re", "ll", "ve"})  # what may follow a lone apostrophe: person 's
_QUOTES = {"``": '"', "''": '"', '"': '"', "'": "'"}  # how marks are spelled, with Penn Treebank's spelling


class TagError(ValueError):
    """A list of tokens that is not tagged text; the message is a clause without file and line."""


def segment_of(tokens: Sequence[object], objects: Sequence[str], *, keep_tags: bool = True) -> Segment:
    """The text of a mixed token/tag list, with one Tag per (unmasked) index.

    `objects` are the class names that the indices point into; a tag's surface is exactly that name. With
    `keep_tags=False` the text is the same but carries no tags (for data whose boxes are not at hand).

    Raises TagError for an index outside `objects`, a token that is neither string nor list of integers, and a list
    without any text.
    """
    parts: list[str] = []
    length = 0
    tags: list[Tag] = []
    glue = True  # whether the next piece follows without a space
    marks: _Marks | None = None
    known = len(objects)
    for position, token in enumerate(tokens):
        if isinstance(token, str):
            piece, before, after, in_context = _manner(token)
            if not piece:
                continue
            if in_context:
                marks = marks or _Marks(tokens)
                before, after = marks.spacing(piece, position)
            if not (glue or before):
                piece = " " + piece
            parts.append(piece)
            length += len(piece)
            glue = after
        elif isinstance(token, list):
            if not token:
                raise TagError("a tag list is empty")
            for number, index in enumerate(token):
                # The usual case first: a real data set has millions of tags.
                name = objects[index] if type(index) is int and 0 <= index < known else _name(index, objects)
                lead = " and " if number else "" if glue else " "
                glue = False
                parts += (lead, name)
                start = length + len(lead)
                length = start + len(name)
                if keep_tags and index < MASKED_TAG:
                    tags.append(Tag(start, length, (index,)))
        else:
            raise TagError(f"a token must be a string or a list of box indices, found {token!r}")
    if not parts:
        raise TagError("there is no text")
    return Segment("".join(parts), tuple(tags))


def _name(index: object, objects: Sequence[str]) -> str:
    if not isinstance(index, int) or isinstance(index, bool) or index < 0:
        raise TagError(f"a tag must be a box index from 0, found {index!r}")
    if index >= MASKED_TAG:
        return MASK
    if index >= len(objects):
        raise TagError(f"tag {index} is beyond the list of {len(objects)} objects")
    return objects[index]


@lru_cache(maxsize=1 << 16)
def _manner(token: str) -> tuple[str, bool, bool, bool]:
    """(text, no space before, no space after, whether the spacing depends on the tokens around) of a token."""
    piece = _QUOTES.get(token, token).strip()
    if piece in _QUOTES or piece in _JOINING:
        return piece, False, False, True
    lower = piece.lower()
    closing = bool(piece) and (
        all(character in _CLOSING for character in piece)
        or lower == "n't"
        or (lower[0] in "'’" and lower[1:] in _CLITICS)
    )
    return piece, closing, piece in _OPENING, False


class _Marks:
    """The spacing of quotation marks, apostrophes, hyphens and slashes, which depends on their neighbours."""

    def __init__(self, tokens: Sequence[object]) -> None:
        self._tokens = tokens
        self._left = {'"': 0, "'": 0}  # how many of each mark are still to come
        self._open: set[str] = set()
        for token in tokens:
            if isinstance(token, str) and (mark := _manner(token)[0]) in self._left:
                self._left[mark] += 1

    def spacing(self, piece: str, position: int) -> tuple[bool, bool]:
        """(no space before, no space after) the piece at a position; called once for each, in order."""
        if piece in _JOINING:
            inside = 0 < position < len(self._tokens) - 1
            return inside, inside
        self._left[piece] -= 1
        if piece == "'" and self._before_clitic(position):
            return True, True
        if piece in self._open:
            self._open.discard(piece)
            return True, False
        # A straight mark opens a quotation only when another one is left to close it.
        if self._left[piece]:
            self._open.add(piece)
            return False, True
        return piece == "'", False  # "the boys' ball"

    def _before_clitic(self, position: int) -> bool:
        following = self._tokens[position + 1] if position + 1 < len(self._tokens) else None
        return position > 0 and isinstance(following, str) and following.lower() in _CLITICS
