"""Token lists with box tags, as VCR writes them, turned into readable text with character spans.

VCR stores text as a list that mixes tokens and lists of box indices: ["Does", [2], "feel", "comfortable", "?"]. The
text here reads "Does person feel comfortable?" and a `Tag` says that characters 5..11 mean box 2. A list with several
indices becomes "person and car", with **one Tag per index**: each name is linked to its own box, and the "and"
between them to none.
"""

from __future__ import annotations

from collections.abc import Sequence

from madkit.tasks.example import Segment, Tag

MASK = "[MASK]"
MASKED_TAG = 10_000  # a tag of this value or more stands for a masked one: text "[MASK]", no box

_OPENING = frozenset("([{$#“‘¿¡")  # nothing between these and the next token
_CLOSING = frozenset(".,;:!?)]}%…”’")  # nothing between the previous token and these
_JOINING = frozenset({"-", "/"})  # the tokenisers split "t-shirt" and "black/white" at these
_CLITICS = frozenset({"s", "t", "m", "d", "re", "ll", "ve"})  # what may follow a lone apostrophe: person 's
_QUOTES = {"``": '"', "''": '"'}  # Penn Treebank spelling of quotation marks


class TagError(ValueError):
    """A list of tokens that is not tagged text; the message is a clause without file and line."""


def segment_of(tokens: Sequence[object], objects: Sequence[str], *, keep_tags: bool = True) -> Segment:
    """The text of a mixed token/tag list, with one Tag per (unmasked) index.

    `objects` are the class names that the indices point into; a tag's surface is exactly that name. With
    `keep_tags=False` the text is the same but carries no tags (for data whose boxes are not at hand).

    Raises TagError for an index outside `objects`, a token that is neither string nor list of integers, and a list
    without any text.
    """
    text = ""
    tags: list[Tag] = []
    glue = True  # whether the next piece follows without a space
    open_quotes: set[str] = set()
    remaining = _count_quotes(tokens)
    for position, token in enumerate(tokens):
        if isinstance(token, str):
            piece = _QUOTES.get(token, token).strip()
            if not piece:
                continue
            before, after = _spacing(piece, tokens, position, open_quotes, remaining)
            text += piece if glue or before else " " + piece
            glue = after
        elif isinstance(token, list):
            if not token:
                raise TagError("a tag list is empty")
            for number, index in enumerate(token):
                if not isinstance(index, int) or isinstance(index, bool) or index < 0:
                    raise TagError(f"a tag must be a box index from 0, found {index!r}")
                if number:
                    text += " and"
                    glue = False
                if not glue:
                    text += " "
                glue = False
                if index >= MASKED_TAG:
                    text += MASK
                    continue
                if index >= len(objects):
                    raise TagError(f"tag {index} is beyond the list of {len(objects)} objects")
                start = len(text)
                text += objects[index]
                if keep_tags:
                    tags.append(Tag(start, len(text), (index,)))
        else:
            raise TagError(f"a token must be a string or a list of box indices, found {token!r}")
    if not text:
        raise TagError("there is no text")
    return Segment(text, tuple(tags))


def _count_quotes(tokens: Sequence[object]) -> dict[str, int]:
    counts = {'"': 0, "'": 0}
    for token in tokens:
        if isinstance(token, str):
            mark = _QUOTES.get(token, token)
            if mark in counts:
                counts[mark] += 1
    return counts


def _spacing(
    piece: str, tokens: Sequence[object], position: int, open_quotes: set[str], remaining: dict[str, int]
) -> tuple[bool, bool]:
    """(no space before, no space after) a piece."""
    if piece in remaining:
        remaining[piece] -= 1
        if piece == "'" and _follows_clitic(tokens, position):
            return True, True
        if piece in open_quotes:
            open_quotes.discard(piece)
            return True, False
        # A straight mark opens a quotation only when another one is left to close it.
        if remaining[piece]:
            open_quotes.add(piece)
            return False, True
        return piece == "'", False  # "the boys' ball"
    if piece in _JOINING:
        inside = 0 < position < len(tokens) - 1
        return inside, inside
    if piece in _OPENING:
        return False, True
    lower = piece.lower()
    closing = (
        all(character in _CLOSING for character in piece)
        or lower == "n't"
        or (lower[0] in "'’" and lower[1:] in _CLITICS)
    )
    return closing, False


def _follows_clitic(tokens: Sequence[object], position: int) -> bool:
    following = tokens[position + 1] if position + 1 < len(tokens) else None
    return position > 0 and isinstance(following, str) and following.lower() in _CLITICS
