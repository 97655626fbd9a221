"""What a probe on the teacher's embeddings answers to the unlabelled pool, and the loss that teaches it.

The probe (`mad/probe.py`) is fitted on the labelled subset alone, by cross-fitting over images: an image of the pool
that stands in the subset, too, is answered by the one head that was fitted without it, any other by the mean of all
heads. It reads the teacher's global vectors of an image and its texts, straight from the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from madkit.cache import TokenCache
from madkit.core.errors import DataError
from madkit.distill.pool import with_answer
from madkit.distill.pool_config import SoftLabelConfig
from madkit.distill.soft_targets import SoftTargets
from madkit.distill.teacher_bank import image_bank
from madkit.mad.probe import CrossFitProbe, fit_cross_probe, joined_features
from madkit.students.heads import ChoiceLoss, ClassLoss, HeadKind, VqaLoss, task_loss
from madkit.tasks.example import Example, Segment

_CHUNK = 512
_DENSE = 64  # outputs up to which all probabilities of an example are kept


@dataclass(frozen=True, slots=True)
class ProbeAnswers:
    """What the probe says of m examples.

    Attributes:
        shares: probabilities [m, K] over classes or candidates, or the best answers' of VQA; indexed alike.
        confidence: [m] probability of its best guess.
        facts: how the probe does on the labelled examples, out of fold, for the manifest.
    """

    shares: Tensor | SoftTargets
    confidence: Tensor
    facts: dict[str, Any]


class GlobalVectors:
    """The teachers' global vectors of examples, without a student in between.

    Args:
        caches: of one teacher, or of several; each may be of images or texts alone.
        image_ids: the images that will be asked for. With the images of a run's set in the set's order, a permutation
            is the one that its other targets have.
        permute_seed: control: every image is given the vector of another one.
        threads: readers.
    """

    def __init__(
        self,
        caches: Sequence[TokenCache],
        image_ids: Sequence[str],
        *,
        permute_seed: int | None = None,
        threads: int = 2,
    ) -> None:
        self._caches = list(caches)
        nowhere = torch.zeros(len(image_ids), 0, 4)
        self._row = {image: row for row, image in enumerate(image_ids)}
        self._known = torch.ones(len(image_ids), dtype=torch.bool)
        self._images: list[Any] = []  # looked up by rows
        for cache in self._caches:
            vectors: Any = torch.zeros(len(image_ids), 0)
            if "images" in cache.parts:
                bank = image_bank(cache, image_ids, nowhere, threads=threads, permute_seed=permute_seed, tokens=False)
                vectors, self._known = bank.globals, self._known & bank.present
            self._images.append(vectors)

    def known(self, examples: Sequence[Example]) -> Tensor:
        """[n] bool: examples whose image and texts all caches have values for."""
        stores = [cache.texts for cache in self._caches if "texts" in cache.parts and cache.texts.absent]
        there = self._known[self._rows(examples)]
        if not stores:
            return there
        read = [all(bool(store.present(example.texts()).all()) for store in stores) for example in examples]
        return there & torch.tensor(read, dtype=torch.bool)

    def features(self, examples: Sequence[Example]) -> Tensor:
        """The probe's features [n, F], or [n, C, F] of examples with candidates.

        The vector of a sequence is the mean over its texts, as in `objective.TeacherSide`.
        """
        texts = list(dict.fromkeys(text for example in examples for text in example.texts()))
        row = {text: place for place, text in enumerate(texts)}
        sequences = [
            [*(row[segment.text] for segment in example.context), *(row[segment.text] for segment in tail)]
            for example in examples
            for tail in _tails(example)
        ]
        most = max(len(sequence) for sequence in sequences)
        places = torch.tensor([sequence + [-1] * (most - len(sequence)) for sequence in sequences])
        there = (places >= 0).unsqueeze(-1)
        images = self._rows(examples)
        pairs = []
        for cache, vectors in zip(self._caches, self._images, strict=True):
            text = torch.zeros(len(sequences), 0)
            if "texts" in cache.parts:
                found = np.ascontiguousarray(cache.texts.globals(cache.texts.rows(texts)))
                text = torch.where(there, torch.from_numpy(found).float()[places.clamp_min(0)], 0.0)
                text = text.sum(1) / there.sum(1)
            if len(sequences) > len(examples):
                text = text.view(len(examples), len(sequences) // len(examples), text.shape[-1])
            pairs.append((vectors[images], text))
        return joined_features(pairs)

    def _rows(self, examples: Sequence[Example]) -> Tensor:
        return torch.tensor([self._row[example.image.id] for example in examples])


def _tails(example: Example) -> list[tuple[Segment, ...]]:
    """What follows the context in each of an example's sequences."""
    return [(candidate,) for candidate in example.candidates] or [()]


def fit_on_labelled(
    vectors: GlobalVectors,
    labelled: Sequence[Example],
    target: Tensor | SoftTargets,
    config: SoftLabelConfig,
    *,
    outputs: int | None,
    seed: int,
) -> tuple[CrossFitProbe, dict[str, Any]]:
    """The probe of a labelled subset, and how it does on it out of fold.

    Args:
        vectors: of the examples' images and texts.
        labelled: the subset.
        target: its labels [n], or soft scores.
        config: which probe, how many folds.
        outputs: K of classes; None for candidates and answers, whose number the data shows.
        seed: of the folds.

    Raises DataError where the subset has fewer than two images, or none that the cache knows.
    """
    known = vectors.known(labelled)
    rows = torch.nonzero(known).flatten()
    if not len(rows):
        raise DataError(
            "The cache has no values for any labelled example, so no probe can be fitted.",
            hint="see what is absent: madkit cache info",
        )
    kept = [labelled[row] for row in rows.tolist()]
    targets = target[rows]
    features = torch.cat([vectors.features(kept[at : at + _CHUNK]) for at in range(0, len(kept), _CHUNK)])
    groups = [example.image.id for example in kept]
    probe = fit_cross_probe(
        features, targets, groups=groups, n_classes=outputs, folds=config.folds, kind=config.probe, seed=seed
    )
    out_of_fold = probe.probabilities(features, groups)
    right = out_of_fold.argmax(-1) == (targets if targets.dim() == 1 else targets.argmax(-1))
    if targets.dim() == 2:  # without an answer of the list nothing is right
        right = right[targets.sum(-1) > 0]
    facts = {
        "fitted_on": len(kept),
        "folds": len(probe.heads),
        "l2": list(probe.l2),
        "accuracy_out_of_fold": round(float(right.float().mean()), 4),
    }
    return probe, facts


def ask(
    probe: CrossFitProbe, vectors: GlobalVectors, examples: Sequence[Example], *, keep: int
) -> tuple[Tensor | SoftTargets, Tensor]:
    """The probe's probabilities of examples, and that of each one's best guess [n].

    Of more than a few outputs the `keep` most probable are kept.
    """
    dense = probe.n_outputs <= max(_DENSE, keep)
    values, places = [], []
    for at in range(0, len(examples), _CHUNK):
        piece = examples[at : at + _CHUNK]
        found = probe.probabilities(vectors.features(piece), [example.image.id for example in piece])
        if not dense:
            found, where = found.topk(keep, -1)
            places.append(where.to(torch.int32))
        values.append(found)
    shares = torch.cat(values)
    best = shares.amax(-1)
    return (shares, best) if dense else (SoftTargets.of_rows(torch.cat(places), shares, probe.n_outputs), best)


def with_best_answers(
    probe: CrossFitProbe, vectors: GlobalVectors, examples: Sequence[Example], *, keep: int
) -> list[Example]:
    """The same examples, with the probe's best answer to its question in the context of each rationale (VCR).

    The benchmark's files put the right answer there, which is a label; a student that is asked for rationales later is
    given right answers, so the best guess is closer to that than an answer by lot. A rationale whose question is not
    among `examples` stays as it is.
    """
    asked = [example for example in examples if example.subtask == "answer"]
    if not asked or all(example.subtask != "rationale" for example in examples):
        return list(examples)
    shares, _ = ask(probe, vectors, asked, keep=keep)
    assert isinstance(shares, Tensor)
    best = {
        example.question_id: example.candidates[place]
        for example, place in zip(asked, shares.argmax(-1).tolist(), strict=True)
    }
    return [
        with_answer(example, best[example.question_id])
        if example.subtask == "rationale" and example.question_id in best
        else example
        for example in examples
    ]


def answer_pool(
    vectors: GlobalVectors,
    labelled: Sequence[Example],
    target: Tensor | SoftTargets,
    pool: Sequence[Example],
    config: SoftLabelConfig,
    *,
    outputs: int | None,
    seed: int,
    guess_contexts: bool,
) -> tuple[list[Example], ProbeAnswers]:
    """Fit the probe on `labelled` and let it answer `pool`; the pool comes back with its rationales' contexts filled.

    Args:
        vectors: of all images and texts.
        labelled: the subset, with its labels.
        target: the subset's targets.
        pool: examples without labels.
        config: the probe and what is done with its answers.
        outputs: K of classes, None for candidates and answers.
        seed: of the folds.
        guess_contexts: whether the probe's best answers go into rationales' contexts.

    Raises as `fit_on_labelled`.
    """
    probe, facts = fit_on_labelled(vectors, labelled, target, config, outputs=outputs, seed=seed)
    examples = with_best_answers(probe, vectors, pool, keep=config.answers) if guess_contexts else list(pool)
    shares, confidence = ask(probe, vectors, examples, keep=config.answers)
    return examples, ProbeAnswers(shares, confidence, facts)


def tempered(shares: Tensor, temperature: float) -> Tensor:
    """Probabilities [B, K] with another temperature: p^(1/T) over its sum. Zeros stay zeros."""
    if temperature == 1:
        return shares
    sharp: Tensor = shares.double().pow(1 / temperature)
    return (sharp / sharp.sum(-1, keepdim=True).clamp_min(1e-300)).to(shares.dtype)


def soft_task_loss(
    kind: HeadKind,
    logits: Tensor,
    shares: Tensor,
    *,
    vqa_loss: VqaLoss = "bce",
    choice_loss: ChoiceLoss = "softmax",
    class_loss: ClassLoss = "softmax",
    pairs: Tensor | None = None,
) -> Tensor:
    """Loss of each example [B] for probabilities `shares` [B, K] in the place of labels, in the task loss's own form.

    It equals `students.heads.task_loss` where the shares are those of a label: cross-entropy -sum p log q, or binary
    cross-entropy with p as the target of each output; VQA takes shares as the soft scores that it has anyway.
    """
    if kind == "vqa":
        return task_loss(kind, logits, shares, vqa_loss=vqa_loss)
    if kind == "multiple-choice" and pairs is not None:
        q = pairs.float().log_softmax(-1)
        return -(shares * q[..., 1] + (1 - shares) * q[..., 0]).sum(-1)
    if (kind == "multiple-choice" and choice_loss == "sigmoid") or (kind == "classification" and class_loss == "bce"):
        return F.binary_cross_entropy_with_logits(logits.float(), shares.float(), reduction="none").sum(-1)
    return -(shares.float() * logits.float().log_softmax(-1)).sum(-1)
