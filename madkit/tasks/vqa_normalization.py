"""The official VQA evaluation's normalisation of answers, in its two steps.

It keeps the official one's oddities, because numbers are compared with published ones and vocabularies with published
answer lists. Official code: https://github.com/GT-Vision-Lab/VQA, `vqaEval.py` (processPunctuation, then
processDigitArticle), here from its description.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

# Period, apostrophe, colon, $, %, # and & are not among them.
_SIGNS = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA_DIGIT = re.compile(r"[0-9],[0-9]")
# The official expression has a mistyped look-behind that is always true: what is left is "no digit follows".
_LOOSE_PERIOD = re.compile(r"\.(?![0-9])")
_MAX_PERIODS = 32  # the official call passes a flag (value 32) where the number of replacements stands

_NUMBERS = {"none": "0"} | {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
}
_ARTICLES = frozenset({"a", "an", "the"})

_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's I'd've I'm I've isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _misspellings() -> dict[str, str]:
    """Each contraction with one of its apostrophes left out -> the contraction, plus the table's three exceptions."""
    table: dict[str, str] = {}
    for word in _CONTRACTED.split():
        for position, character in enumerate(word):
            if character == "'":
                table[word[:position] + word[position + 1 :]] = word
    return table | {"let's": "let's", "she's": "she's", "somebody'd": "somebodyd"}


CONTRACTIONS: Mapping[str, str] = _misspellings()


def plain(text: str) -> str:
    """`text` on one line: line breaks and tabs become spaces, none is left at either end."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def strip_punctuation(text: str) -> str:
    """The first step, processPunctuation: every sign goes or becomes a space, loose periods go."""
    thousands = _DIGIT_COMMA_DIGIT.search(text) is not None
    result = text
    for sign in _SIGNS:
        if sign in text:
            loose = thousands or f"{sign} " in text or f" {sign}" in text
            result = result.replace(sign, "" if loose else " ")
    return _LOOSE_PERIOD.sub("", result, count=_MAX_PERIODS) if "." in result else result


def normalise_words(text: str) -> str:
    """The second step, processDigitArticle: lower case, digits for number words, no articles, apostrophes restored."""
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


@lru_cache(maxsize=1 << 18)  # there are some 200,000 distinct answers in VQA v2, most of them given again and again
def vocabulary_form(text: str) -> str:
    """An annotator's answer as answer vocabularies hold it: both steps, then commas deleted; may be ""."""
    return normalise_words(strip_punctuation(text)).replace(",", "")
