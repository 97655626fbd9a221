"""Affinity distillation: teach the student which region belongs to which words (madkit's own, docs/method.md).

Relative affinity is a distribution over the regions of an image: it says which one a sentence is about, and is silent
on whether the sentence is about any of them. Absolute affinity is a probability for each region on its own.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from madkit.mad.losses import masked_mean

_NOWHERE = -1e9  # logit of a padded region: its probability is exactly 0 in float32, its logarithm stays finite


class AffinityHead(nn.Module):
    """Query and key projections of the student's affinity; training only.

    Args:
        student_dim: H.
        dim: d, width of queries and keys.
        absolute: whether logits mean probabilities of their own; then a query also has an offset for all regions.
    """

    def __init__(self, student_dim: int, dim: int = 64, *, absolute: bool = False) -> None:
        super().__init__()
        self.query = nn.Linear(student_dim, dim)
        # A bias of the keys would add one number to all regions of a query, which the softmax takes out again.
        self.key = nn.Linear(student_dim, dim, bias=False)
        self.offset = nn.Linear(student_dim, 1) if absolute else None

    def forward(self, query: Tensor, regions: Tensor) -> Tensor:
        """Logits [S, K, R] float32 = q(query [S, K, H]) . k(regions [S, R, H]) / sqrt(d), + b(query) if absolute."""
        q, k = self.query(query), self.key(regions)
        with torch.autocast(q.device.type, enabled=False):
            logits: Tensor = torch.matmul(q.float(), k.float().transpose(-1, -2)) / math.sqrt(q.shape[-1])
        return logits if self.offset is None else logits + self.offset(query).float()


@torch.no_grad()
def teacher_affinity(text: Tensor, regions: Tensor, region_mask: Tensor, tau: float) -> Tensor:
    """A_T: log-softmax over regions of tau * cos(l, v_j).

    Args:
        text: [S, K, D] sentence or word embeddings of the shared space.
        regions: [S, R, D].
        region_mask: [S, R] bool.
        tau: inverse temperature.

    Returns:
        [S, K, R] float32 logarithms; very negative at padding.
    """
    logits = tau * cosines(text, regions)
    return logits.masked_fill(~region_mask.unsqueeze(-2), _NOWHERE).log_softmax(-1)


@torch.no_grad()
def cosines(text: Tensor, regions: Tensor) -> Tensor:
    """cos(l, v_j) [S, K, R] float32 of texts [S, K, D] and regions [S, R, D]."""
    with torch.autocast(text.device.type, enabled=False):
        text, regions = F.normalize(text.float(), dim=-1), F.normalize(regions.float(), dim=-1)
        return torch.matmul(text, regions.transpose(-1, -2))


def affinity_loss(
    head: AffinityHead,
    query: Tensor,
    region_states: Tensor,
    text: Tensor,
    regions: Tensor,
    region_mask: Tensor,
    *,
    tau: float = 20.0,
    threshold: float = 0.0,
    image_index: Tensor | None = None,
    query_mask: Tensor | None = None,
) -> Tensor:
    """KL(A_T || A_S) over regions for each sequence; mean over its queries. The teacher side gets no gradient.

    With an absolute head the divergence is that of one Bernoulli variable per region, summed over the regions:
    A_T = sigmoid(tau * (cos(l, v_j) - threshold)), A_S = sigmoid(logit).

    Args:
        head: the student's query and key projections.
        query: [S, H] sentence state, or [S, K, H] states of words.
        region_states: [S, R, H] student states of the regions, at the same layer.
        text: [S, D] sentence embedding l_0, or [S, K, D] the words' l_i.
        regions: [S, R, D], or [B, R, D] with `image_index`.
        region_mask: [S, R] bool: regions that both student and teacher have.
        tau: inverse temperature of the teacher's softmax or sigmoid.
        threshold: cosine at which an absolute A_T is one half.
        image_index: [S] row of each sequence's image in `regions`.
        query_mask: [S, K] bool: words that count.

    Returns:
        [S] float32; 0 where there is no query, or for a relative head fewer than two regions (nothing to tell apart).
    """
    if query.dim() == 2:
        query, text = query.unsqueeze(1), text.unsqueeze(1)
    if image_index is not None:
        regions = regions[image_index]
    text, regions = text.detach(), regions.detach()
    logits = head(query, region_states)
    if head.offset is not None:
        sure = torch.sigmoid(tau * (cosines(text, regions) - threshold))
        cross = F.binary_cross_entropy_with_logits(logits, sure, reduction="none")
        with torch.autocast(sure.device.type, enabled=False):  # which refuses this function on a GPU
            entropy = F.binary_cross_entropy(sure, sure, reduction="none")
        divergence = ((cross - entropy) * region_mask.unsqueeze(-2)).sum(-1)
        enough = region_mask.any(-1)
    else:
        log_teacher = teacher_affinity(text, regions, region_mask, tau)
        logits = logits.masked_fill(~region_mask.unsqueeze(-2), _NOWHERE)
        divergence = (log_teacher.exp() * (log_teacher - logits.log_softmax(-1))).sum(-1)
        enough = region_mask.sum(-1) >= 2
    if query_mask is None:
        query_mask = divergence.new_ones(divergence.shape, dtype=torch.bool)
    return masked_mean(divergence, query_mask & enough.unsqueeze(-1))
