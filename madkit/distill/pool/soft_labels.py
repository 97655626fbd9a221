"""What a probe on the teacher's embeddings answers to the unlabelled pool, and the loss that teaches it.

The probe (`mad/probe.py`) is fitted on the labelled subset alone, by cross-fitting over images: an image of the pool
that stands in the subset, too, is answered by the one head that was fitted without it, any other by the mean of all
heads. It reads the teacher's vectors of an image and its texts straight from the cache (`probe_reader.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from madkit.core.errors import ConfigError, DataError
from madkit.distill.batches.soft_targets import SoftTargets
from madkit.distill.pool.pool import with_answer
from madkit.distill.settings.pool_config import SoftLabelConfig
from madkit.distill.teacher.probe_reader import FeatureKind, ProbeReader
from madkit.mad.probe import CrossFitProbe, fit_cross_probe
from madkit.mad.rows import Rows, RowsOf, RowsRead, blocks, held_of, row_bytes
from madkit.students.heads import USUAL_FORMS, HeadKind, LossForms, task_loss
from madkit.tasks.example import Example

_CHUNK = 512
_DENSE = 64  # outputs up to which all probabilities of an example are kept
_ROUNDING = 1e-5  # all probabilities of an example sum to 1, up to this


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


@dataclass(frozen=True, slots=True)
class FittedProbe:
    """A cross-fitted probe and the features that it reads."""

    probe: CrossFitProbe
    reader: ProbeReader
    kinds: tuple[FeatureKind, ...]

    def __call__(self, examples: Sequence[Example]) -> Tensor:
        """Probabilities [n, K] or [n, C] of a few examples."""
        features = torch.cat([self.reader.features(examples, kind) for kind in self.kinds], -1)
        return self.probe.probabilities(features, [example.image.id for example in examples])


def fit_on_labelled(
    reader: ProbeReader,
    labelled: Sequence[Example],
    target: Tensor | SoftTargets,
    config: SoftLabelConfig,
    *,
    outputs: int | None,
    seed: int,
) -> tuple[FittedProbe, dict[str, Any]]:
    """The probe of a labelled subset, and how it does on it out of fold.

    Where `config.features` leaves it open, the features are those with which the out-of-fold log-likelihood of the
    subset is best: an answer's name is found in global vectors, an entailment in whether each word is in the picture.

    Args:
        reader: of the examples' images and texts.
        labelled: the subset.
        target: its labels [n], or soft scores.
        config: which probe, how many folds, which features.
        outputs: K of classes; None for candidates and answers, whose number the data shows.
        seed: of the folds.

    Raises:
        DataError: the subset has fewer than two images, or none that the caches know.
        ConfigError: `config` asks for features that the teacher does not have.
    """
    rows = torch.nonzero(reader.known(labelled)).flatten()
    if not len(rows):
        raise DataError(
            "The cache has no values for any labelled example, so no probe can be fitted.",
            hint="see what is absent: madkit cache info",
        )
    kept = [labelled[row] for row in rows.tolist()]
    targets = RowsOf(target, rows) if isinstance(target, SoftTargets) else target[rows]
    groups = [example.image.id for example in kept]
    options = _features_of(config, reader.kinds)
    read = _tables(reader, kept, list(dict.fromkeys(kind for option in options for kind in option)))
    best: tuple[float, FittedProbe, float] | None = None
    tried = {}
    for kinds in options:
        features = _side_by_side([read[kind] for kind in kinds])
        probe = fit_cross_probe(
            features, targets, groups=groups, n_classes=outputs, folds=config.folds, kind=config.probe, seed=seed
        )
        surprise, accuracy = _out_of_fold(probe, features, targets, groups)
        tried["+".join(kinds)] = round(surprise, 4)
        if best is None or surprise < best[0]:
            best = surprise, FittedProbe(probe, reader, kinds), accuracy
    assert best is not None
    _, fitted, accuracy = best
    facts = {
        "fitted_on": len(kept),
        "folds": len(fitted.probe.heads),
        "l2": list(fitted.probe.l2),
        "features": "+".join(fitted.kinds),
        "log_loss_out_of_fold": tried,
        "accuracy_out_of_fold": round(accuracy, 4),
    }
    return fitted, facts


def _features_of(config: SoftLabelConfig, there: tuple[FeatureKind, ...]) -> list[tuple[FeatureKind, ...]]:
    if config.features == "auto":
        return [("global",), ("interaction",), ("global", "interaction")] if "interaction" in there else [("global",)]
    if config.features not in there:
        raise ConfigError(
            "Interaction features look words up among patches, and no teacher here has one space for both and a cache "
            "that keeps them.",
            hint="--set pool.soft_labels.features=global",
        )
    return [(config.features,)]


def _tables(reader: ProbeReader, examples: Sequence[Example], kinds: Sequence[FeatureKind]) -> dict[FeatureKind, Rows]:
    """The features of each kind: in memory where all of them together fit (`mad.rows`), else read when asked for."""

    def reads(kind: FeatureKind) -> RowsRead:
        return RowsRead(len(examples), lambda rows: reader.features([examples[row] for row in rows.tolist()], kind))

    lazy: dict[FeatureKind, Rows] = {kind: reads(kind) for kind in kinds}
    if len(examples) > held_of(row_bytes(*lazy.values())):
        return lazy
    starts = range(0, len(examples), _CHUNK)
    return {kind: torch.cat([reader.features(examples[at : at + _CHUNK], kind) for at in starts]) for kind in kinds}


def _side_by_side(tables: Sequence[Rows]) -> Rows:
    held = [table for table in tables if isinstance(table, Tensor)]
    if len(held) == len(tables):
        return torch.cat(held, -1)
    return RowsRead(tables[0].shape[0], lambda rows: torch.cat([table[rows] for table in tables], -1))


def _out_of_fold(probe: CrossFitProbe, features: Rows, targets: Rows, groups: Sequence[str]) -> tuple[float, float]:
    """Mean -log p of the examples of a fit, and the share of right best guesses, out of fold."""
    surprises, rights, counts = [], [], []
    for rows in blocks(features, targets):
        probabilities = probe.probabilities(features[rows], [groups[row] for row in rows.tolist()])
        gold = targets[rows]
        right = probabilities.argmax(-1) == (gold if gold.dim() == 1 else gold.argmax(-1))
        surprises.append(float(_log_loss(probabilities, gold)))
        counts.append(len(rows))
        rights.append(right if gold.dim() == 1 else right[gold.sum(-1) > 0])  # without an answer nothing is right
    accuracy = float(torch.cat(rights).float().mean())
    if len(counts) == 1:
        return surprises[0], accuracy
    return sum(one * count for one, count in zip(surprises, counts, strict=True)) / sum(counts), accuracy


def _log_loss(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Mean -log p of labels [n], or of soft scores [n, K] as shares."""
    logs = probabilities.clamp_min(1e-9).log()
    if targets.dim() == 1:
        return F.nll_loss(logs, targets)
    shares = targets / targets.sum(-1, keepdim=True).clamp_min(1e-9)
    return -(shares * logs).sum(-1).mean()


def ask(probe: FittedProbe, examples: Sequence[Example], *, keep: int) -> tuple[Tensor | SoftTargets, Tensor]:
    """The probe's probabilities of examples, and that of each one's best guess [n].

    Of more than a few outputs the `keep` most probable are kept.
    """
    outputs = probe.probe.n_outputs
    dense = outputs <= max(_DENSE, keep)
    values, places = [], []
    for at in range(0, len(examples), _CHUNK):
        found = probe(examples[at : at + _CHUNK])
        if not dense:
            found, where = found.topk(keep, -1)
            places.append(where.to(torch.int32))
        values.append(found)
    shares = torch.cat(values)
    best = shares.amax(-1)
    return (shares, best) if dense else (SoftTargets.of_rows(torch.cat(places), shares, outputs), best)


def with_best_answers(probe: FittedProbe, examples: Sequence[Example], *, keep: int) -> list[Example]:
    """The same examples, with the probe's best answer to its question in the context of each rationale (VCR).

    The benchmark's files put the right answer there, which is a label; a student that is asked for rationales later is
    given right answers, so the best guess is closer to that than an answer by lot. A rationale whose question is not
    among `examples` stays as it is.
    """
    asked = [example for example in examples if example.subtask == "answer"]
    if not asked or all(example.subtask != "rationale" for example in examples):
        return list(examples)
    shares, _ = ask(probe, asked, keep=keep)
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
    reader: ProbeReader,
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
        reader: of all images and texts.
        labelled: the subset, with its labels.
        target: the subset's targets.
        pool: examples without labels.
        config: the probe and what is done with its answers.
        outputs: K of classes, None for candidates and answers.
        seed: of the folds.
        guess_contexts: whether the probe's best answers go into rationales' contexts.

    Raises as `fit_on_labelled`.
    """
    probe, facts = fit_on_labelled(reader, labelled, target, config, outputs=outputs, seed=seed)
    examples = with_best_answers(probe, pool, keep=config.answers) if guess_contexts else list(pool)
    shares, confidence = ask(probe, examples, keep=config.answers)
    return examples, ProbeAnswers(shares, confidence, facts)


def tempered(shares: Tensor, temperature: float) -> Tensor:
    """Probabilities [B, K] with another temperature: p^(1/T), scaled to the sum of p. Zeros stay zeros.

    The kept ones of many answers sum to less than 1, at every temperature to the same.
    """
    if temperature == 1:
        return shares
    p = shares.double()
    mass = p.sum(-1, keepdim=True)
    mass = mass.where((mass - 1).abs() > _ROUNDING, 1.0)
    sharp: Tensor = p.pow(1 / temperature)
    return (sharp / sharp.sum(-1, keepdim=True).clamp_min(1e-300) * mass).to(shares.dtype)


def soft_task_loss(
    kind: HeadKind,
    logits: Tensor,
    shares: Tensor,
    forms: LossForms = USUAL_FORMS,
    *,
    pairs: Tensor | None = None,
) -> Tensor:
    """Loss of each example [B] for probabilities `shares` [B, K] in the place of labels, in the task loss's own form.

    It equals `students.heads.task_loss` where the shares are those of a label: cross-entropy -sum p log q, or binary
    cross-entropy with p as the target of each output; VQA takes shares as the soft scores that it has anyway.
    """
    if kind == "vqa":
        return task_loss(kind, logits, shares, forms)
    if kind == "multiple-choice" and pairs is not None:
        q = pairs.float().log_softmax(-1)
        return forms.of_candidates(-(shares * q[..., 1] + (1 - shares) * q[..., 0]))
    if forms.each_output(kind):
        each = F.binary_cross_entropy_with_logits(logits.float(), shares.float(), reduction="none")
        return forms.of_candidates(each) if kind == "multiple-choice" else each.sum(-1)
    return -(shares.float() * logits.float().log_softmax(-1)).sum(-1)
