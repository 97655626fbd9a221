"""The teacher's confidence in the gold target of every labelled example, worked out once before training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from madkit.core.errors import ConfigError
from madkit.core.files import read_json, write_json_atomic
from madkit.distill.config import ConfidenceConfig
from madkit.distill.examples import ExampleSet
from madkit.distill.objective import TeacherSide
from madkit.distill.soft_targets import SoftTargets
from madkit.mad.probe import cross_fit_probe, probe_features
from madkit.mad.weigh import zero_shot_confidence

FILE = "confidence.json"


def teacher_confidence(
    examples: ExampleSet, teacher: TeacherSide, config: ConfidenceConfig, *, seed: int, logit_scale: float, path: Path
) -> Tensor:
    """c_T [n] of the labelled examples, out of fold for the probe; also written to `path`.

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
    image = teacher.images.globals[rows.images]
    if config.source == "zero-shot":
        if C == 1 or not teacher.shared_space:
            raise ConfigError(
                "Zero-shot confidence needs a task with candidates and a teacher with one space for images and texts.",
                hint="--set confidence.source=probe",
            )
        last = (rows.texts >= 0).sum(1) - 1  # the candidate is the last text of its sequence
        candidate = teacher.texts.globals[rows.texts.gather(1, last[:, None]).squeeze(1)].view(n, C, -1)
        confidence = zero_shot_confidence(image, candidate, target, logit_scale=logit_scale)
        facts: dict[str, object] = {"source": "zero-shot"}
    else:
        text = teacher.text_globals(rows.texts)
        features = probe_features(image, text.view(n, C, -1) if C > 1 else text)
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
