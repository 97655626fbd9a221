"""The teacher's confidence in the gold target of every labelled example, worked out once before training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from madkit.core.errors import ConfigError
from madkit.core.files import read_json, write_json_atomic
from madkit.distill.batches.examples import ExampleSet
from madkit.distill.batches.soft_targets import SoftTargets
from madkit.distill.settings.config import ConfidenceConfig
from madkit.distill.teacher.sides import AnySide, probe_features_of, zero_shot_of
from madkit.mad.probe import cross_fit_probe

FILE = "confidence.json"


def teacher_confidence(
    examples: ExampleSet, teacher: AnySide, config: ConfidenceConfig, *, seed: int, path: Path
) -> Tensor:
    """c_T [n] of the labelled examples, out of fold for the probe; also written to `path`.

    Several teachers have one confidence: what they know together (docs/method.md says why).

    Raises ConfigError where `zero-shot` is asked for and the task or the teacher has none.
    """
    if path.exists():  # a run that goes on takes what it began with
        stored = read_json(path)["confidence"]
        if list(stored) == examples.ids:
            return torch.tensor([stored[name] for name in examples.ids], dtype=torch.float32)
    assert examples.target is not None
    target = examples.target.dense() if isinstance(examples.target, SoftTargets) else examples.target
    n, C = len(examples), examples.n_candidates
    rows = examples.teacher_rows(np.arange(n))
    if config.source == "zero-shot":
        found = zero_shot_of(teacher, rows, target) if C > 1 else None
        if found is None:
            raise ConfigError(
                "Zero-shot confidence needs a task with candidates and a teacher with one space for images and texts.",
                hint="--set confidence.source=probe",
            )
        confidence = found
        facts: dict[str, object] = {"source": "zero-shot"}
    else:
        features = probe_features_of(teacher, rows, C)
        groups = [example.image.id for example in examples.examples]
        fit = cross_fit_probe(features, target, groups=groups, folds=config.folds, seed=seed)
        confidence = fit.confidence
        facts = {"source": "probe", "folds": int(fit.fold.max()) + 1, "l2": list(fit.l2)}
        if target.dim() == 1:
            right = fit.probabilities.argmax(-1) == target
            facts["accuracy"] = float(right.float().mean())
    confidence = confidence.float()
    values = dict(zip(examples.ids, confidence.tolist(), strict=True))
    write_json_atomic(path, {"schema": 1, **facts, "mean": float(confidence.mean()), "confidence": values})
    return confidence
