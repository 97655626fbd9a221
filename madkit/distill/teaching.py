"""What a run learns from: the teacher's side of its examples, their confidence, the criterion, and the batches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from madkit.cache import TokenCache
from madkit.core.console import info
from madkit.core.seeds import derive_seed
from madkit.distill.confidence import FILE as CONFIDENCE
from madkit.distill.confidence import teacher_confidence
from madkit.distill.config import DistillConfig
from madkit.distill.examples import ExampleSet
from madkit.distill.objective import BatchMaker, Objective, TeacherSide, make_criterion
from madkit.mad.config import MADConfig
from madkit.mad.criterion import MADCriterion
from madkit.students.student import Student


@dataclass(frozen=True, slots=True)
class Teaching:
    """What the steps of a run minimise and what they read.

    Attributes:
        objective: student and criterion as one module.
        batches: cuts micro-batches out of the labelled examples.
        untaught: labelled examples that the teacher says nothing about, because the cache lacks their image or texts.
    """

    objective: Objective
    batches: BatchMaker
    untaught: int = 0


def make_teaching(
    config: DistillConfig,
    examples: ExampleSet,
    student: Student,
    cache: TokenCache | None,
    *,
    seed: int,
    threads: int,
    folder: Path,
    asked: TokenCache | None = None,
) -> Teaching:
    """Bring together what a run learns from.

    Args:
        config: resolved configuration.
        examples: the labelled examples.
        student: the student, with its head.
        cache: the teacher's cache; None for arms without a teacher.
        seed: the run's seed.
        threads: readers.
        folder: the run's folder, where the teacher's confidence is written.
        asked: the cache that the teacher's confidence comes from (`adaptation.asked_cache`); None: `cache`.

    Raises:
        CacheError: the cache lacks images or texts; the hint is the command that extracts them.
        ConfigError: terms or weights that this teacher or task cannot have.
    """
    mad, steps = config.mad, config.optim.steps
    assert steps is not None
    teacher = confidence = None
    criterion: MADCriterion | None = None
    untaught = 0
    if mad is not None and cache is not None:
        permute = derive_seed(seed, "permute") if config.permute_teacher else None
        teacher = TeacherSide(examples, cache, mad, threads=threads, permute_seed=permute)
        untaught = teacher.untaught
        if untaught:
            info(f"{untaught} of {len(examples)} examples learn from their labels alone: {lacks(cache)}.")
        criterion = make_criterion(mad, student, teacher, seed)
        if mad.weighting != "uniform" and mad.term_weights:
            sure, said_by = teacher, cache
            if asked is not None:
                globals_only = MADConfig(tokens="global", weighting="uniform")
                sure, said_by = TeacherSide(examples, asked, globals_only, threads=threads, permute_seed=permute), asked
            confidence = teacher_confidence(
                examples,
                sure,
                config.confidence,
                seed=derive_seed(seed, "probe"),
                logit_scale=said_by.logit_scale,
                path=folder / CONFIDENCE,
            )
    objective = Objective(
        student,
        criterion,
        vqa_loss=config.optim.vqa_loss,
        choice_loss=config.choice_loss,
        class_loss=config.class_loss,
    )
    return Teaching(objective, BatchMaker(examples, steps, teacher=teacher, confidence=confidence), untaught)


def lacks(cache: TokenCache | None) -> str:
    """What the cache has no values for, as a clause; empty where it has all."""
    if cache is None or not (cache.images.absent or cache.texts.absent):
        return ""
    images, texts = len(cache.images.absent), len(cache.texts.absent)
    return f"the cache was completed without {images:,} images and {texts:,} texts"
