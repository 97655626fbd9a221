"""What a run learns from: the teacher's side of its examples, their confidence, the criterion, and the batches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from madkit.core.console import info
from madkit.core.seeds import derive_seed
from madkit.distill.confidence import FILE as CONFIDENCE
from madkit.distill.confidence import teacher_confidence
from madkit.distill.config import DistillConfig
from madkit.distill.examples import ExampleSet
from madkit.distill.objective import BatchMaker, Criterion, Objective
from madkit.distill.teacher_sides import asked_side, criterion_of, side_of
from madkit.distill.teachers import Teachers
from madkit.mad.criterion import MADCriterion
from madkit.students.student import Student


@dataclass(frozen=True, slots=True)
class Teaching:
    """What the steps of a run minimise and what they read.

    Attributes:
        objective: student and criterion as one module.
        batches: cuts micro-batches out of the labelled examples.
        untaught: labelled examples that no teacher says anything about, because caches lack their image or texts.
    """

    objective: Objective
    batches: BatchMaker
    untaught: int = 0


def make_teaching(
    config: DistillConfig,
    examples: ExampleSet,
    student: Student,
    teachers: Teachers | None,
    *,
    seed: int,
    threads: int,
    folder: Path,
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

    Raises:
        CacheError: a cache lacks images or texts; the hint is the command that extracts them.
        ConfigError: terms or weights that these teachers or this task cannot have.
    """
    mad, steps = config.mad, config.optim.steps
    assert steps is not None
    teacher = confidence = None
    criterion: Criterion | None = None
    untaught = 0
    if mad is not None and teachers is not None:
        permute = derive_seed(seed, "permute") if config.permute_teacher else None
        teacher = side_of(examples, teachers, mad, threads=threads, permute_seed=permute)
        untaught = teacher.untaught
        if untaught:
            info(f"{untaught} of {len(examples)} examples learn from their labels alone: {teachers.lacks}.")
        criterion = criterion_of(teacher, mad, student, seed)
        if weighs_by_confidence(criterion):
            sure = asked_side(teacher, examples, teachers, threads=threads, permute_seed=permute)
            path = folder / CONFIDENCE
            confidence = teacher_confidence(
                examples, sure, config.confidence, seed=derive_seed(seed, "probe"), path=path
            )
    objective = Objective(
        student,
        criterion,
        vqa_loss=config.optim.vqa_loss,
        choice_loss=config.choice_loss,
        class_loss=config.class_loss,
    )
    return Teaching(objective, BatchMaker(examples, steps, teacher=teacher, confidence=confidence), untaught)


def weighs_by_confidence(criterion: Criterion) -> bool:
    """Whether a weight of a criterion, or of one of several, asks for the teachers' confidence."""
    parts = (part for part in criterion.modules() if isinstance(part, MADCriterion))
    return any(part.config.weighting != "uniform" and bool(part.config.term_weights) for part in parts)
