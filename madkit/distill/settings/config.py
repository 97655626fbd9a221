"""What a training run may be told: one typed schema behind the shipped arms, ``--config`` files and ``--set``.

The text of an arm never says ``null`` to mean "decide for me" without a rule written here: what is left open
(`OptimConfig.steps`, `PrePhaseConfig.seed`, ...) is filled by :func:`resolve` before the first step, and the
resolved values are what the run folder keeps.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from madkit.core.config import StrictModel
from madkit.distill.settings.arms import PERMUTED
from madkit.distill.settings.pool_config import PoolConfig, SoftLabelConfig
from madkit.distill.settings.teacher_settings import TeacherSettings, check_teachers
from madkit.mad.config import MADConfig

RateShape = Literal["linear", "constant", "cosine", "steps"]
Adaptation = Literal["named", "if-there", "required", "never"]
ARM_NAME = r"[a-z0-9][a-z0-9-]*"

# What a task's fine-tuning differs in where nothing is set. VQA's head decides between many answers and starts far from
# anything useful: papers train it faster than the rest (UNITER ten times, `lr_mul`; METER fifty times). The factor and
# the rate for the embedded benchmark were chosen on its development split for plain fine-tuning.
HEAD_RATES = {"vqa": 3.0}
LEARNING_RATES = {"vqa": 3e-4}
LEARNING_RATE = 2e-4


class OptimConfig(StrictModel):
    """Length, batches and optimiser of the supervised phase.

    A batch counts *examples*. A multiple-choice example is one subtask of one question (VCR: its answers or its
    rationales) and brings all of its candidates, four sequences; entailment and VQA bring one sequence each.
    """

    learning_rate: float | None = Field(None, gt=0, description="none: LEARNING_RATES of the task, else LEARNING_RATE")
    steps: int | None = Field(None, ge=1, description="optimiser steps; none: from epochs, min_steps and max_steps")
    epochs: float = Field(20.0, gt=0, description="passes in batches of batch_size, where steps is not given")
    min_steps: int = Field(400, ge=1, description="fewest steps that epochs come to")
    max_steps: int = Field(2000, ge=1, description="most steps that epochs come to, but no fewer than min_steps")
    extra_steps: int = Field(0, ge=0, description="added to the steps: a baseline with as many updates as another arm")
    batch_size: int = Field(32, ge=1, description="examples per step, where token_budget is not given")
    token_budget: int | None = Field(None, ge=1, description="padded tokens per step, from length-sorted buckets")
    bucket: int = Field(8192, ge=1, description="examples that are sorted by length together")
    micro_tokens: int = Field(32768, ge=1, description="padded tokens per forward pass; more are accumulated")
    warmup: float = Field(0.1, ge=0, le=1, description="share of the steps over which the rate rises from 0")
    warmup_steps: int | None = Field(None, ge=0, description="the same in steps, at most a tenth of them; goes first")
    schedule: RateShape = Field("linear", description="how the rate goes on after the warm-up: down to 0, or by steps")
    milestones: tuple[float, ...] = Field((), description="schedule: steps; where the rate falls to a tenth, in shares")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="what makes steps of gradients")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    weight_decay: float = Field(0.01, ge=0, description="of all weights but biases and norms")
    betas: tuple[float, float] = Field((0.9, 0.98), description="of adamw")
    clip: float = Field(1.0, ge=0, description="largest norm of the gradient; 0 does not clip")
    dropout: float | None = Field(None, ge=0, lt=1, description="none: as the student's own config says")
    vqa_loss: Literal["bce", "softmax"] = Field(
        "softmax", description="VQA only; bce is UNITER's, softmax VisualBERT's"
    )
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay of a moving average of the weights, which is looked at and exported"
    )
    head_rate: float | None = Field(
        None, gt=0, description="factor on the rate of freshly drawn weights (heads); none: HEAD_RATES of the task"
    )


class EvalConfig(StrictModel):
    """How the development split is used. No test suite is ever read while training."""

    every: int = Field(0, ge=0, description="steps between two looks at the development split; 0: only at the end")
    limit: int = Field(1000, ge=0, description="development examples that are scored; 0: all")
    keep: Literal["last", "best"] = Field("last", description="whose weights are exported: the last or the best look's")
    patience: int = Field(0, ge=0, description="looks without a gain after which the run stops; 0: never early")
    tokens: int = Field(16384, ge=1, description="padded tokens per forward pass")

    @model_validator(mode="after")
    def _looks_to_wait_for(self) -> EvalConfig:
        if self.patience and not self.every:
            raise ValueError("patience counts looks at the development split, so it needs eval.every as well")
        return self


class CheckpointConfig(StrictModel):
    """When a run writes down where it is."""

    every: int = Field(100, ge=1, description="steps between two checkpoints")
    keep: int = Field(2, ge=1, description="checkpoints that stay on disk")


class DivergenceConfig(StrictModel):
    """When a loss counts as run away (`madkit.distill.loop.divergence`), which stops the run. It changes no number."""

    factor: float = Field(5.0, gt=1, description="times the running median, and above where training began")
    steps: int = Field(25, ge=0, description="for so many steps in a row; 0: never stop")
    window: int = Field(200, ge=10, description="steps whose losses the median is taken of")


class ConfidenceConfig(StrictModel):
    """Where the teacher's confidence in the gold target comes from (method.md, confidence weighting)."""

    source: Literal["probe", "zero-shot"] = Field(
        "probe", description="a cross-fitted head on the global embeddings, or the cosine of image and candidates"
    )
    folds: int = Field(5, ge=2, description="parts of the labelled subset; nobody scores an image it was fitted on")
    teacher: Literal["unadapted", "same"] = Field(
        "unadapted",
        description="of an adapted teacher: who is asked, the teacher before its adaptation, which has not seen the "
        "labels, or the adapted one itself",
    )


class AdversarialConfig(StrictModel):
    """Adversarial fine-tuning after VILLA (Gan et al., 2020), for any student (`objective.adversarial`)."""

    steps: int = Field(3, ge=1, description="K, passes under attack for each step")
    modality: Literal["text", "image", "both", "alternate"] = Field(
        "text", description="word embeddings, region features, both at once, or one after the other"
    )
    rate_text: float = Field(1e-3, gt=0, description="length by which an example's word perturbation grows each time")
    rate_image: float = Field(1e-3, gt=0, description="the same for its region features")
    kl_weight: float = Field(1.5, ge=0, description="of the symmetric KL between attacked and clean predictions")
    max_norm: float = Field(0.0, ge=0, description="longest perturbation of an example; 0: no limit")


class PrePhaseConfig(StrictModel):
    """Affinity distillation on the unlabelled pool, before any label is read.

    The pool is the whole train split, its labels unread. `seed` none takes the run's seed, so that paired runs
    differ in one thing only; a number shares one pre-phase between runs of several seeds. With `soft_labels` the phase
    belongs to a run's labelled examples, whose questions then stay out of the pool, and a batch counts whole examples
    with all of their candidates.
    """

    steps: int = Field(1000, ge=1, description="optimiser steps at most")
    batch_size: int = Field(96, ge=1, description="sequences per step: image and text pairs")
    learning_rate: float = Field(3e-4, gt=0, description="of adamw")
    micro_tokens: int = Field(32768, ge=1, description="padded tokens per forward pass; more are accumulated")
    warmup: float = Field(0.1, ge=0, le=1, description="share of the steps over which the rate rises from 0")
    weight_decay: float = Field(0.01, ge=0, description="of all weights but biases and norms")
    betas: tuple[float, float] = Field((0.9, 0.98), description="of adamw")
    clip: float = Field(1.0, ge=0, description="largest norm of the gradient; 0 does not clip")
    dropout: float | None = Field(None, ge=0, lt=1, description="none: as the student's own config says")
    objective: MADConfig | None = Field(
        default_factory=lambda: MADConfig(weight=0.0, affinity_weight=1.0, weighting="uniform"),
        description="what is distilled: the affinity of sentence and regions at the middle layer; null beside "
        "soft_labels: nothing",
    )
    soft_labels: SoftLabelConfig | None = Field(
        None, description="a probe that was fitted on the run's labelled examples answers the pool"
    )
    pool: int = Field(0, ge=0, description="questions of the pool that are used; 0: all")
    held_out: float = Field(0.02, gt=0, lt=0.5, description="share of the pool's images on which to stop")
    eval_every: int = Field(100, ge=1, description="steps between two looks at the held-out images")
    patience: int = Field(3, ge=1, description="looks at the held-out KL without a gain after which it stops")
    seed: int | None = Field(None, description="of pool, order and dropout; none: the run's own")

    @model_validator(mode="after")
    def _nobody_is_sure_yet(self) -> PrePhaseConfig:
        if self.objective is None:
            if self.soft_labels is None:
                raise ValueError("objective is null and there are no soft_labels: nothing would be learnt")
            return self
        if self.objective.weighs:
            raise ValueError(
                f"objective.weighting is {self.objective.weighting}, but before any label is read nobody's confidence "
                "in the right answer is known: set it to uniform"
            )
        return self


class DistillConfig(StrictModel):
    """Everything that a run can be told beside its task, shots, student, teacher and seed."""

    arm: str = Field("", pattern=rf"^({ARM_NAME})?$", description="its name in run folders and tables")
    description: str = Field("", description="a line about it, for people")
    optim: OptimConfig = Field(default_factory=OptimConfig)
    eval: EvalConfig = Field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    divergence: DivergenceConfig = Field(default_factory=DivergenceConfig)
    trackers: tuple[str, ...] = Field((), description="tensorboard, wandb, ...: fed from metrics.jsonl")
    mad: MADConfig | None = None
    teachers: dict[str, TeacherSettings] = Field(
        default_factory=dict,
        description="several at once: a weight by name, or weight and mad (settings that differ); none: --teacher's",
    )
    confidence: ConfidenceConfig = Field(default_factory=ConfidenceConfig)
    pre_phase: PrePhaseConfig | None = None
    pool: PoolConfig | None = Field(None, description="unlabelled batches beside the labelled ones")
    adversarial: AdversarialConfig | None = None
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16: autocast, on CUDA devices")
    answers: str | None = Field(None, description="VQA only: file with the head's answers; none: from the train split")
    answer_match: Literal["normalized", "raw"] = Field(
        "normalized", description="VQA only: how annotators' answers are found among the head's (tasks.soft_targets)"
    )
    choice_loss: Literal["softmax", "sigmoid", "binary"] = Field(
        "softmax", description="multiple choice only; sigmoid is VL-BERT's, binary UNITER's (students.heads)"
    )
    choice_mean: bool = Field(
        False, description="choice_loss sigmoid and binary: mean over the candidates, as their authors have it; no: sum"
    )
    class_loss: Literal["softmax", "bce"] = Field("softmax", description="classification only; bce is UNITER's")
    teacher_bank: Literal["auto", "memory", "stream"] = Field(
        "auto", description="the teacher's vectors: held in memory, or read batch by batch; auto: by what is free"
    )
    permute_teacher: bool = Field(False, description="control: every image is given another image's teacher tokens")
    adaptation: Adaptation = Field(
        "named",
        description="whose cache is read where teachers were adapted: an adapted one's only where --teacher names it "
        "(named), that of a teacher adapted on this very subset, where there is one (if-there) or else none at all "
        "(required), or an untouched one's in any case (never)",
    )
    visual_input: Literal["own", "teacher"] = Field(
        "own",
        description="what the student sees with: what it was made for, or the teacher's tokens in the place of regions "
        "(clip-vil), which the teacher has to compute again for every image that is answered about",
    )

    @property
    def distils(self) -> bool:
        """Whether anything is learnt from a teacher."""
        return self.mad is not None or self.pre_phase is not None or self.pool is not None

    @property
    def needs_cache(self) -> bool:
        """Whether a teacher's tokens are read at all."""
        return self.distils or self.visual_input == "teacher"

    @property
    def weighs(self) -> bool:
        """Whether labelled examples are weighed by the teachers' confidence, by one of several teachers at least."""
        taught = [] if self.mad is None else [one.applied(self.mad) for one in self.teachers.values() if one.weight > 0]
        return any(mad.weighs for mad in (self.mad, *taught) if mad is not None)

    def probes_pool(self, *, unlabelled: bool) -> bool:
        """Whether a probe that was fitted on the labelled examples answers a pool.

        `unlabelled`: whether the train split has questions without a label; soft labels are for those alone.
        """
        before = unlabelled and self.pre_phase is not None and self.pre_phase.soft_labels is not None
        if self.pool is None:
            return before
        there = unlabelled or self.pool.soft_labels is None
        return before or (there and self.pool.asks_probe(weighs=self.weighs))

    @model_validator(mode="after")
    def _teachers_that_can_be_meant(self) -> DistillConfig:
        check_teachers(self.teachers, self.mad)
        return self

    @model_validator(mode="after")
    def _something_of_the_pool(self) -> DistillConfig:
        if self.pool is not None and self.pool.soft_labels is None and self.pool.distilled(self.mad) is None:
            raise ValueError("pool: nothing is learnt from it: give it an objective or soft_labels, or the run a mad")
        return self

    @model_validator(mode="after")
    def _something_to_permute(self) -> DistillConfig:
        if self.permute_teacher and not self.distils:
            raise ValueError("permute_teacher: nothing is distilled here, so there is nothing to permute")
        return self


def resolve(config: DistillConfig, *, task: str, n_examples: int, seed: int) -> DistillConfig:
    """`config` with every open value filled: steps from the size of the subset, rates by the task's kind, seeds."""
    optim = config.optim
    if optim.steps is None:
        per_epoch = math.ceil(n_examples / min(optim.batch_size, n_examples))
        steps = round(optim.epochs * per_epoch)
        steps = min(max(steps, optim.min_steps), max(optim.max_steps, optim.min_steps))
        config = config.model_copy(update={"optim": optim.model_copy(update={"steps": steps})})
    if optim.extra_steps and config.optim.steps is not None:
        longer = {"steps": config.optim.steps + optim.extra_steps, "extra_steps": 0}
        config = config.model_copy(update={"optim": config.optim.model_copy(update=longer)})
    if config.permute_teacher and not config.arm.endswith(PERMUTED):
        config = config.model_copy(update={"arm": config.arm + PERMUTED})
    if config.optim.warmup_steps is not None and config.optim.steps is not None:
        share = min(0.1, config.optim.warmup_steps / config.optim.steps)
        config = config.model_copy(update={"optim": config.optim.model_copy(update={"warmup": share})})
    for name, value in (
        ("head_rate", HEAD_RATES.get(task, 1.0)),
        ("learning_rate", LEARNING_RATES.get(task, LEARNING_RATE)),
    ):
        if getattr(config.optim, name) is None:
            config = config.model_copy(update={"optim": config.optim.model_copy(update={name: value})})
    if config.pre_phase is not None and config.pre_phase.seed is None:
        phase = config.pre_phase.model_copy(update={"seed": seed})
        config = config.model_copy(update={"pre_phase": phase})
    return config
