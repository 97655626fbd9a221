"""What a probe reads of examples: the teachers' vectors straight from their caches, without a student in between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from madkit.cache import TokenCache
from madkit.core.seeds import permutation
from madkit.mad.interaction import interaction_features
from madkit.mad.probe import joined_features
from madkit.mad.select import function_word_mask_of_spans
from madkit.tasks.example import Example

FeatureKind = Literal["global", "interaction"]


class ProbeReader:
    """Features of examples for a probe, read in pieces: nothing of the pool is kept.

    Args:
        caches: of one teacher, or of several; each may be of images or texts alone.
        image_ids: the images that will be asked for.
        permute_seed: control: every image is read as another one. With the images of a run's set in the set's order
            these are the ones that its other targets are taken from.
    """

    def __init__(
        self, caches: Sequence[TokenCache], image_ids: Sequence[str], *, permute_seed: int | None = None
    ) -> None:
        self._caches = list(caches)
        self._place = {image: place for place, image in enumerate(image_ids)}
        self._rows: list[NDArray[np.int64] | None] = []
        for cache in self._caches:
            rows = None
            if "images" in cache.parts:
                found = np.asarray(cache.images.rows(image_ids, absent="skip"), dtype=np.int64)
                if permute_seed is not None:
                    order = permutation(len(found), "permuted teacher", permute_seed)
                    found[order] = found[np.roll(order, 1)]  # a cycle through all places: nothing stays where it was
                rows = np.full(len(image_ids), -1, dtype=np.int64)
                rows[np.flatnonzero(cache.images.present(image_ids))] = found
            self._rows.append(rows)

    @property
    def kinds(self) -> tuple[FeatureKind, ...]:
        """What can be read: interaction needs one space for words and patches, and a cache that keeps both."""
        return ("global", "interaction") if any(map(_interacts, self._caches)) else ("global",)

    def known(self, examples: Sequence[Example]) -> Tensor:
        """[n] bool: examples whose image and texts all caches have values for."""
        there = np.ones(len(examples), dtype=bool)
        for cache, rows in zip(self._caches, self._rows, strict=True):
            if rows is not None:
                there &= rows[self._places(examples)] >= 0
            if "texts" in cache.parts and cache.texts.absent:
                there &= [bool(cache.texts.present(example.texts()).all()) for example in examples]
        return torch.from_numpy(there)

    def features(self, examples: Sequence[Example], kind: FeatureKind) -> Tensor:
        """Features [n, F], or [n, C, F] of examples with candidates."""
        return self._interaction(examples) if kind == "interaction" else self._global(examples)

    def _global(self, examples: Sequence[Example]) -> Tensor:
        """`joined_features`; a sequence's vector is the mean over its texts, as in `teacher_side.TeacherSide`."""
        texts = list(dict.fromkeys(text for example in examples for text in example.texts()))
        row = {text: place for place, text in enumerate(texts)}
        sequences = [[row[text] for text in sequence] for example in examples for sequence in _sequences(example)]
        most = max(len(sequence) for sequence in sequences)
        places = torch.tensor([sequence + [-1] * (most - len(sequence)) for sequence in sequences])
        there = (places >= 0).unsqueeze(-1)
        pairs = []
        for cache, rows in zip(self._caches, self._rows, strict=True):
            image, text = torch.zeros(len(examples), 0), torch.zeros(len(sequences), 0)
            if rows is not None:
                image = _tensor(cache.images.globals(rows[self._places(examples)]))
            if "texts" in cache.parts:
                found = _tensor(cache.texts.globals(cache.texts.rows(texts)))
                text = torch.where(there, found[places.clamp_min(0)], 0.0).sum(1) / there.sum(1)
            if examples[0].candidates:
                text = text.view(len(examples), len(examples[0].candidates), text.shape[-1])
            pairs.append((image, text))
        return joined_features(pairs)

    def _interaction(self, examples: Sequence[Example]) -> Tensor:
        """`mad.interaction` of the last text (a candidate, or all there is), and of all words with it."""
        parts = []
        for cache, rows in zip(self._caches, self._rows, strict=True):
            if rows is None or not _interacts(cache):
                continue
            read = _Words(cache, examples)
            wanted, where = np.unique(rows[self._places(examples)], return_inverse=True)
            patches, globals_ = _tensor(cache.images.tokens(wanted)), _tensor(cache.images.globals(wanted))
            found = []
            for example, place in zip(examples, where.tolist(), strict=True):
                for sequence in _sequences(example):
                    sentence = read.sentence(sequence[-1])
                    words = [read.words(sequence[-1]), torch.cat([read.words(text) for text in sequence])]
                    found.append(
                        torch.cat(
                            [interaction_features(one, sentence, patches[place], globals_[place]) for one in words]
                        )
                    )
            parts.append(torch.stack(found))
        whole = torch.cat(parts, -1)
        return whole.view(len(examples), -1, whole.shape[-1]) if examples[0].candidates else whole

    def _places(self, examples: Sequence[Example]) -> NDArray[np.int64]:
        return np.asarray([self._place[example.image.id] for example in examples], dtype=np.int64)


class _Words:
    """The word vectors and sentence vectors of the texts of some examples."""

    def __init__(self, cache: TokenCache, examples: Sequence[Example]) -> None:
        texts = list(dict.fromkeys(text for example in examples for text in example.texts()))
        rows = cache.texts.rows(texts)
        ragged = cache.texts.tokens(rows)
        tokens, spans, offsets = _tensor(ragged.tokens), np.asarray(ragged.spans), np.asarray(ragged.offsets)
        self._sentences: dict[str, Tensor] = dict(zip(texts, _tensor(cache.texts.globals(rows)), strict=True))
        self._words: dict[str, Tensor] = {}
        for place, text in enumerate(texts):
            first, last = int(offsets[place]), int(offsets[place + 1])
            content = ~function_word_mask_of_spans(text, [(int(a), int(b)) for a, b in spans[first:last]])
            words = tokens[first:last]
            if content.any():
                words = words[content]
            self._words[text] = words if len(words) else self._sentences[text].unsqueeze(0)

    def words(self, text: str) -> Tensor:
        """Content words [T, D]; all words of a text that has none, its own vector for one without words."""
        return self._words[text]

    def sentence(self, text: str) -> Tensor:
        """The text's own vector [D]."""
        return self._sentences[text]


def _interacts(cache: TokenCache) -> bool:
    return bool(cache.shared_space and set(cache.parts) == {"images", "texts"} and cache.images.has_tokens)


def _sequences(example: Example) -> list[list[str]]:
    """The texts of each of an example's sequences."""
    context = [segment.text for segment in example.context]
    return [[*context, candidate.text] for candidate in example.candidates] or [context]


def _tensor(values: NDArray[np.generic]) -> Tensor:
    made: Tensor = torch.from_numpy(np.ascontiguousarray(values)).float()
    return made
