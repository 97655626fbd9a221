r"""Words that name boxes, inside plain text: "Why does [the man](1) look at [the dog](2)?".

What stands in square brackets stays in the text, and the numbers behind it are boxes, counted from 1 as pictures show
them (so that a 0 is noticed). Several boxes are "[they](1,2)". Empty brackets take the names of the boxes: with objects
person and dog "[](1,2)" reads "person and dog", each name linked to its own box. A backslash before a link makes it
ordinary text, "\[the man](1)"; two backslashes are one backslash before a link. Anywhere else brackets and backslashes
mean nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from madkit.tasks.example import Segment, Tag
from madkit.tasks.formats.tagged_text import TagError

_LINK = re.compile(r"(?<!\\)(\\*)(\[([^\[\]]*)\]\(\s*([0-9]+(?:\s*,\s*[0-9]+)*)\s*\))")
_MOST_DIGITS = 6  # no image has a million boxes


def read_links(text: str, boxes: int, objects: Sequence[str] = ()) -> Segment:
    """The text without its markup, with a Tag for every link.

    Args:
        text: the marked-up text.
        boxes: how many boxes the image has.
        objects: their names, which empty brackets take.

    Raises TagError for a link to a box that is not there, and for empty brackets where the boxes have no names.
    """
    parts: list[str] = []
    tags: list[Tag] = []
    length = end = 0

    def add(piece: str, linked: tuple[int, ...] = ()) -> None:
        nonlocal length
        parts.append(piece)
        if linked:
            tags.append(Tag(length, length + len(piece), linked))
        length += len(piece)

    for match in _LINK.finditer(text):
        slashes = len(match[1])
        add(text[end : match.start()] + "\\" * (slashes // 2))
        end = match.end()
        if slashes % 2:
            add(match[2])
            continue
        linked = tuple(dict.fromkeys(_box(number.strip(), boxes, match[2]) for number in match[4].split(",")))
        if match[3].strip():
            add(match[3], linked)
            continue
        if not objects:
            raise TagError(f"{match[2]} has no words, and there are no 'objects' to take them from")
        for place, box in enumerate(linked):
            if place:
                add(" and ")
            add(objects[box], (box,))
    add(text[end:])
    return Segment("".join(parts), tuple(tags))


def _box(digits: str, boxes: int, link: str) -> int:
    if len(digits) > _MOST_DIGITS or not 1 <= int(digits) <= boxes:
        have = f"boxes 1 to {boxes}" if boxes else "no boxes"
        raise TagError(f"the link {link} names a box that is not there, as the line has {have}")
    return int(digits) - 1


def write_links(segment: Segment) -> str:
    """The marked-up text that `read_links` reads back as this segment.

    Raises ValueError for tags that overlap, name no box, or whose words are blank or hold square brackets.
    """
    parts: list[str] = []
    end = 0
    for tag in sorted(segment.tags, key=lambda tag: tag.start):
        words = segment.text[tag.start : tag.end]
        if tag.start < end or not tag.boxes or not words.strip() or "[" in words or "]" in words:
            raise ValueError(f"{tag} of {segment.text!r} cannot be written as a link")
        plain = _escaped(segment.text[end : tag.start])
        slashes = len(plain) - len(plain.rstrip("\\"))
        parts.append(plain + "\\" * slashes + f"[{words}]({','.join(str(box + 1) for box in tag.boxes)})")
        end = tag.end
    parts.append(_escaped(segment.text[end:]))
    return "".join(parts)


def _escaped(text: str) -> str:
    return _LINK.sub(lambda match: "\\" * (2 * len(match[1]) + 1) + match[2], text)
