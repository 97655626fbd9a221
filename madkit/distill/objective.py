"""What a step minimises: the task loss, the distillation criterion, or both, for one micro-batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from madkit.core.errors import ConfigError
from madkit.core.seeds import derive_seed
from madkit.distill.examples import ExampleSet, TeacherRows
from madkit.distill.loop import StepLoss
from madkit.distill.order import Indices
from madkit.distill.teacher_side import TeacherSide
from madkit.mad.calibrate import calibrated
from madkit.mad.config import MADConfig
from madkit.mad.criterion import MADCriterion
from madkit.mad.several import SeveralTeachers
from madkit.mad.targets import TeacherTargets
from madkit.students.heads import ChoiceLoss, ClassLoss, VqaLoss, gold_probability, task_loss
from madkit.students.interface import StudentInputs, StudentOutput
from madkit.students.student import Student

CALIBRATION = 2048  # examples on which absolute affinity is calibrated
Criterion = MADCriterion | SeveralTeachers
Targets = TeacherTargets | Mapping[str, TeacherTargets]
"""What one teacher says of a batch, or several do, by name: what a criterion of one, or of several, compares with."""


@dataclass(frozen=True, slots=True)
class Batch:
    """B examples, ready for a step.

    Attributes:
        inputs: the student's tensors.
        target: [B] labels or [B, K] soft scores; None without labels.
        teacher: the teacher's side, or that of several by name; None where no term needs it.
        query_index: [S] text position that asks in sentence affinity; None: the last [SEP].
        confidence: [B] c_T, the teacher's confidence in the gold target; None where no weight needs it.
        step: number of the step, counted from 0.
        progress: share of training that is done; None: no schedule counts.
    """

    inputs: StudentInputs
    target: Tensor | None
    teacher: Targets | None
    query_index: Tensor | None
    confidence: Tensor | None
    step: int
    progress: float | None

    def to(self, device: torch.device | str) -> Batch:
        """The same on another device."""
        return replace(
            self,
            inputs=self.inputs.to(device, non_blocking=True),
            target=None if self.target is None else self.target.to(device, non_blocking=True),
            teacher=None if self.teacher is None else _moved(self.teacher, device),
            query_index=None if self.query_index is None else self.query_index.to(device, non_blocking=True),
            confidence=None if self.confidence is None else self.confidence.to(device, non_blocking=True),
        )


def _moved(targets: Targets, device: torch.device | str) -> Targets:
    if isinstance(targets, TeacherTargets):
        return targets.to(device, non_blocking=True)
    return {name: one.to(device, non_blocking=True) for name, one in targets.items()}


class Side(Protocol):
    """What one or several teachers say of a set of examples."""

    def targets(self, rows: TeacherRows, indices: Indices, inputs: StudentInputs) -> Targets:
        """The teachers' side of a batch whose student tensors are `inputs`."""

    def chosen(
        self, rows: TeacherRows, indices: Indices, inputs: StudentInputs, *, label: Tensor | None, step: int
    ) -> Targets:
        """The same with the token part chosen already (`TeacherSide.chosen`)."""

    @property
    def reads(self) -> bool:
        """Whether vectors are read from the cache when a batch asks for them."""

    @property
    def untaught(self) -> int:
        """Examples with a sequence that no teacher says anything about."""


class BatchMaker:
    """Cuts micro-batches out of a set: tensors only, no reading.

    Args:
        examples: the set.
        steps: length of training, for the schedules.
        teacher: the teacher's side of the set.
        confidence: [n] c_T.
        one_text: the teacher's sentence is one text of the sequence (question, answer or rationale, in turn over
            steps) and its own [SEP] asks, instead of all texts and the last [SEP]. A sentence of its own says more
            about the regions than a mean over several.
    """

    def __init__(
        self,
        examples: ExampleSet,
        steps: int,
        *,
        teacher: Side | None = None,
        confidence: Tensor | None = None,
        one_text: bool = False,
    ) -> None:
        self.one_text = one_text
        self.examples = examples
        self.steps = steps
        self.teacher = teacher
        self.confidence = confidence

    @property
    def reads(self) -> bool:
        """Whether a micro-batch is worth making ahead of time: its features or its targets come from files."""
        return not self.examples.regions.in_memory or (self.teacher is not None and self.teacher.reads)

    def __call__(self, indices: Indices, step: int) -> Batch:
        """The micro-batch of the examples `indices` in step `step`."""
        inputs = self.examples.inputs(indices)
        rows = torch.from_numpy(indices)
        target = None if self.examples.target is None else self.examples.target[rows]
        targets = query = None
        if self.teacher is not None:
            where = self.examples.teacher_rows(indices)
            if self.one_text:
                turn = (rows.repeat_interleave(self.examples.n_candidates) + step) % (where.texts >= 0).sum(1)
                query = where.ends.gather(1, turn[:, None]).squeeze(1)
                where = replace(where, texts=where.texts.gather(1, turn[:, None]))
            if self.one_text:  # whose relevance changes from step to step
                targets = self.teacher.targets(where, indices, inputs)
            else:
                label = target if target is not None and target.dim() == 1 else None
                targets = self.teacher.chosen(where, indices, inputs, label=label, step=step)
        return Batch(
            inputs=inputs,
            target=target,
            teacher=targets,
            query_index=query,
            confidence=None if self.confidence is None else self.confidence[rows],
            step=step,
            progress=step / self.steps,
        )


class Objective(nn.Module):
    """Student and criterion as one module, so that one optimiser and one wrapper hold all that is trained.

    Args:
        student: the student.
        criterion: the distillation criterion, or None.
        supervised: whether the task loss counts (the pre-phase has no labels).
        vqa_loss: form of the task loss of VQA.
        choice_loss: form of the task loss of multiple choice.
        class_loss: form of the task loss of classification.
    """

    def __init__(
        self,
        student: Student,
        criterion: Criterion | None,
        *,
        supervised: bool = True,
        vqa_loss: VqaLoss = "bce",
        choice_loss: ChoiceLoss = "softmax",
        class_loss: ClassLoss = "softmax",
    ) -> None:
        super().__init__()
        self.vqa_loss: VqaLoss = vqa_loss
        self.choice_loss: ChoiceLoss = choice_loss
        self.class_loss: ClassLoss = class_loss
        if criterion is None and not supervised:
            raise ValueError("nothing to learn from: neither labels nor a criterion")
        self.student = student
        self.criterion = criterion
        self.supervised = supervised

    def forward(self, batch: Batch) -> StepLoss:
        """Mean over the micro-batch's examples of the loss, and its terms."""
        out = self.student(batch.inputs)
        terms: dict[str, Tensor] = {}
        loss = torch.zeros((), device=out.logits.device)
        if self.supervised:
            task = self.task(out, batch)
            terms["task"] = task
            loss = loss + task
        if self.criterion is not None:
            distilled = self.distil(self.criterion, out, batch)
            loss = loss + distilled.loss
            terms.update(distilled.terms)
        return StepLoss(loss, terms)

    def task(self, out: StudentOutput, batch: Batch) -> Tensor:
        """Mean of the task loss over the micro-batch's examples."""
        assert batch.target is not None
        return task_loss(
            self.student.head_spec.kind,
            out.logits,
            batch.target,
            vqa_loss=self.vqa_loss,
            choice_loss=self.choice_loss,
            class_loss=self.class_loss,
            pairs=out.pair_logits,
        ).mean()

    def distil(self, criterion: Criterion, out: StudentOutput, batch: Batch) -> StepLoss:
        """What the teacher adds: the criterion on the student's hidden states."""
        assert batch.teacher is not None
        inputs, kind = batch.inputs, self.student.head_spec.kind
        student_confidence = labelled = None
        if batch.target is None:
            labelled = torch.zeros(
                len(inputs.input_ids) // inputs.n_candidates, dtype=torch.bool, device=out.logits.device
            )
            student_confidence = batch.confidence  # of no account without a gold target
        elif self.supervised and batch.confidence is not None:
            student_confidence = gold_probability(kind, out.logits, batch.target)
        distilled = criterion(
            out.hidden_states,
            out.text_length,
            batch.teacher,
            text_mask=inputs.text_mask,
            region_mask=out.region_mask,
            tag_regions=inputs.tag_regions,
            query_index=batch.query_index,
            label=batch.target if self.supervised and kind != "vqa" else None,
            n_candidates=inputs.n_candidates,
            labelled=labelled,
            teacher_confidence=batch.confidence,
            student_confidence=student_confidence,
            step=batch.step,
            progress=batch.progress,
        )
        return StepLoss(distilled.loss, distilled.terms)


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
    return calibrated(
        config, targets.text_global, targets.regions[image], targets.region_mask[image], rows.images[image]
    )


def check_tags(config: MADConfig, examples: ExampleSet) -> None:
    """Raise ConfigError where object tags are all that `config` would teach, and the examples have none."""
    if set(config.term_weights) == {"token_tag"} and config.affinity_weight == 0 and not examples.has_tags:
        raise ConfigError(
            "Object tags are all that this objective teaches, and the texts of this data name no boxes.",
            hint="teach other tokens, too: set text_weight, region_weight or a global weight above 0.",
        )


def is_fresh(name: str) -> bool:
    """Whether a parameter of an Objective was drawn for this run (task head, projections)."""
    return name.startswith(("criterion.", "pool_criterion.", "student.head."))
