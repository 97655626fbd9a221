"""The scorer's vocabulary: the words of the training split, and the object classes that its tags name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from madkit.core.files import read_json, write_text_atomic

PAD, CLS, SEP, MASK, MASKED_TAG, UNKNOWN = range(6)
_SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[MASK]", "[MASKED TAG]", "[UNK]")
_TAG = "tag "  # no token of VCR holds a space, so a tag never meets a word

Flat = list[str | int]


def flatten(tokens: Sequence[str | list[int]]) -> Flat:
    """Words and tags one after another; each tag of a list counts by itself."""
    flat: Flat = []
    for token in tokens:
        if isinstance(token, str):
            flat.append(token)
        else:
            flat.extend(token)
    return flat


class Vocabulary:
    """Words (in lower case) and tag classes as numbers; grows while the training split is read, then stands.

    Args:
        entries: what it holds from the start (a stored vocabulary); without them it is empty and grows.
    """

    def __init__(self, entries: Sequence[str] | None = None) -> None:
        self._numbers = {entry: number for number, entry in enumerate(entries or _SPECIAL)}
        self._grows = entries is None

    def __len__(self) -> int:
        return len(self._numbers)

    def word(self, word: str) -> int:
        """The number of a word; "[MASK]" is the mask, as in suites that were masked before."""
        return MASK if word == "[MASK]" else self._number(word.lower())

    def tag(self, name: str) -> int:
        """The number of a tag of an object class."""
        return self._number(_TAG + name)

    def _number(self, entry: str) -> int:
        if self._grows:
            return self._numbers.setdefault(entry, len(self._numbers))
        return self._numbers.get(entry, UNKNOWN)

    def settle(self, ids: NDArray[np.int32], *, at_least: int, at_most: int) -> NDArray[np.int32]:
        """Keep the entries that occur often enough in `ids`, the most frequent first; `ids` in the new numbers.

        Rare entries become the unknown word. Afterwards the vocabulary does not grow.
        """
        counts = np.bincount(ids, minlength=len(self))
        entries = list(self._numbers)
        first = len(_SPECIAL)
        kept = [n for n in range(first, len(entries)) if counts[n] >= at_least]
        kept = sorted(kept, key=lambda n: (-counts[n], entries[n]))[: at_most - first]
        mapping = np.full(len(entries), UNKNOWN, dtype=np.int32)
        mapping[:first] = np.arange(first)
        mapping[kept] = np.arange(first, first + len(kept))
        self._numbers = {entry: n for n, entry in enumerate([*_SPECIAL, *(entries[n] for n in kept)])}
        self._grows = False
        return mapping[ids]

    def write(self, path: Path) -> None:
        """Write the entries as a JSON list."""
        write_text_atomic(path, json.dumps(list(self._numbers), ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> Vocabulary:
        """The vocabulary that `write` wrote."""
        return cls([str(entry) for entry in read_json(path)])
