"""Micro-batches: a set's examples cut into the tensors of one forward pass, with what the teachers say of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from madkit.distill.batches.examples import ExampleSet, TeacherRows
from madkit.distill.batches.order import Indices
from madkit.distill.batches.soft_targets import SoftTargets
from madkit.mad.targets import TeacherTargets
from madkit.students.interface import StudentInputs

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
        labelled: [B] bool: which have a gold target, where there is a `target` and not all of the set have; None: all.
    """

    inputs: StudentInputs
    target: Tensor | None
    teacher: Targets | None
    query_index: Tensor | None
    confidence: Tensor | None
    step: int
    progress: float | None
    labelled: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same on another device."""
        return replace(
            self,
            inputs=self.inputs.to(device, non_blocking=True),
            target=None if self.target is None else self.target.to(device, non_blocking=True),
            teacher=None if self.teacher is None else _moved(self.teacher, device),
            query_index=None if self.query_index is None else self.query_index.to(device, non_blocking=True),
            confidence=None if self.confidence is None else self.confidence.to(device, non_blocking=True),
            labelled=None if self.labelled is None else self.labelled.to(device, non_blocking=True),
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
        # VQA: a question whose answers are not in the vocabulary has no gold target, and weighs as without a label
        answered = examples.target.answered if isinstance(examples.target, SoftTargets) else None
        self._labelled = None if answered is None or bool(answered.all()) else answered

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
            confidence=None if self.confidence is None else self.confidence.index_select(0, rows),
            step=step,
            progress=step / self.steps,
            labelled=None if self._labelled is None else self._labelled[rows],
        )
