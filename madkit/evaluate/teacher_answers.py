"""What a teacher answers to a suite, from the global vectors of its cache: no teacher runs.

A teacher of two encoders answers no question by itself. It is asked in two ways, those that distillation takes its
confidence from (docs/method.md): `zero-shot`, the candidate nearest to the image in a space that both share, and
`probe`, the cross-fitted head on its vectors, fitted on the run's own training labels and on nothing else. Images of
the training subset that stand in a suite, too, are answered by the one head that has not seen them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from madkit.core.errors import DataError
from madkit.core.seeds import derive_seed
from madkit.evaluate.metrics import prediction_row
from madkit.mad.probe import CrossFitProbe, fit_cross_probe, joined_features
from madkit.tasks.answer_vocabulary import AnswerMatch, positions_of, soft_targets

if TYPE_CHECKING:
    from madkit.cache import TokenCache
    from madkit.tasks.example import Example
    from madkit.tasks.spec import TaskSpec

Rows = list[dict[str, Any]]
ZERO_SHOT, PROBE = "zero-shot", "probe"
METHODS = (ZERO_SHOT, PROBE)
_CHUNK = 1024


class TeacherAnswers:
    """The answers of one teacher, or of several together, after a training subset.

    Args:
        caches: of the teachers; each may be of images or of texts alone.
        labelled: the run's training examples.
        spec: their task.
        outputs: VQA's answers, as the run's student has them.
        match: how VQA's annotators' answers are matched with these.
        folds: of the cross-fitting.
        seed: of the run.
    """

    def __init__(
        self,
        caches: Sequence[TokenCache],
        labelled: Sequence[Example],
        spec: TaskSpec,
        *,
        outputs: Sequence[str] = (),
        match: AnswerMatch = "normalized",
        folds: int = 5,
        seed: int = 0,
    ) -> None:
        self._caches = list(caches)
        self._labelled = labelled
        self._spec = spec
        self._outputs = list(outputs)
        self._match = match
        self._folds = folds
        self._seed = seed

    def rows(self, method: str, examples: Sequence[Example]) -> Rows | None:
        """Answers to those examples whose image and texts have vectors (see `metrics.prediction_row`).

        None where the method does not apply: `zero-shot` needs candidates and a teacher with one space for images and
        texts. Raises CacheError where a cache was made without these examples, DataError where the training subset is
        too small for a probe.
        """
        if method == ZERO_SHOT and not (self._shared and self._spec.kind == "multiple-choice"):
            return None
        found: Rows = []
        for chunk in self._known(examples):
            shares = self._zero_shot(chunk) if method == ZERO_SHOT else self._probabilities(chunk)
            found += [self._row(example, values) for example, values in zip(chunk, shares, strict=True)]
        return found

    @property
    def _shared(self) -> list[TokenCache]:
        return [cache for cache in self._caches if cache.shared_space and set(cache.parts) == {"images", "texts"}]

    def _row(self, example: Example, shares: Tensor) -> dict[str, Any]:
        best = int(shares.argmax())
        if self._spec.kind == "vqa":
            return prediction_row(example, [float(shares[best])], self._outputs[best])
        return prediction_row(example, shares.tolist(), best)

    def _known(self, examples: Sequence[Example]) -> Iterator[list[Example]]:
        """The examples that all caches have vectors for, some at a time, alike in their number of candidates."""
        for start in range(0, len(examples), _CHUNK):
            chunk = [examples[place] for place in range(start, min(start + _CHUNK, len(examples)))]
            there = np.ones(len(chunk), dtype=bool)
            for cache in self._caches:
                if "images" in cache.parts:
                    there &= cache.images.present([example.image.id for example in chunk])
                if "texts" in cache.parts:
                    there &= [bool(cache.texts.present(example.texts()).all()) for example in chunk]
            widths: dict[int, list[Example]] = {}
            for example, known in zip(chunk, there, strict=True):
                if known:
                    widths.setdefault(len(example.candidates), []).append(example)
            yield from widths.values()

    def _zero_shot(self, examples: Sequence[Example]) -> Tensor:
        """[n, C]: softmax over the candidates' cosines with the image; the mean over teachers that can."""
        found = []
        for cache in self._shared:
            image = F.normalize(_images(cache, examples), dim=-1)
            texts = [candidate.text for example in examples for candidate in example.candidates]
            candidate = F.normalize(_vectors(cache, texts), dim=-1).view(len(examples), -1, image.shape[-1])
            found.append((cache.logit_scale * (candidate @ image.unsqueeze(-1)).squeeze(-1)).softmax(-1))
        return torch.stack(found).mean(0)

    def _probabilities(self, examples: Sequence[Example]) -> Tensor:
        return self._probe.probabilities(self._features(examples), [example.image.id for example in examples])

    @cached_property
    def _probe(self) -> CrossFitProbe:
        known = [example for chunk in self._known(self._labelled) for example in chunk]
        if not known:
            raise DataError("The teacher's cache has no values for any training example of the run.")
        features = torch.cat([self._features(known[at : at + _CHUNK]) for at in range(0, len(known), _CHUNK)])
        return fit_cross_probe(
            features,
            self._targets(known),
            groups=[example.image.id for example in known],
            n_classes=len(self._spec.labels) or None,
            folds=self._folds,
            seed=derive_seed(self._seed, "probe"),  # the folds of the run's confidence
        )

    def _targets(self, examples: Sequence[Example]) -> Tensor:
        """[n] labels, or [n, K] soft scores of VQA's answers."""
        if self._spec.kind != "vqa":
            return torch.tensor([-1 if example.label is None else example.label for example in examples])
        places = positions_of(self._outputs)
        made = torch.zeros(len(examples), len(self._outputs))
        for row, example in enumerate(examples):
            for place, share in soft_targets(example, places, match=self._match).items():
                made[row, place] = share
        return made

    def _features(self, examples: Sequence[Example]) -> Tensor:
        """`mad.probe.joined_features` of [n, F] or [n, C, F]; a sequence's vector is the mean over its texts."""
        choices = len(examples[0].candidates)
        sequences = [sequence for example in examples for sequence in _sequences(example)]
        owner = torch.tensor([place for place, sequence in enumerate(sequences) for _ in sequence])
        counts = torch.bincount(owner).unsqueeze(-1)
        pairs = []
        for cache in self._caches:
            image, text = torch.zeros(len(examples), 0), torch.zeros(len(sequences), 0)
            if "images" in cache.parts:
                image = _images(cache, examples)
            if "texts" in cache.parts:
                found = _vectors(cache, [text for sequence in sequences for text in sequence])
                text = torch.zeros(len(sequences), found.shape[-1]).index_add_(0, owner, found) / counts
            pairs.append((image, text.view(len(examples), choices, text.shape[-1]) if choices else text))
        return joined_features(pairs)


def _sequences(example: Example) -> list[list[str]]:
    """The texts of each sequence that a student reads of an example: one for each candidate, or one."""
    context = [segment.text for segment in example.context]
    return [[*context, candidate.text] for candidate in example.candidates] or [context]


def _images(cache: TokenCache, examples: Sequence[Example]) -> Tensor:
    rows = cache.images.rows([example.image.id for example in examples])
    return torch.from_numpy(np.ascontiguousarray(cache.images.globals(rows))).float()


def _vectors(cache: TokenCache, texts: Sequence[str]) -> Tensor:
    """[n, D] of texts, each read once."""
    distinct: Mapping[str, int] = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    found = torch.from_numpy(np.ascontiguousarray(cache.texts.globals(cache.texts.rows(list(distinct))))).float()
    return found[torch.tensor([distinct[text] for text in texts])]
