"""Which characters of a text each character of its cleaned form came from.

CLIP cleans text before it tokenizes: mojibake and odd quotes are repaired, HTML entities resolved, white space joined,
case lowered. Lowering and white space are followed exactly. For the rest, words are matched first, so that whatever
cannot be followed stays inside the words it happened in; inside a changed word characters are matched, and what was
removed belongs to its left neighbour.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

_WORD = re.compile(r"\S+")


@dataclass(frozen=True, slots=True)
class CleanAlignment:
    """Where a cleaned text came from.

    Attributes:
        spans: for each character of the cleaned text a half-open span of the original, starts and ends never
            decreasing. A space between words has the empty span before the next word.
        approximate: true where more than case and white space changed.
    """

    spans: list[tuple[int, int]]
    approximate: bool


@dataclass(frozen=True, slots=True)
class _Word:
    text: str  # lower-cased
    spans: list[tuple[int, int]]  # per character of text, in the original


def align_clean_text(original: str, cleaned: str) -> CleanAlignment:
    """Align ``cleaned``, a lower-cased text whose words are joined by single spaces, with what it was made from."""
    sources = _source_words(original)
    targets = cleaned.split(" ") if cleaned else []
    if [word.text for word in sources] == targets:
        return CleanAlignment(_joined([word.spans for word in sources]), approximate=False)
    matcher = SequenceMatcher(None, [word.text for word in sources], targets, autojunk=False)
    words: list[list[tuple[int, int]]] = []
    for kind, i1, i2, j1, j2 in matcher.get_opcodes():
        if kind == "equal":
            words.extend(word.spans for word in sources[i1:i2])
        elif j1 < j2:
            words.extend(_block(sources, i1, i2, targets[j1:j2]))
    return CleanAlignment(_joined(words), approximate=True)


def _source_words(original: str) -> list[_Word]:
    words = []
    # str.split's notion of white space, which cleaning uses, is wider than that of the pattern \S
    for match in _WORD.finditer("".join(" " if character.isspace() else character for character in original)):
        lowered = match.group().lower()
        spans = [
            (position, position + 1)
            for position, character in enumerate(match.group(), start=match.start())
            for _ in character.lower()
        ]
        words.append(_Word(lowered, spans))
    return words


def _block(sources: Sequence[_Word], i1: int, i2: int, targets: Sequence[str]) -> list[list[tuple[int, int]]]:
    """Align a stretch of original words with the cleaned words that replaced it."""
    block = sources[i1:i2]
    if not block:  # words out of nothing: they sit, empty, where the previous word ends
        place = sources[i1 - 1].spans[-1][1] if i1 else 0
        return [[(place, place)] * len(target) for target in targets]
    if len(block) == len(targets):
        return [align_characters(word.text, word.spans, target) for word, target in zip(block, targets, strict=True)]
    text = "".join(word.text for word in block)
    spans = [span for word in block for span in word.spans]
    aligned = align_characters(text, spans, "".join(targets))
    result, first = [], 0
    for target in targets:
        result.append(aligned[first : first + len(target)])
        first += len(target)
    return result


def align_characters(source: str, spans: Sequence[tuple[int, int]], target: str) -> list[tuple[int, int]]:
    """Align the characters of a changed word; every character of ``source`` ends up in the span of some target."""
    if source == target:
        return list(spans)
    result: list[tuple[int, int]] = []
    pending: int | None = None  # start of removed characters that no target to the left could take
    for kind, i1, i2, j1, j2 in SequenceMatcher(None, source, target, autojunk=False).get_opcodes():
        if kind == "delete":
            if result:
                result[-1] = (result[-1][0], spans[i2 - 1][1])
            else:
                pending = spans[i1][0]
            continue
        if kind == "equal":
            found = list(spans[i1:i2])
        elif kind == "replace":
            found = [(spans[i1][0], spans[i2 - 1][1])] * (j2 - j1)
        else:
            place = spans[i1 - 1] if i1 else spans[0]
            found = [place] * (j2 - j1)
        if pending is not None:
            found[0] = (pending, found[0][1])
            pending = None
        result.extend(found)
    return result


def _joined(words: Sequence[Sequence[tuple[int, int]]]) -> list[tuple[int, int]]:
    """Put words together with the single spaces of the cleaned text between them, keeping the order monotone."""
    result: list[tuple[int, int]] = []
    low_start = low_end = 0
    for number, word in enumerate(words):
        if number:
            place = max(low_start, word[0][0] if word else low_end)
            result.append((place, place))
        for start, end in word:
            low_start, low_end = max(low_start, start), max(low_end, end)
            result.append((low_start, max(low_end, low_start)))
    return result
