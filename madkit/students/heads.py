"""Task heads and task losses of the students (UNITER's shapes, https://github.com/ChenRocks/UNITER `model/vqa.py`,
`vcr.py`).

Every task has its loss in more than one form, because papers differ:

=============== ============ =================================================================================
task            form         loss of an example
=============== ============ =================================================================================
multiple choice ``softmax``  cross-entropy over the candidates, one score each (VisualBERT, ViLBERT)
multiple choice ``sigmoid``  binary cross-entropy of each candidate's score, summed (VL-BERT)
multiple choice ``binary``   two outputs each, wrong and right: cross-entropy of each candidate, summed (UNITER);
                             candidates are ranked by the output for right
classification  ``softmax``  cross-entropy
classification  ``bce``      binary cross-entropy, summed over the classes (UNITER's visual entailment)
VQA             ``bce``      binary cross-entropy on soft scores, summed over answers (UNITER, VILLA, LXMERT)
VQA             ``softmax``  cross-entropy with the scores as shares (VisualBERT's, up to a constant)
=============== ============ =================================================================================

The authors of VL-BERT, UNITER and VILLA take the mean over an example's candidates where the two forms above sum:
`LossForms.choice_mean`, which their recipes set, because rates of SGD, clipping and the weight of VILLA's KL go by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from madkit.students.interface import Encoded, StudentInputs

HeadKind = Literal["multiple-choice", "classification", "vqa"]
VqaLoss = Literal["bce", "softmax"]
ChoiceLoss = Literal["softmax", "sigmoid", "binary"]
ClassLoss = Literal["softmax", "bce"]


@dataclass(frozen=True, slots=True)
class LossForms:
    """Which form of the table above each kind of task has; one value, handed on to whoever computes a task loss."""

    vqa: VqaLoss = "bce"
    choice: ChoiceLoss = "softmax"
    classes: ClassLoss = "softmax"
    choice_mean: bool = False  # of "sigmoid" and "binary" choices: the mean over the candidates, not their sum

    def each_output(self, kind: HeadKind) -> bool:
        """Whether each output of a choice or class is judged by itself, right or wrong."""
        return (kind == "multiple-choice" and self.choice == "sigmoid") or (
            kind == "classification" and self.classes == "bce"
        )

    def of_candidates(self, each: Tensor) -> Tensor:
        """The loss [B] of a choice whose candidates are judged one by one, from their losses [B, C]."""
        return each.mean(-1) if self.choice_mean else each.sum(-1)


USUAL_FORMS = LossForms()


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """What a head decides between: `outputs` are label names or answers; empty for multiple choice.

    `binary`: two outputs for each candidate of a multiple choice, UNITER's form.
    """

    kind: HeadKind
    outputs: tuple[str, ...] = ()
    binary: bool = False

    @property
    def size(self) -> int:
        """Outputs of a sequence."""
        return (2 if self.binary else 1) if self.kind == "multiple-choice" else len(self.outputs)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as config.json holds them."""
        return {"kind": self.kind, "outputs": list(self.outputs), **({"binary": True} if self.binary else {})}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> HeadSpec:
        """What `as_dict` wrote. Raises KeyError or TypeError for anything else."""
        return cls(values["kind"], tuple(values["outputs"]), bool(values.get("binary", False)))


class StudentHead(nn.Module):
    """From an encoder's states to `spec.size` outputs a sequence. Families with heads of their own derive theirs."""

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, encoded: Encoded, inputs: StudentInputs) -> Tensor:
        """Outputs [S, spec.size]."""
        raise NotImplementedError


class TaskHead(StudentHead):
    """UNITER's: Linear, activation, LayerNorm, Linear on the pooled state."""

    def __init__(self, hidden_size: int, spec: HeadSpec) -> None:
        super().__init__(spec)
        width = 2 * hidden_size
        activation: nn.Module = nn.ReLU() if spec.kind == "multiple-choice" else nn.GELU()
        self.layers = nn.Sequential(
            nn.Linear(hidden_size, width), activation, nn.LayerNorm(width, eps=1e-12), nn.Linear(width, spec.size)
        )
        for module in self.layers:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, encoded: Encoded, inputs: StudentInputs) -> Tensor:
        """Outputs [S, spec.size] of the pooled states."""
        logits: Tensor = self.layers(encoded.pooled)
        return logits


class LinearHead(StudentHead):
    """Dropout and one Linear on the pooled state (VisualBERT, VL-BERT: `1` is the Linear)."""

    def __init__(self, hidden_size: int, spec: HeadSpec, dropout: float = 0.1) -> None:
        super().__init__(spec)
        last = nn.Linear(hidden_size, spec.size)
        nn.init.normal_(last.weight, std=0.02)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(nn.Dropout(dropout), last)

    def forward(self, encoded: Encoded, inputs: StudentInputs) -> Tensor:
        """Outputs [S, spec.size] of the pooled states."""
        logits: Tensor = self.layers(encoded.pooled)
        return logits


class MaskStateHead(LinearHead):
    """The same on the state of the [MASK] (VisualBERT's answers)."""

    def forward(self, encoded: Encoded, inputs: StudentInputs) -> Tensor:
        """Outputs [S, spec.size] of the states of the [MASK]."""
        logits: Tensor = self.layers(mask_states(encoded, inputs))
        return logits


def mask_states(encoded: Encoded, inputs: StudentInputs) -> Tensor:
    """Last states [S, H] of the [MASK] that stands before each sequence's last [SEP]."""
    place = inputs.last_text_index - 1
    return encoded.states[-1][torch.arange(place.shape[0], device=place.device), place]


def task_loss(
    kind: HeadKind,
    logits: Tensor,
    target: Tensor,
    forms: LossForms = USUAL_FORMS,
    *,
    pairs: Tensor | None = None,
) -> Tensor:
    """Loss of each example, [B]. `target`: index [B] long, or soft scores [B, K] for VQA.

    The forms are those of the table above; a question without an answer in the vocabulary costs nothing under VQA's
    "softmax". `pairs` [B, C, 2] are a binary head's outputs: where they are given, "binary" is the form.
    """
    if kind == "vqa" and forms.vqa == "softmax":
        share = target.float() / target.float().sum(-1, keepdim=True).clamp_min(1e-6)
        return -(share * logits.float().log_softmax(-1)).sum(-1)
    if kind == "vqa":
        return F.binary_cross_entropy_with_logits(logits.float(), target.float(), reduction="none").sum(-1)
    if kind == "multiple-choice" and pairs is not None:
        right = F.one_hot(target, logits.shape[1])
        each = F.cross_entropy(pairs.float().flatten(0, 1), right.flatten(), reduction="none").view_as(logits)
        return forms.of_candidates(each)
    if forms.each_output(kind):
        right = F.one_hot(target, logits.shape[1]).float()
        each = F.binary_cross_entropy_with_logits(logits.float(), right, reduction="none")
        return forms.of_candidates(each) if kind == "multiple-choice" else each.sum(-1)
    if kind == "multiple-choice" and forms.choice == "binary":
        raise ValueError("the binary form needs a head with two outputs for each candidate")
    return F.cross_entropy(logits.float(), target, reduction="none")


def gold_probability(kind: HeadKind, logits: Tensor, target: Tensor) -> Tensor:
    """Probability that the student gives the gold target, [B] in 0..1, without gradient.

    For VQA: the probability mass (softmax over answers) on answers weighted by their soft scores.
    """
    probabilities = logits.detach().float().softmax(-1)
    if kind == "vqa":
        return (probabilities * target.float()).sum(-1)
    return probabilities.gather(1, target[:, None]).squeeze(1)


def answer_scores(outputs: Sequence[str], answers: dict[str, float]) -> list[float]:
    """Soft scores of an answer vocabulary for one question."""
    return [answers.get(output, 0.0) for output in outputs]
