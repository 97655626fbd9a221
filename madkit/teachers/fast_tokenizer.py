"""Span tokenizer over the fast tokenizers of the ``transformers`` library (WordPiece, byte-level BPE, Unigram).

The compiled library tracks every character through normalisation, so its offsets count characters of the original
text. Two things differ between families and are made equal here: some count the space before a word to the word's first
piece, which is cut off unless a piece is nothing but space, and some normalisers reorder combining marks, after which
offsets may step back; starts and ends are kept from decreasing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

from madkit.core.errors import ConfigError
from madkit.core.files import digest_of
from madkit.teachers.interface import TokenizedText

Span = tuple[int, int]


class FastTokenizer:
    """A tokenizer with the special tokens that its own post-processor puts around a text.

    Args:
        name: the teacher, for error messages.
        backend: the compiled tokenizer; it is copied.
        pad_id: id for padding.

    Attributes:
        prefix: ids of the special tokens before every text.
        suffix: ids of those after it.
        digest: sixteen hex digits over everything that decides ids and spans.
    """

    def __init__(self, name: str, backend: Tokenizer, *, pad_id: int) -> None:
        self._tokenizer = Tokenizer.from_str(backend.to_str())
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.pad_id = pad_id
        bare = self._tokenizer.encode("a", add_special_tokens=False).ids
        dressed = self._tokenizer.encode("a").ids
        place = next((i for i in range(len(dressed)) if dressed[i : i + len(bare)] == bare), None)
        if not bare or place is None:
            raise ConfigError(f"The tokenizer of '{name}' changes a text when it adds special tokens.")
        self.prefix = tuple(int(number) for number in dressed[:place])
        self.suffix = tuple(int(number) for number in dressed[place + len(bare) :])
        self.digest = digest_of(["fast", 1, self._tokenizer.to_str(), self.prefix, self.suffix, pad_id])

    @property
    def specials(self) -> int:
        """How many special tokens every text gets."""
        return len(self.prefix) + len(self.suffix)

    def tokenize(self, texts: Sequence[str]) -> list[TokenizedText]:
        """Tokenize without special tokens."""
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [
            TokenizedText(tuple(encoding.ids), tidy_spans(text, encoding.offsets))
            for text, encoding in zip(texts, encodings, strict=True)
        ]


def tidy_spans(text: str, offsets: Sequence[Any]) -> tuple[Span, ...]:
    """Return half-open spans inside ``text`` without white space at their edges, starts and ends never decreasing."""
    spans: list[Span] = []
    low_start = low_end = 0
    for start, end in offsets:
        start, end = max(0, min(start, len(text))), max(0, min(end, len(text)))
        if end > start and not text[start:end].isspace():
            while text[start].isspace():
                start += 1
            while text[end - 1].isspace():
                end -= 1
        low_start = max(low_start, start)
        low_end = max(low_end, end, low_start)
        spans.append((low_start, low_end))
    return tuple(spans)
