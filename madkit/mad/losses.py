"""Distances between projected student states and teacher targets, one number per token, always in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_NEVER = -1e9  # logit of what is no negative: its exponential is exactly 0, and it stays finite


def cosine_distance(prediction: Tensor, target: Tensor) -> Tensor:
    """1 - cos(prediction, target) [...] of vectors [..., D]; 1 where either is zero."""
    return 1.0 - (_unit(prediction) * _unit(target)).sum(-1)


def smooth_l1_distance(prediction: Tensor, target: Tensor, beta: float = 1.0) -> Tensor:
    """Mean over channels of Huber's loss divided by beta [...] of vectors [..., D]."""
    return F.smooth_l1_loss(prediction.float(), target.float(), reduction="none", beta=beta).mean(-1)


def mse_distance(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over channels of the squared difference [...] of vectors [..., D]."""
    return (prediction.float() - target.float()).square().mean(-1)


def info_nce(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    *,
    identity: Tensor | None = None,
    temperature: float = 0.07,
    max_negatives: int = 256,
    duplicate_cosine: float = 0.999,
) -> Tensor:
    """InfoNCE (van den Oord et al., arXiv 1807.03748): tell a token's own target from the batch's other targets.

    -log exp(cos(p_i, t_i) / T) / (exp(cos(p_i, t_i) / T) + sum over negatives j of exp(cos(p_i, t_j) / T)).
    A target that is the token's own again is no negative: neither one with the same `identity` (the same region
    of an image that stands in the batch twice) nor one that equals it (the same word of the same text, a grey patch).

    Args:
        prediction: [..., D].
        target: [..., D]; no gradient flows into it.
        mask: [...] bool: tokens that count, as themselves and as negatives.
        identity: [...] long; equal numbers name the same target.
        temperature: T.
        max_negatives: if more tokens count, that many, evenly spaced, serve as negatives.
        duplicate_cosine: targets at least this similar are one and the same.

    Returns:
        [...] float32; 0 outside the mask.
    """
    shape = mask.shape
    own = mask.reshape(-1)
    N = own.shape[0]
    if N == 0:
        return prediction.float().sum(-1)
    p = _unit(prediction.reshape(N, -1))
    t = _unit(target.detach().reshape(N, -1))

    # Which targets serve as negatives is read off the counting tokens alone, so padding cannot change it.
    M = min(max_negatives, N)
    counting = own.sum()
    ordered = torch.sort(own.int(), descending=True, stable=True).indices
    place = torch.arange(M, device=own.device) * counting.clamp_min(M) // M
    bank = ordered[place]
    usable = place < counting

    keys = t[bank]
    same = (t @ keys.T) >= duplicate_cosine
    same |= torch.arange(N, device=own.device).unsqueeze(-1) == bank
    if identity is not None:
        flat = identity.reshape(-1)
        same |= flat.unsqueeze(-1) == flat[bank]
    negatives = ((p @ keys.T) / temperature).masked_fill(same | ~usable, _NEVER)
    positive = (p * t).sum(-1) / temperature
    loss = torch.logaddexp(torch.logsumexp(negatives, -1), positive) - positive
    return torch.where(own, loss, 0.0).reshape(shape)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean [N] of values [N, K] where mask [N, K] is set; 0 for rows without any."""
    kept = torch.where(mask, values, 0.0)
    return kept.sum(-1) / mask.sum(-1).clamp_min(1)


def _unit(vectors: Tensor) -> Tensor:
    return F.normalize(vectors.float(), dim=-1, eps=1e-6)
