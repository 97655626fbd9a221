"""What a run may be told about its unlabelled pool: the joint form of distillation, and soft labels."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from madkit.core.config import StrictModel
from madkit.mad.config import MADConfig, Schedule


class SoftLabelConfig(StrictModel):
    """A probe on the teacher's embeddings, fitted on the labelled subset, answers the pool; the student learns that."""

    weight: float = Field(1.0, gt=0, description="factor of the soft labels' loss, beside 1 for the task loss")
    temperature: float = Field(
        1.0, gt=0, description="of the probe's answers: below 1 makes them sharper, above 1 softer"
    )
    threshold: float = Field(
        0.0, ge=0, le=1, description="an example counts if the probe's best guess is at least this probable"
    )
    probe: Literal["linear", "mlp"] = Field("linear", description="form of the probe")
    features: Literal["auto", "global", "interaction"] = Field(
        "auto",
        description="what the probe reads: global vectors, how well each word is found among the patches, or whatever "
        "of the two, or both, answers the labelled subset best out of fold",
    )
    folds: int = Field(5, ge=2, description="parts of the labelled subset; nobody scores an image it was fitted on")
    answers: int = Field(32, ge=1, description="VQA only: the probe's most probable answers that are kept")


class PoolConfig(StrictModel):
    """The unlabelled pool in its joint form: beside each labelled batch, one of the train split without its labels.

    With `soft_labels` the labelled questions stay out of the pool: they have their gold labels.
    """

    batch_size: int = Field(
        96, ge=1, description="sequences per step; an example brings all of its candidates, VCR's four sequences"
    )
    limit: int = Field(0, ge=0, description="questions of the pool that are used; 0: all")
    objective: MADConfig | None = Field(
        None, description="what is distilled on the pool; none: as `mad` on the labelled batch, with the same heads"
    )
    weight: float = Field(1.0, ge=0, description="factor of the distillation on the pool; 0 is off")
    soft_labels: SoftLabelConfig | None = None
    schedule: Schedule = Field("constant", description="of both factors, over the part of training that has a pool")
    warmup: float = Field(0.0, ge=0, le=1, description="share of that part over which they rise from 0")
    final: float = Field(0.0, ge=0, le=1, description="share of them that is left at its end (linear, cosine)")
    until: float = Field(1.0, gt=0, le=1, description="share of training after which there is no pool batch any more")
    rationale_answer: Literal["probe", "drawn"] | None = Field(
        None,
        description="VCR: the answer in a rationale's context, where the files name the right one: the probe's best "
        "guess, or a candidate that is drawn blindly; none: the guess where there is a probe",
    )

    @model_validator(mode="after")
    def _something_to_learn(self) -> PoolConfig:
        if self.weight == 0 and self.soft_labels is None:
            raise ValueError("weight is 0 and there are no soft_labels: nothing would be learnt from the pool")
        if self.weight == 0 and self.objective is not None:
            raise ValueError("weight is 0, so objective would never count: leave out one of them")
        return self

    @property
    def own(self) -> MADConfig | None:
        """The pool's own objective, where one counts."""
        return None if self.weight == 0 else self.objective

    def steps(self, total: int) -> int:
        """How many of a run's steps have a pool batch, at least one."""
        return max(1, round(self.until * total))

    def distilled(self, mad: MADConfig | None) -> MADConfig | None:
        """What is distilled on the pool, given the run's own `mad`; None: nothing."""
        if self.weight == 0:
            return None
        return mad if self.objective is None else self.objective

    def asks_probe(self, *, weighs: bool) -> bool:
        """Whether a probe has to be fitted: for soft labels, for weights by its confidence, or for VCR's contexts.

        `weighs`: whether the run's own criterion weighs examples, for one of its teachers at least; it is the pool's,
        too, where that has no objective of its own.
        """
        if self.objective is not None:
            weighs = self.objective.weighs
        return self.soft_labels is not None or (self.weight > 0 and weighs) or self.rationale_answer == "probe"
