"""How much each example counts: the teacher's confidence in the gold target against the student's."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from madkit.mad.config import Weighting

WholeBatch = Callable[[Tensor, Tensor], Tensor | None]
"""From sum and number of the raw weights of a part of a batch to the mean over all of it; None: the part's own."""

_FLOOR = 1e-6  # smallest student confidence: keeps the ratio finite where the student is sure of something wrong


def gold_probability(logits: Tensor, targets: Tensor) -> Tensor:
    """Probability of the gold target under a softmax, without gradient.

    Args:
        logits: [B, K] scores of classes, candidates or answers.
        targets: [B] long labels (a negative label means none), or [B, K] soft targets in [0, 1] such as VQA's answer
            scores, for which it is the expected score.

    Returns:
        [B] float32. Without a gold target (negative label, empty soft target): the probability of the best guess.
    """
    probabilities = logits.detach().float().softmax(-1)
    best = probabilities.amax(-1)
    if targets.dim() == 1:
        gold = probabilities.gather(-1, targets.clamp_min(0).unsqueeze(-1)).squeeze(-1)
        return torch.where(targets >= 0, gold, best)
    gold = (probabilities * targets.float()).sum(-1)
    return torch.where((targets > 0).any(-1), gold, best)


def zero_shot_confidence(image_global: Tensor, text_global: Tensor, label: Tensor, *, logit_scale: float) -> Tensor:
    """Teacher confidence for multiple choice in a shared space: softmax over candidates of scale * cos(v_0, l_0).

    Args:
        image_global: [B, D].
        text_global: [B, C, D] of the candidates.
        label: [B] long gold candidate; negative where unknown (then the best candidate's probability is given).
        logit_scale: the teacher's own inverse temperature.

    Returns:
        [B] float32.
    """
    image = F.normalize(image_global.float(), dim=-1)
    text = F.normalize(text_global.float(), dim=-1)
    return gold_probability(logit_scale * (text @ image.unsqueeze(-1)).squeeze(-1), label)


def confidence_of_all(n: int, known: Tensor, confidence: Tensor) -> Tensor:
    """Confidence [n] of all examples, given that of the examples `known` [m] to the teacher; any other takes the mean.

    Of the others there are no vectors that a head could score.
    """
    if len(known) == n:
        return confidence
    whole = confidence.mean().expand(n).clone()
    whole[known] = confidence
    return whole


@torch.no_grad()
def confidence_weights(
    teacher_confidence: Tensor,
    student_confidence: Tensor | None = None,
    *,
    mode: Weighting = "teacher-student",
    gamma: float = 1.0,
    w_max: float = 3.0,
    labelled: Tensor | None = None,
    probe_threshold: float = 0.0,
    whole: WholeBatch | None = None,
) -> Tensor:
    """Weight of each example in the distillation term.

    Labelled: w = clip((c_T / c_S) ** gamma, 0, w_max), then divided by the mean over the batch's labelled examples.
    ``teacher-only`` leaves c_S out, ``uniform`` gives 1. Unlabelled: there is no gold target, so c_T is the probability
    of the teacher's best guess; the weight is 1 where that reaches `probe_threshold`, else 0 (``uniform``: 1).

    Args:
        teacher_confidence: [B] c_T in [0, 1].
        student_confidence: [B] c_S in [0, 1], for ``teacher-student``.
        mode: which confidences count.
        gamma: exponent.
        w_max: cap before normalisation.
        labelled: [B] bool: those that have a share in the mean; None: all.
        probe_threshold: see above.
        whole: where these are a part of a batch (a micro-batch, a process's share): gives the mean to divide by.

    Returns:
        [B] float32 without gradient; the labelled ones have mean 1 (or are all 0, if the teacher is never right).
    """
    teacher = teacher_confidence.detach().float().clamp(0.0, 1.0)
    if mode == "uniform":
        return torch.ones_like(teacher)
    ratio = teacher
    if mode == "teacher-student":
        if student_confidence is None:
            raise ValueError("teacher-student weighting needs the student's confidence")
        ratio = teacher / student_confidence.detach().float().clamp(_FLOOR, 1.0)
    weight = (ratio if gamma == 1 else ratio.pow(gamma)).clamp(0.0, w_max)
    if labelled is None:
        mean = None if whole is None else whole(weight.sum(), weight.new_full((), weight.numel()))
        return weight / (weight.mean() if mean is None else mean).clamp_min(1e-12)
    counted, number = torch.where(labelled, weight, 0.0).sum(), labelled.sum()
    mean = None if whole is None else whole(counted, number.float())
    if mean is None:
        mean = counted / number.clamp_min(1)
    unlabelled = (teacher >= probe_threshold).float()
    return torch.where(labelled, weight / mean.clamp_min(1e-12), unlabelled)
