"""The token part at one student layer: projected states against targets, averaged kind by kind.

A step compares a few tokens of a handful of kinds, so on a CPU as on a GPU the number of operations costs more than
their size. All kinds whose targets are equally wide are therefore compared at once, and the averages, which no gradient
has to be traced through, are one operation of autograd (`_WeightedMeans`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from madkit.core.errors import ConfigError
from madkit.mad import losses
from madkit.mad.config import MADConfig
from madkit.mad.terms import Term


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
    # without a place for any token a kind says nothing; its head is still one of the loss, unless others use it
    heads_of = [_head_of(term) for term in terms]
    idle = [not term.valid.shape[1] and heads_of.count(head) > 1 for term, head in zip(terms, heads_of, strict=True)]
    nothing = [term.name for term, leave in zip(terms, idle, strict=True) if leave]
    terms = [term for term, leave in zip(terms, idle, strict=True) if not leave]
    if not terms:  # tags alone are taught, and this batch has none
        return torch.zeros((), device=hidden.device), {}
    # One gather for all terms: its backward fills one buffer of the hidden states' size instead of one per term. Kind
    # after kind, so that what each head reads, and its gradient, lies in one piece.
    first = (rows * hidden.shape[1]).unsqueeze(1)
    places = torch.cat([(first + term.positions).flatten() for term in terms])
    states = hidden.flatten(0, 1).index_select(0, places).to(next(heads.parameters()).dtype)
    predictions = []
    for term, piece in zip(terms, torch.split(states, [term.positions.numel() for term in terms]), strict=True):
        if config.global_source == "mean" and term.name.startswith("global"):
            piece = _mean_state(hidden, text_mask).to(piece.dtype)[rows]
        predictions.append(heads[_head_of(term)](piece))
    with torch.autocast(hidden.device.type, enabled=False):
        coefficients = [config.term_weights[term.name] for term in terms]
        masks = [term.valid for term in terms]
        loss: Tensor
        loss, shares = _WeightedMeans.apply(
            coefficients, masks, sequence_weight, *_distances(config, predictions, terms)
        )
    found = dict(zip([term.name for term in terms], shares.unbind(), strict=True))
    found.update({name: torch.zeros_like(loss) for name in nothing})
    return loss, found


def _head_of(term: Term) -> str:
    return "vision" if term.name in ("token_region", "token_tag") else term.name


def _distances(config: MADConfig, predictions: list[Tensor], terms: list[Term]) -> list[Tensor]:
    """Distances of predictions [n, D] and targets: one row for all kinds whose targets are equally wide.

    In the order of the terms, [n of all] or several of these.
    """
    targets = [_target(config, term) for term in terms]
    if config.distance == "info-nce":  # its negatives are those of the same kind
        return [
            losses.info_nce(
                prediction.view(target.shape), target, term.valid, identity=term.identity,
                temperature=config.temperature, max_negatives=config.negatives,
            ).flatten()
            for prediction, target, term in zip(predictions, targets, terms, strict=True)
        ]  # fmt: skip
    if len({target.shape[-1] for target in targets}) == 1:
        return [_distance(config, torch.cat(predictions), torch.cat([target.flatten(0, 1) for target in targets]))]
    return [
        _distance(config, prediction, target.flatten(0, 1))
        for prediction, target in zip(predictions, targets, strict=True)
    ]


def _distance(config: MADConfig, predictions: Tensor, targets: Tensor) -> Tensor:
    """[n] of vectors [n, D]."""
    if config.distance == "cosine":
        return losses.cosine_distance(predictions, targets)
    if config.distance == "smooth-l1":
        return losses.smooth_l1_distance(predictions, targets, config.smooth_l1_beta)
    return losses.mse_distance(predictions, targets)


def _target(config: MADConfig, term: Term) -> Tensor:
    target = term.target.detach() if term.target.requires_grad else term.target
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
        ctx: Any, coefficients: list[float], masks: list[Tensor], weight: Tensor, *distances: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The scalar and [kinds] shares.

        Args:
            ctx: autograd's.
            coefficients: a of each kind.
            masks: valid [N, K] of each kind.
            weight: w [N].
            distances: of all kinds, one after the other, in one or several pieces.
        """
        each = distances[0] if len(distances) == 1 else torch.cat(distances)
        pieces = torch.split(each, [mask.numel() for mask in masks])
        sums = torch.stack(
            [torch.where(mask, piece.view(mask.shape), 0.0).sum(-1) for mask, piece in zip(masks, pieces, strict=True)]
        )
        count = torch.stack([mask.sum(-1) for mask in masks])
        coefficient = _column(tuple(coefficients), sums.device) * (count > 0)
        count = count.clamp_min(1)
        means = sums / count
        weighted = coefficient * means
        total, present = weighted[0], coefficient[0]
        for one, other in zip(weighted[1:], coefficient[1:], strict=True):
            total, present = total + one, present + other
        present = present.clamp_min(1e-12)
        ctx.save_for_backward(weight, present, coefficient, count, *masks)
        ctx.sizes = [len(one) for one in distances]
        shares = (means * weight).sum(-1)
        ctx.mark_non_differentiable(shares)
        return (weight * total / present).sum(), shares

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        """The gradient of the distances."""
        weight, present, coefficient, count, *masks = ctx.saved_tensors
        each = (gradients[0] / present * weight) * coefficient / count  # [kinds, N]
        spread = torch.cat(
            [torch.where(mask, one.unsqueeze(1), 0.0).flatten() for mask, one in zip(masks, each, strict=True)]
        )
        return (None, None, None, *(torch.split(spread, ctx.sizes) if len(ctx.sizes) > 1 else (spread,)))


@lru_cache(maxsize=64)
def _column(values: tuple[float, ...], device: torch.device) -> Tensor:
    """[n, 1] on the device, where it stays: no step waits for a copy."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device).unsqueeze(1)


def _mean_state(hidden: Tensor, text_mask: Tensor) -> Tensor:
    """[S, H] mean of the text states."""
    kept = text_mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden[:, : text_mask.shape[1]] * kept).sum(1) / kept.sum(1).clamp_min(1)
