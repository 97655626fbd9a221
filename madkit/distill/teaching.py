"""What a run learns from: the teacher's side of its examples, their confidence, the criterion, and the batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from madkit.core.console import info
from madkit.core.seeds import derive_seed
from madkit.distill.batches.examples import ExampleSet
from madkit.distill.batches.micro_batch import BatchMaker
from madkit.distill.batches.order import Indices, Order
from madkit.distill.loop.contract import Attack
from madkit.distill.objective.adversarial import Adversary
from madkit.distill.objective.objective import Objective, loss_forms
from madkit.distill.pool.joint_objective import JointAdversary, JointBatchMaker, JointObjective
from madkit.distill.pool.joint_pool import JointOrder, JointSet
from madkit.distill.settings.config import DistillConfig
from madkit.distill.settings.pool_config import PoolConfig
from madkit.distill.teacher.bank_room import Room
from madkit.distill.teacher.confidence import FILE as CONFIDENCE
from madkit.distill.teacher.confidence import teacher_confidence
from madkit.distill.teacher.criterion import Criterion, check_tags
from madkit.distill.teacher.sides import asked_side, criterion_of, side_of
from madkit.distill.teacher.teachers import Teachers
from madkit.mad.criterion import MADCriterion
from madkit.students.student import Student


@dataclass(frozen=True, slots=True)
class Teaching:
    """What the steps of a run minimise and what they read.

    Attributes:
        objective: student and criterion as one module.
        examples: the labelled examples.
        batches: cuts micro-batches out of the labelled examples.
        untaught: labelled examples that no teacher says anything about, because caches lack their image or texts.
        pool: the pool beside them, where there is one.
    """

    objective: Objective
    examples: ExampleSet
    batches: BatchMaker
    untaught: int = 0
    pool: PoolTeaching | None = None

    def stream(self, order: Order) -> Stream:
        """What the loop reads, given the order of the labelled examples."""
        if self.pool is None:
            examples = self.examples
            return Stream(order, self.batches, examples.ids, examples.lengths, examples.sequences)
        return self.pool.stream(order, self.batches)

    def adversary(self, config: DistillConfig) -> Attack | None:
        """What makes several passes of each micro-batch, where the configuration asks for it."""
        if config.adversarial is None:
            return None
        adversary = Adversary(self.objective, config.adversarial)
        return JointAdversary(self.objective, adversary) if isinstance(self.objective, JointObjective) else adversary


class Stream(NamedTuple):
    """What the loop reads: global batches as places, micro-batches of them, and what is known of each place."""

    order: Order
    batches: Callable[[Indices, int], Any]
    ids: Sequence[str]
    lengths: Indices
    sequences: Indices


@dataclass(frozen=True, slots=True)
class PoolTeaching:
    """The pool's part of what a run learns from.

    Attributes:
        joint: the examples.
        batches: cuts micro-batches out of all of them, without targets.
        config: the pool's settings.
        steps: how many steps have a pool batch.
        seed: of the pool's order.
    """

    joint: JointSet
    batches: BatchMaker
    config: PoolConfig
    steps: int
    seed: int

    def stream(self, order: Order, labelled: BatchMaker) -> Stream:
        """Joint batches, given the order and the batches of the labelled examples."""
        joint = self.joint
        both = JointOrder(order, joint, until=self.steps, seed=self.seed)
        make = JointBatchMaker(labelled, self.batches, joint, both, self.config)
        lengths, sequences = joint.by_place(joint.examples.lengths), joint.by_place(joint.examples.sequences)
        return Stream(both, make, joint.ids, lengths, sequences)


def make_teaching(
    config: DistillConfig,
    examples: ExampleSet,
    student: Student,
    teachers: Teachers | None,
    *,
    seed: int,
    threads: int,
    folder: Path,
    joint: JointSet | None = None,
    device: torch.device | str = "cpu",
) -> Teaching:
    """Bring together what a run learns from.

    Args:
        config: resolved configuration.
        examples: the labelled examples.
        student: the student, with its head.
        teachers: the teachers; None for arms without one.
        seed: the run's seed.
        threads: readers.
        folder: the run's folder, where the teachers' confidence is written.
        joint: the labelled examples and the pool beside them; None without a pool.
        device: of the training.

    Raises:
        CacheError: a cache lacks images or texts; the hint is the command that extracts them.
        ConfigError: terms or weights that these teachers or this task cannot have.
    """
    mad, steps = config.mad, config.optim.steps
    room = Room(config.teacher_bank, device)
    assert steps is not None
    teacher = confidence = None
    criterion: Criterion | None = None
    untaught = 0
    held = examples if joint is None else joint.examples
    for taught in (mad, None if joint is None or config.pool is None else config.pool.own):
        if taught is not None:
            check_tags(taught, held)
    own = None if joint is None or config.pool is None else config.pool.own
    permute = derive_seed(seed, "permute") if config.permute_teacher else None
    if mad is not None and teachers is not None:
        also = () if own is None else (own,)
        teacher = side_of(held, teachers, mad, also=also, threads=threads, permute_seed=permute, room=room)
        untaught = teacher.untaught
        if untaught:
            info(f"{untaught} of {len(examples)} examples learn from their labels alone: {teachers.lacks}.")
        criterion = criterion_of(teacher, mad, student, seed)
        if weighs_by_confidence(criterion):
            sure = asked_side(teacher, examples, teachers, threads=threads, permute_seed=permute, room=room)
            path = folder / CONFIDENCE
            confidence = teacher_confidence(
                examples, sure, config.confidence, seed=derive_seed(seed, "probe"), path=path
            )
    forms = loss_forms(config)
    batches = BatchMaker(examples, steps, teacher=teacher, confidence=confidence)
    if joint is None or config.pool is None:
        objective = Objective(student, criterion, forms=forms)
        return Teaching(objective, examples, batches, untaught)
    side, pool_criterion = teacher, None
    if own is not None and teachers is not None:
        if side is None or not teachers.one:
            side = side_of(held, teachers, own, own=False, threads=threads, permute_seed=permute, room=room)
        pool_criterion = criterion_of(side, own, student, derive_seed(seed, "pool"))
    distils = config.pool.distilled(mad) is not None
    pool = PoolTeaching(
        joint,
        BatchMaker(held, steps, teacher=side if distils else None, one_text=own is not None),
        config.pool,
        config.pool.steps(steps),
        seed,
    )
    objective = JointObjective(
        student, criterion, config.pool, distils=distils, pool_criterion=pool_criterion, forms=forms
    )
    return Teaching(objective, examples, batches, untaught, pool)


def weighs_by_confidence(criterion: Criterion) -> bool:
    """Whether a weight of a criterion, or of one of several, asks for the teachers' confidence."""
    parts = (part for part in criterion.modules() if isinstance(part, MADCriterion))
    return any(part.config.weighs for part in parts)
