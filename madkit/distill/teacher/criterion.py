"""A run's distillation criterion: its heads drawn from the seed, what it leaves open measured on the teacher's side."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from madkit.core.errors import ConfigError
from madkit.core.seeds import derive_seed
from madkit.distill.batches.examples import ExampleSet
from madkit.distill.teacher.side import TeacherSide
from madkit.mad.calibrate import calibrated
from madkit.mad.config import MADConfig
from madkit.mad.criterion import MADCriterion
from madkit.mad.several import SeveralTeachers
from madkit.students.student import Student

CALIBRATION = 2048  # examples on which absolute affinity is calibrated
Criterion = MADCriterion | SeveralTeachers


def make_criterion(config: MADConfig, student: Student, teacher: TeacherSide, seed: int) -> MADCriterion:
    """The criterion for a student and a teacher, its heads drawn from the seed alone.

    What `config` leaves open about absolute affinity is measured on up to `CALIBRATION` examples of the teacher's side.
    """
    config = _calibrated(config, teacher)
    vision, text = teacher.images.globals.shape[1], teacher.texts.globals.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "projections"))
        return MADCriterion(config, student.hidden_size, vision, text)


def _calibrated(config: MADConfig, teacher: TeacherSide) -> MADConfig:
    examples = teacher.examples
    chosen = np.unique(np.linspace(0, len(examples) - 1, min(len(examples), CALIBRATION)).astype(np.int64))
    if config.affinity_weight == 0 or config.affinity_kind == "relative":
        return config
    rows, inputs = examples.teacher_rows(chosen), examples.inputs(chosen)
    # one text of each sequence, in turn: in the pre-phase a sentence asks alone
    turn = torch.arange(len(rows.texts)) % (rows.texts >= 0).sum(1)
    rows = replace(rows, texts=rows.texts.gather(1, turn[:, None]))
    targets = teacher.targets(rows, chosen, inputs).to("cpu")
    image = targets.image_index
    # what the cache lacks is zeros, which have no cosine: without a region they are no pair
    there = teacher.texts.present[rows.texts[:, 0]] & teacher.images.present[rows.images][image]
    mask = targets.region_mask[image] & there.unsqueeze(1)
    return calibrated(config, targets.text_global, targets.regions[image], mask, rows.images[image])


def check_tags(config: MADConfig, examples: ExampleSet) -> None:
    """Raise ConfigError where object tags are all that `config` would teach, and the examples have none."""
    if set(config.term_weights) == {"token_tag"} and config.affinity_weight == 0 and not examples.has_tags:
        raise ConfigError(
            "Object tags are all that this objective teaches, and the texts of this data name no boxes.",
            hint="teach other tokens, too: set text_weight, region_weight or a global weight above 0.",
        )
