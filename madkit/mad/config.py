"""What the distillation objective may be told: one schema for every arm, ablation and user file.

This module stays free of torch, so that ``madkit config`` can read and print it at once.
"""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
from pydantic import Field

from madkit.core.config import StrictModel

Selector = Literal["all", "global", "adaptive", "random"]
Distance = Literal["cosine", "smooth-l1", "mse", "info-nce"]
Weighting = Literal["uniform", "teacher-only", "teacher-student"]
Schedule = Literal["constant", "linear", "cosine"]

_Coefficient = Annotated[float, Field(ge=0)]


class MADConfig(StrictModel):
    """Every switch of the objective (docs/method.md has the formulas; each name below is one of their symbols).

    The token part (text, region, tag and global terms) is multiplied by ``weight``, the affinity part by
    ``affinity_weight``. Either may be zero, not both.
    """

    # Which tokens
    tokens: Selector = Field("adaptive", description="which tokens are taught, beside the global one")
    k_text: int = Field(4, ge=0, description="text tokens kept per sequence (adaptive, random)")
    k_region: int = Field(4, ge=0, description="regions kept per sequence (adaptive, random)")
    k_tag: int = Field(4, ge=0, description="object tags kept per sequence (adaptive, random)")
    fraction: float | None = Field(
        None, gt=0, le=1, description="share of the tokens kept in each modality; replaces the three k"
    )
    relevance: Literal["auto", "shared", "unrelated"] = Field(
        "auto",
        description="what relevance is measured against: the other modality's global embedding (shared space) "
        "or the own one (unrelated teachers); auto asks the teacher",
    )
    candidates: Literal["gold", "all"] = Field(
        "gold", description="multiple choice: teach the tokens of the gold candidate's sequence, or of all candidates"
    )
    tag_targets: bool = Field(True, description="object tags take the embedding of their region")

    # How much each example counts
    weighting: Weighting = Field(
        "teacher-student",
        description="by the teacher's confidence over the student's, by the teacher's alone, or alike",
    )
    gamma: float = Field(1.0, ge=0, description="exponent of the confidence ratio")
    w_max: float = Field(3.0, gt=0, description="largest weight of an example, before the batch's mean becomes 1")
    probe_threshold: float = Field(
        0.5, ge=0, le=1, description="an unlabelled example counts if the probe's best guess is at least this probable"
    )

    # What is compared, where
    distance: Distance = Field("cosine", description="between a projected state and its target")
    standardise: Literal["auto", "always", "never"] = Field(
        "auto", description="targets scaled to mean 0, variance 1 per channel; auto: for smooth-l1 and mse only"
    )
    smooth_l1_beta: float = Field(1.0, gt=0, description="where smooth-l1 turns from a square to a line")
    temperature: float = Field(0.07, gt=0, description="of info-nce")
    negatives: int = Field(256, ge=1, description="most tokens of the batch that one info-nce token is told apart from")
    head: Literal["linear", "mlp"] = Field("linear", description="what projects student states to the teacher's width")
    layer: int | tuple[int, ...] = Field(
        -1, description="student layer(s) to distil into: 0 is the embedding layer's output, -1 the last layer's"
    )
    global_source: Literal["cls", "query", "mean", "token"] = Field(
        "cls",
        description="student state that takes the global embeddings: [CLS], the sentence's query token ([SEP]), the "
        "mean of the text states, or a distillation token that only reads and is dropped after training",
    )

    # Coefficients of the terms inside the token part
    text_weight: _Coefficient = Field(1.0, description="share of text tokens in an example's mean")
    region_weight: _Coefficient = Field(1.0, description="the same of regions")
    tag_weight: _Coefficient = Field(1.0, description="the same of object tags")
    global_image_weight: _Coefficient = Field(1.0, description="the same of the image's global embedding")
    global_text_weight: _Coefficient = Field(1.0, description="the same of the text's global embedding")

    # lambda over training
    weight: float = Field(0.1, ge=0, description="lambda: factor of the token part")
    schedule: Schedule = Field("constant", description="how lambda goes on after its warm-up")
    warmup: float = Field(0.0, ge=0, le=1, description="share of training over which lambda rises from 0")
    final: float = Field(0.0, ge=0, le=1, description="share of lambda that is left at the end (linear, cosine)")

    # Affinity distillation
    affinity_weight: float = Field(0.0, ge=0, description="factor of the affinity part; 0 is off")
    affinity_form: Literal["sentence", "word", "both"] = Field(
        "sentence", description="what is set against the regions: the whole sentence, its words, or both"
    )
    affinity_layer: int | None = Field(None, description="student layer of the affinity; none: the middle one")
    affinity_kind: Literal["relative", "absolute"] = Field(
        "relative",
        description="relative: which region a sentence is about, a softmax over regions; absolute: whether each region "
        "is what it is about, a sigmoid per region, which also says that none is",
    )
    affinity_tau: float | None = Field(
        20.0,
        gt=0,
        le=1000,
        description="factor of the teacher's cosines before its softmax or sigmoid; none (absolute only): measured",
    )
    affinity_threshold: float | None = Field(
        None, ge=-1, le=1, description="absolute: cosine at which a region is as likely meant as not; none: measured"
    )
    affinity_dim: int = Field(64, ge=1, description="width of the query and key projections")
    affinity_scheduled: bool = Field(False, description="lambda's schedule and warm-up also scale the affinity part")

    @pydantic.field_validator("layer")
    @classmethod
    def _distinct_layers(cls, value: int | tuple[int, ...]) -> int | tuple[int, ...]:
        if isinstance(value, tuple) and (not value or len(set(value)) != len(value)):
            raise ValueError("name at least one layer, and none twice")
        return value

    @pydantic.model_validator(mode="after")
    def _something_to_learn(self) -> MADConfig:
        if self.weight == 0 and self.affinity_weight == 0:
            raise ValueError("weight and affinity_weight are both 0: nothing would be distilled")
        if self.weight > 0 and self.term_total == 0:
            raise ValueError(f"weight is {self.weight}, but tokens: {self.tokens} leaves no term with a weight above 0")
        if self.affinity_tau is None and self.affinity_kind == "relative":
            raise ValueError("affinity_tau: give a number, it is measured for affinity_kind: absolute alone")
        word = self.affinity_weight > 0 and self.affinity_form != "sentence"
        if word and self.fraction is None and self.k_text == 0:
            raise ValueError(f"affinity_form: {self.affinity_form} needs words: set k_text above 0 or give a fraction")
        return self

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers to distil into, as a tuple."""
        return (self.layer,) if isinstance(self.layer, int) else self.layer

    @property
    def standardised(self) -> bool:
        """Whether targets are standardised before they are compared."""
        if self.standardise == "auto":
            return self.distance in ("smooth-l1", "mse")
        return self.standardise == "always"

    @property
    def term_weights(self) -> dict[str, float]:
        """Coefficient of every term of the token part that is switched on, by the name it has in the output."""
        if self.weight == 0:
            return {}
        weights = {"global_image": self.global_image_weight, "global_text": self.global_text_weight}
        if self.tokens != "global":
            weights["token_text"] = self.text_weight if self._keeps(self.k_text) else 0.0
            weights["token_region"] = self.region_weight if self._keeps(self.k_region) else 0.0
            weights["token_tag"] = self.tag_weight if self.tag_targets and self._keeps(self.k_tag) else 0.0
        return {name: value for name, value in weights.items() if value > 0}

    @property
    def weighs(self) -> bool:
        """Whether examples are weighed by somebody's confidence in their gold targets."""
        return self.weighting != "uniform" and bool(self.term_weights)

    @property
    def distillation_token(self) -> bool:
        """Whether a token of its own takes the global embeddings."""
        return self.global_source == "token" and not {"global_image", "global_text"}.isdisjoint(self.term_weights)

    @property
    def term_total(self) -> float:
        """Sum of the coefficients of the token part."""
        return sum(self.term_weights.values())

    def _keeps(self, k: int) -> bool:
        return self.tokens == "all" or self.fraction is not None or k > 0
