"""What a step averages of its distances, as two operations of autograd that hold their gradients by hand.

A step compares a few hundred vectors, so on a CPU as on a GPU the number of operations costs more than their size. Both
gradients are worked out in the order in which autograd would multiply, so that no bit differs from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_SHORTEST = 1e-6  # length below which a vector has no direction, as in `losses.cosine_distance`


class CosineDistances(torch.autograd.Function):
    """1 - cos of predictions and targets [n, D], given in equally many pieces each; `losses.cosine_distance` of them.

    Both sides are scaled at once. The targets get no gradient.
    """

    @staticmethod
    def forward(ctx: Any, targets: Sequence[Tensor], *predictions: Tensor) -> Tensor:
        """Distances [n] float32 of all pieces [n_i, D], one after the other."""
        both = torch.cat([*predictions, *targets]).float()
        norm = torch.linalg.vector_norm(both, dim=-1, keepdim=True)
        length = norm.clamp_min(_SHORTEST)
        unit = both / length
        n = unit.shape[0] // 2
        prediction, target = unit[:n], unit[n:]
        ctx.save_for_backward(prediction, target, norm[:n], length[:n])
        ctx.sizes = [len(piece) for piece in predictions]
        distance: Tensor = 1.0 - (prediction * target).sum(-1)
        return distance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        """The gradient of each piece of the predictions."""
        prediction, target, norm, length = ctx.saved_tensors
        along = target * gradients[0].unsqueeze(-1)
        of_length = (along * (prediction / length)).sum(-1, keepdim=True)
        of_length = torch.where(norm >= _SHORTEST, of_length, 0.0)
        return None, *torch.split(prediction * of_length - along / length, ctx.sizes)


class WeightedMeans(torch.autograd.Function):
    """sum over n of w_n * (sum over kinds of a_k * mean distance of kind k) / (sum of a_k over the kinds that n has).

    It is linear in the distances, so its gradient is a table of factors.
    """

    @staticmethod
    def forward(
        ctx: Any, coefficients: Sequence[float], masks: Sequence[Tensor], weight: Tensor, *distances: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The scalar and [kinds] shares.

        Args:
            ctx: autograd's.
            coefficients: a of each kind.
            masks: valid [N, K] of each kind.
            weight: w [N].
            distances: of all kinds, one after the other, in one or several pieces.
        """
        each = _joined(distances)
        counted = _joined([mask.flatten() for mask in masks])
        groups = _groups([mask.shape[1] for mask in masks])
        N = len(weight)
        both = torch.stack([torch.where(counted, each, 0.0), counted.to(each.dtype)])
        found, start = [], 0
        for kinds, K in groups:  # kinds of one width lie side by side and are added up at once
            table = both[:, start : start + kinds * N * K].view(2, kinds, N, K)
            found.append(table.squeeze(-1) if K == 1 else table.sum(-1))
            start += kinds * N * K
        sums, count = (found[0] if len(found) == 1 else torch.cat(found, 1)).unbind()
        coefficient = _column(tuple(coefficients), sums.device) * (count > 0)
        count = count.clamp_min(1)
        means = sums / count
        total, *totals = (coefficient * means).unbind()
        present, *others = coefficient.unbind()
        for one, other in zip(totals, others, strict=True):
            total, present = total + one, present + other
        present = present.clamp_min(1e-12)
        ctx.save_for_backward(weight, present, coefficient, count, counted)
        ctx.groups, ctx.sizes = groups, [len(one) for one in distances]
        shares = (means * weight).sum(-1)
        ctx.mark_non_differentiable(shares)
        return (weight * total / present).sum(), shares

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        """The gradient of the distances."""
        weight, present, coefficient, count, counted = ctx.saved_tensors
        each = (gradients[0] / present * weight) * coefficient / count  # [kinds, N]
        found, first = [], 0
        for kinds, K in ctx.groups:
            group = each[first : first + kinds]
            found.append((group if K == 1 else group.unsqueeze(-1).expand(-1, -1, K)).flatten())
            first += kinds
        spread = torch.where(counted, _joined(found), 0.0)
        return (None, None, None, *(torch.split(spread, ctx.sizes) if len(ctx.sizes) > 1 else (spread,)))


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces))


def _groups(widths: Sequence[int]) -> list[tuple[int, int]]:
    """(how many, width) of each run of kinds that are equally wide."""
    groups: list[tuple[int, int]] = []
    for width in widths:
        if groups and groups[-1][1] == width:
            groups[-1] = (groups[-1][0] + 1, width)
        else:
            groups.append((1, width))
    return groups


@lru_cache(maxsize=64)
def _column(values: tuple[float, ...], device: torch.device) -> Tensor:
    """[n, 1] on the device, where it stays: no step waits for a copy."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device).unsqueeze(1)
