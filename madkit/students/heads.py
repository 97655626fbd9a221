"""Task heads and task losses of the students (UNITER's shapes, https://github.com/ChenRocks/UNITER `model/vqa.py`,
`vcr.py`).

Multiple choice scores every candidate and takes a softmax over them (UNITER's own binary form weighs each candidate
alone; the softmax form is VisualBERT's and ViLBERT's). VQA has two forms: binary cross-entropy on soft scores, summed
over answers (UNITER, VILLA, LXMERT), and cross-entropy with the scores as shares (VisualBERT's).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

HeadKind = Literal["multiple-choice", "classification", "vqa"]
VqaLoss = Literal["bce", "softmax"]


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """What a head decides between: `outputs` are label names or answers; empty for multiple choice."""

    kind: HeadKind
    outputs: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as config.json holds them."""
        return {"kind": self.kind, "outputs": list(self.outputs)}


class TaskHead(nn.Module):
    """Linear, activation, LayerNorm, Linear on the pooled state."""

    def __init__(self, hidden_size: int, spec: HeadSpec) -> None:
        super().__init__()
        self.spec = spec
        width = 2 * hidden_size
        outputs = 1 if spec.kind == "multiple-choice" else len(spec.outputs)
        activation: nn.Module = nn.ReLU() if spec.kind == "multiple-choice" else nn.GELU()
        self.layers = nn.Sequential(
            nn.Linear(hidden_size, width), activation, nn.LayerNorm(width, eps=1e-12), nn.Linear(width, outputs)
        )
        for module in self.layers:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, pooled: Tensor, n_candidates: int) -> Tensor:
        """Logits of pooled states [S, H]: [B, C] for multiple choice, else [B, K]."""
        logits: Tensor = self.layers(pooled)
        return logits.view(-1, n_candidates) if self.spec.kind == "multiple-choice" else logits


def task_loss(kind: HeadKind, logits: Tensor, target: Tensor, *, vqa_loss: VqaLoss = "bce") -> Tensor:
    """Loss of each example, [B]. `target`: index [B] long, or soft scores [B, K] for VQA.

    `vqa_loss`: "bce" sums binary cross-entropy over all answers; "softmax" is cross-entropy with the scores as shares,
    zero for a question without an answer in the vocabulary.
    """
    if kind == "vqa" and vqa_loss == "softmax":
        share = target.float() / target.float().sum(-1, keepdim=True).clamp_min(1e-6)
        return -(share * logits.float().log_softmax(-1)).sum(-1)
    if kind == "vqa":
        return F.binary_cross_entropy_with_logits(logits.float(), target.float(), reduction="none").sum(-1)
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
