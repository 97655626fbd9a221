"""Soft labels before the labels: a pre-phase whose pool a probe has answered.

The probe is fitted on a run's labelled subset, so such a pre-phase belongs to that subset, and runs share it only where
they have the very same labelled examples, seed and head: `SoftPhase.key` is part of what names its folder. The student
is trained with its task head, which goes on into fine-tuning: what it has learnt are the task's answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from madkit.core.console import info
from madkit.core.files import digest_of
from madkit.core.seeds import derive_seed
from madkit.distill.batches.examples import targets_of
from madkit.distill.batches.micro_batch import Batch, BatchMaker
from madkit.distill.batches.order import Indices
from madkit.distill.batches.soft_targets import SoftTargets
from madkit.distill.objective.objective import loss_forms
from madkit.distill.pool.joint_objective import JointBatch, JointObjective
from madkit.distill.pool.joint_pool import examples_per_step
from madkit.distill.pool.pool import known_to, unlabelled_examples
from madkit.distill.pool.soft_labels import ProbeAnswers, answer_pool, tempered
from madkit.distill.settings.config import DistillConfig, PrePhaseConfig
from madkit.distill.settings.pool_config import PoolConfig, SoftLabelConfig
from madkit.distill.teacher.criterion import Criterion
from madkit.distill.teacher.probe_reader import ProbeReader
from madkit.distill.teacher.teachers import Teachers
from madkit.students.heads import HeadSpec
from madkit.students.student import Student
from madkit.tasks.example import Example


@dataclass(frozen=True, slots=True)
class SoftPhase:
    """Of a run, what its soft labels before fine-tuning depend on.

    Attributes:
        labelled: the labelled subset.
        head: what the student decides between.
        teachers: all teachers of the run; the probe reads their caches, or those of the teachers before an adaptation.
        seed: the run's, from which its head was drawn.
    """

    labelled: Sequence[Example]
    head: HeadSpec
    teachers: Teachers
    seed: int

    def key(self, config: DistillConfig) -> dict[str, Any]:
        """What identifies such a pre-phase beside what identifies any."""
        optim = config.optim
        return {
            "examples": digest_of([example.id for example in self.labelled]),
            "seed": self.seed,
            "caches": [(member.asked or member.cache).path.name for member in self.teachers],
            "head": [self.head.kind, self.head.binary, digest_of(list(self.head.outputs))],
            "head_rate": optim.head_rate,
            "forms": [
                optim.vqa_loss, config.choice_loss, config.class_loss, config.answer_match,
                *(["choice_mean"] if config.choice_mean else []),
            ],
        }  # fmt: skip

    def per_step(self, phase: PrePhaseConfig) -> int:
        """Examples of a step."""
        return examples_per_step(phase.batch_size, max((len(one.candidates) for one in self.labelled), default=1))

    def answered(
        self, config: DistillConfig, phase: PrePhaseConfig, train: Sequence[Example]
    ) -> tuple[list[Example], ProbeAnswers, int]:
        """The pool with the probe's answers, and how many examples were left out that a cache does not know.

        Raises as `soft_labels.fit_on_labelled` and `pool.known_to`.
        """
        assert phase.seed is not None
        assert phase.soft_labels is not None
        found = unlabelled_examples(
            train,
            draws=phase.steps * self.per_step(phase),
            limit=phase.pool,
            without={example.question_id for example in self.labelled},
            seed=phase.seed,
        )
        total = len(found)
        asked = [member.asked or member.cache for member in self.teachers]
        for cache in (*(member.cache for member in self.teachers), *asked):
            found, _ = known_to(cache, found)
        reader = ProbeReader(
            asked,
            list(dict.fromkeys(example.image.id for example in (*self.labelled, *found))),
            permute_seed=derive_seed(phase.seed, "permute") if config.permute_teacher else None,
        )
        found, answers = answer_pool(
            reader,
            self.labelled,
            targets_of(self.labelled, self.head, config.answer_match),
            found,
            phase.soft_labels,
            outputs=len(self.head.outputs) if self.head.kind == "classification" else None,
            seed=derive_seed(phase.seed, "probe"),
            guess_contexts=True,
        )
        return found, answers, total - len(found)


def with_soft_phase(
    config: DistillConfig,
    labelled: Sequence[Example],
    head: HeadSpec,
    teachers: Teachers,
    train: Sequence[Example],
    seed: int,
) -> tuple[DistillConfig, SoftPhase | None]:
    """What a run with a pre-phase needs of soft labels; without any where all questions have their gold labels.

    Args:
        config: resolved configuration with a `pre_phase`.
        labelled: the labelled subset.
        head: what the student decides between.
        teachers: all teachers.
        train: the train split.
        seed: the run's seed.

    Returns:
        The configuration, and what the phase's soft labels depend on. Where there are none, a phase that would have
        learnt nothing else is left out.
    """
    phase = config.pre_phase
    assert phase is not None
    if phase.soft_labels is None:
        return config, None
    if {example.question_id for example in train} - {example.question_id for example in labelled}:
        return config, SoftPhase(labelled, head, teachers, seed)
    info("All questions of the train split are labelled, so there are no soft labels to be learnt before.")
    left = None if phase.objective is None else phase.model_copy(update={"soft_labels": None})
    return config.model_copy(update={"pre_phase": left}), None


class SoftBatchMaker:
    """Cuts micro-batches out of an answered pool.

    Args:
        batches: makes batches of its examples.
        answers: what the probe says of the examples that they were chosen from.
        rows: [n] of these, the rows of the examples.
        config: how answers are softened, and which count.
    """

    def __init__(self, batches: BatchMaker, answers: ProbeAnswers, rows: Tensor, config: SoftLabelConfig) -> None:
        self._batches, self._answers, self._rows, self._config = batches, answers, rows, config

    @property
    def reads(self) -> bool:
        """Whether a micro-batch is worth making ahead of time."""
        return self._batches.reads

    def __call__(self, indices: Indices, step: int) -> JointBatch:
        """The micro-batch of the examples `indices` in step `step`."""
        rows = self._rows[torch.from_numpy(indices)]
        shares: Tensor | SoftTargets = self._answers.shares
        counts = self._answers.confidence[rows] >= self._config.threshold
        batch = self._batches(indices, step)
        return JointBatch(None, batch, tempered(shares[rows], self._config.temperature), counts, (0.0, 1.0))


def soft_objective(
    student: Student, criterion: Criterion | None, config: DistillConfig, phase: PrePhaseConfig
) -> JointObjective:
    """What a step of the phase minimises: the loss of soft labels, and what `criterion` distils beside it."""
    pool = PoolConfig(weight=0.0 if criterion is None else 1.0, soft_labels=phase.soft_labels)
    return JointObjective(
        student,
        None,
        pool,
        distils=criterion is not None,
        pool_criterion=criterion,
        forms=loss_forms(config),
    )


def without_schedule(batch: Batch | JointBatch) -> Batch | JointBatch:
    """A micro-batch as a look at held-out examples sees it: looks are compared with each other."""
    if isinstance(batch, Batch):
        return replace(batch, progress=None)
    return batch if batch.pool is None else replace(batch, pool=replace(batch.pool, progress=None))
