"""The token part at one student layer: projected states against targets, averaged kind by kind.

A step compares a few tokens of a handful of kinds, so on a CPU as on a GPU the number of operations costs more than
their size. All kinds whose targets are equally wide are therefore compared at once, and the averages, which no gradient
has to be traced through, are one operation of autograd (`_weighted_means`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from madkit.core.errors import ConfigError
from madkit.mad import losses
from madkit.mad.config import MADConfig
from madkit.mad.terms import Term, take


def token_loss(
    config: MADConfig,
    heads: nn.ModuleDict,
    hidden: Tensor,
    rows: Tensor,
    terms: list[Term],
    sequence_weight: Tensor,
    text_mask: Tensor,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum over sequences of weight * mean over kinds of the mean distance of their tokens.

    Args:
        config: the switches.
        heads: a projection per kind; regions and tags share ``vision``.
        hidden: [S, T + R, H] of the layer.
        rows: [N] sequences that are taught.
        terms: what is compared.
        sequence_weight: [N].
        text_mask: [S, T], for ``global_source: mean``.

    Returns:
        The scalar, and per kind its share (weights included, coefficients not) without gradient.
    """
    if not terms:  # tags alone are taught, and this batch has none
        return torch.zeros((), device=hidden.device), {}
    # One gather for all terms: its backward fills one buffer of the hidden states' size instead of one per term.
    places = torch.cat([term.positions for term in terms], 1)
    states = take(hidden, rows.unsqueeze(1), places).to(next(heads.parameters()).dtype)
    widths = [term.positions.shape[1] for term in terms]
    pieces = list(torch.split(states, widths, 1))
    predictions = []
    for term, piece in zip(terms, pieces, strict=True):
        if config.global_source == "mean" and term.name.startswith("global"):
            piece = _mean_state(hidden, text_mask).to(piece.dtype)[rows].unsqueeze(1)
        predictions.append(heads["vision" if term.name in ("token_region", "token_tag") else term.name](piece))
    with torch.autocast(hidden.device.type, enabled=False):
        distance = torch.cat(_distances(config, predictions, terms), 1)
        valid = torch.cat([term.valid for term in terms], 1)
        coefficients = [config.term_weights[term.name] for term in terms]
        loss: Tensor
        loss, shares = _WeightedMeans.apply(distance, valid, widths, coefficients, sequence_weight)
    return loss, dict(zip([term.name for term in terms], shares.unbind(), strict=True))


def _distances(config: MADConfig, predictions: list[Tensor], terms: list[Term]) -> list[Tensor]:
    """Distance [N, K] of each term's predictions and targets."""
    targets = [_target(config, term) for term in terms]
    if config.distance == "info-nce":  # its negatives are those of the same kind
        return [
            losses.info_nce(
                prediction, target, term.valid, identity=term.identity,
                temperature=config.temperature, max_negatives=config.negatives,
            )
            for prediction, target, term in zip(predictions, targets, terms, strict=True)
        ]  # fmt: skip
    found: list[Tensor | None] = [None] * len(terms)
    for width in {target.shape[-1]: None for target in targets}:
        mine = [place for place, target in enumerate(targets) if target.shape[-1] == width]
        # one after the other, not side by side: each head's gradient then lies in one piece
        ours, theirs = (
            torch.cat([side[place].float().flatten(0, 1) for place in mine]) for side in (predictions, targets)
        )
        if config.distance == "cosine":
            distance = losses.cosine_distance(ours, theirs)
        elif config.distance == "smooth-l1":
            distance = losses.smooth_l1_distance(ours, theirs, config.smooth_l1_beta)
        else:
            distance = losses.mse_distance(ours, theirs)
        split = torch.split(distance, [terms[place].valid.numel() for place in mine])
        for place, piece in zip(mine, split, strict=True):
            found[place] = piece.view(terms[place].valid.shape)
    return [piece for piece in found if piece is not None]


def _target(config: MADConfig, term: Term) -> Tensor:
    target = term.target.detach()
    if not config.standardised:
        return target
    if term.stats is None:
        raise ConfigError(
            f"distance: {config.distance} compares standardised targets, but no channel statistics were given.",
            hint="pass the cache's mean and variance in TeacherTargets, or set standardise: never.",
        )
    return term.stats.standardise(target)


class _WeightedMeans(torch.autograd.Function):
    """sum over n of w_n * (sum over kinds of a_k * mean distance of kind k) / (sum of a_k over the kinds that n has).

    It is linear in the distances, so its gradient is a table of factors, worked out here in the order in which autograd
    would multiply them.
    """

    @staticmethod
    def forward(
        ctx: Any, distance: Tensor, valid: Tensor, widths: list[int], coefficients: list[float], weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Args: distance [N, sum K], valid [N, sum K], K and a of each kind, w [N]; the scalar and [kinds] shares."""
        kept = torch.where(valid, distance, 0.0)
        sums = torch.stack([piece.sum(-1) for piece in torch.split(kept, widths, 1)])
        count = torch.stack([piece.sum(-1) for piece in torch.split(valid, widths, 1)])
        there = count > 0
        coefficient = torch.stack([factor * one for factor, one in zip(coefficients, there, strict=True)])
        count = count.clamp_min(1)
        means = sums / count
        weighted, total, present = coefficient * means, torch.zeros_like(weight), torch.zeros_like(weight)
        for one, other in zip(weighted, coefficient, strict=True):
            total, present = total + one, present + other
        present = present.clamp_min(1e-12)
        ctx.save_for_backward(valid, weight, present, coefficient, count)
        ctx.widths = widths
        shares = (means * weight).sum(-1)
        ctx.mark_non_differentiable(shares)
        return (weight * total / present).sum(), shares

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None, None, None]:
        """The gradient of the distances."""
        valid, weight, present, coefficient, count = ctx.saved_tensors
        each = (gradients[0] / present * weight) * coefficient / count  # [kinds, N]
        spread = torch.cat([one.unsqueeze(1).expand(-1, width) for one, width in zip(each, ctx.widths, strict=True)], 1)
        return torch.where(valid, spread, 0.0), None, None, None, None


def _mean_state(hidden: Tensor, text_mask: Tensor) -> Tensor:
    """[S, H] mean of the text states."""
    kept = text_mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden[:, : text_mask.shape[1]] * kept).sum(1) / kept.sum(1).clamp_min(1)
