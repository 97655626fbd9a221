"""What a step minimises: the task loss, the distillation criterion, or both, for one micro-batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from madkit.distill.batches.micro_batch import Batch
from madkit.distill.loop.contract import StepLoss
from madkit.distill.settings.config import DistillConfig
from madkit.distill.teacher.criterion import Criterion
from madkit.students.heads import USUAL_FORMS, LossForms, gold_probability, task_loss
from madkit.students.interface import StudentInputs, StudentOutput
from madkit.students.student import Student


class Objective(nn.Module):
    """Student and criterion as one module, so that one optimiser and one wrapper hold all that is trained.

    Args:
        student: the student.
        criterion: the distillation criterion, or None.
        supervised: whether the task loss counts (the pre-phase has no labels).
        forms: of the task loss.
    """

    def __init__(
        self,
        student: Student,
        criterion: Criterion | None,
        *,
        supervised: bool = True,
        forms: LossForms = USUAL_FORMS,
    ) -> None:
        super().__init__()
        if criterion is None and not supervised:
            raise ValueError("nothing to learn from: neither labels nor a criterion")
        self.student = student
        self.criterion = criterion
        self.supervised = supervised
        self.forms = forms

    def forward(self, batch: Batch) -> StepLoss:
        """Mean over the micro-batch's examples of the loss, and its terms."""
        out = self.answer(batch.inputs, self.criterion)
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

    def answer(self, inputs: StudentInputs, criterion: Criterion | None) -> StudentOutput:
        """The student's answer, read along by the distillation tokens of a criterion that has some."""
        tokens = None if criterion is None else criterion.distillation_tokens()
        out: StudentOutput = self.student(inputs) if tokens is None else self.student(inputs, tokens)
        return out

    def task(self, out: StudentOutput, batch: Batch) -> Tensor:
        """Mean of the task loss over the micro-batch's examples."""
        assert batch.target is not None
        kind = self.student.head_spec.kind
        return task_loss(kind, out.logits, batch.target, self.forms, pairs=out.pair_logits).mean()

    def distil(self, criterion: Criterion, out: StudentOutput, batch: Batch) -> StepLoss:
        """What the teacher adds: the criterion on the student's hidden states."""
        assert batch.teacher is not None
        inputs, kind = batch.inputs, self.student.head_spec.kind
        student_confidence, labelled = None, batch.labelled
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
            distillation_states=out.distillation_states,
        )
        return StepLoss(distilled.loss, distilled.terms)


def loss_forms(config: DistillConfig) -> LossForms:
    """Forms of the task loss that a run has asked for."""
    return LossForms(config.optim.vqa_loss, config.choice_loss, config.class_loss, config.choice_mean)


def is_fresh(name: str) -> bool:
    """Whether a parameter of an Objective was drawn for this run (task head, projections)."""
    return name.startswith(("criterion.", "pool_criterion.", "student.head."))
