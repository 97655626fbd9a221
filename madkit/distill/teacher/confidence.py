"""The teacher's confidence in the gold target of every labelled example, worked out once before training."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from madkit.core.errors import ConfigError, DataError
from madkit.core.files import read_json, write_json_atomic
from madkit.distill.batches.examples import ExampleSet
from madkit.distill.batches.soft_targets import SoftTargets
from madkit.distill.settings.config import ConfidenceConfig
from madkit.distill.teacher.sides import AnySide, known_to, probe_features_of, zero_shot_of
from madkit.mad.probe import fit_cross_probe
from madkit.mad.rows import RowsOf, blocks, table_of
from madkit.mad.weigh import confidence_of_all, gold_probability

FILE = "confidence.json"
_BLOCK = 16_384  # examples whose vectors are compared at once for zero-shot confidence


def teacher_confidence(
    examples: ExampleSet, teacher: AnySide, config: ConfidenceConfig, *, seed: int, path: Path
) -> Tensor:
    """c_T [n] of the labelled examples, out of fold for the probe; also written to `path`.

    Several teachers have one confidence: what they know together (docs/method.md says why). The probe is fitted on the
    examples that all of them know; any other takes the mean of those, which counts where one of them teaches it.

    Raises ConfigError where `zero-shot` is asked for and the task or the teacher has none, DataError where the examples
    are too few for a probe.
    """
    if path.exists():  # a run that goes on takes what it began with
        stored = read_json(path)["confidence"]
        if list(stored) == examples.ids:
            return torch.tensor([stored[name] for name in examples.ids], dtype=torch.float32)
    assert examples.target is not None
    target, C = examples.target, examples.n_candidates
    facts: dict[str, object]

    def read(rows: Tensor) -> Tensor:
        return probe_features_of(teacher, examples.teacher_rows(rows.numpy()), C)

    if config.source == "zero-shot":
        confidence = _zero_shot(examples, teacher)
        facts = {"source": "zero-shot"}
    else:
        known = torch.nonzero(known_to(teacher)[: len(examples)]).flatten()  # a pool's examples come after these
        if not len(known):
            raise DataError(
                "The cache has no values for any labelled example, so no probe can be fitted.",
                hint="see what is absent: madkit cache info; or --set mad.weighting=uniform",
            )
        features = table_of(len(known), lambda rows: read(known[rows]))
        gold = RowsOf(target, known) if isinstance(target, SoftTargets) else target[known]
        groups = [examples.examples[row].image.id for row in known.tolist()]
        fit = fit_cross_probe(features, gold, groups=groups, folds=config.folds, seed=seed)
        found, right = [], []
        for rows in blocks(features, gold):
            probabilities = fit.probabilities(features[rows], [groups[row] for row in rows.tolist()])
            mine = gold[rows]
            found.append(gold_probability(probabilities.clamp_min(1e-30).log(), mine))
            right.append(probabilities.argmax(-1) == mine if mine.dim() == 1 else probabilities.new_zeros(0))
        confidence = confidence_of_all(len(examples), known, torch.cat(found))
        facts = {"source": "probe", "folds": int(fit.fold.max()) + 1, "l2": list(fit.l2)}
        if len(known) < len(examples):
            facts["without_teacher"] = len(examples) - len(known)
        if len(target.shape) == 1:
            facts["accuracy"] = float(torch.cat(right).float().mean())
    confidence = confidence.float()
    values = dict(zip(examples.ids, confidence.tolist(), strict=True))
    write_json_atomic(path, {"schema": 1, **facts, "mean": float(confidence.mean()), "confidence": values})
    return confidence


def _zero_shot(examples: ExampleSet, teacher: AnySide) -> Tensor:
    """Zero-shot confidence [n], a block of examples at a time."""
    parts = []
    for start in range(0, len(examples) if examples.n_candidates > 1 else 0, _BLOCK):
        rows = torch.arange(start, min(start + _BLOCK, len(examples)))
        assert isinstance(examples.target, Tensor)
        found = zero_shot_of(teacher, examples.teacher_rows(rows.numpy()), examples.target[rows])
        if found is not None:
            parts.append(found)
    if not parts:
        raise ConfigError(
            "Zero-shot confidence needs a task with candidates and a teacher with one space for images and texts.",
            hint="--set confidence.source=probe",
        )
    return torch.cat(parts)
