"""Every word of the pictograph world, for the vocabularies of the embedded encoders.

Having a word in the vocabulary is not knowing it: as with BERT, the words of a new domain can be read, and what
they look like has to be learnt.
"""

from __future__ import annotations

import re

from .captions import NOUNS, TASK_WORDS
from .concepts import COLOURS, categories, concepts, plural
from .wording import PLACES

_WORD = re.compile(r"\w+|[^\w\s]")


def words_of(text: str) -> list[str]:
    """Lower-case words and single punctuation marks."""
    return _WORD.findall(text.lower())


def world_words() -> list[str]:
    """All words, sorted."""
    texts = [TASK_WORDS, *NOUNS, *PLACES, "a an the that in one of and , . ? !", *(c.name for c in COLOURS)]
    for category in categories():
        texts += [category, plural(category)]
    for concept in concepts():
        texts += [concept.name, *concept.facts]
    return sorted({word for text in texts for word in words_of(text)})
