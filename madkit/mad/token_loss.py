"""The token part at one student layer: projected states against targets, averaged kind by kind.

A step compares a few tokens of a handful of kinds, so on a CPU as on a GPU the number of operations costs more than
their size. All kinds whose targets are equally wide are therefore compared at once, and what follows the projections is
two operations of autograd (`example_means`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from madkit.core.errors import ConfigError
from madkit.mad import losses
from madkit.mad.config import MADConfig
from madkit.mad.example_means import CosineDistances, WeightedMeans
from madkit.mad.heads import ProjectionHead
from madkit.mad.terms import Term

_HEADS = {"token_region": "vision", "token_tag": "vision"}  # the others have heads by their own names


def token_loss(
    config: MADConfig,
    heads: nn.ModuleDict,
    hidden: Tensor,
    rows: Tensor,
    terms: list[Term],
    sequence_weight: Tensor,
    text_mask: Tensor,
    term_weights: Mapping[str, float],
    reader: Tensor | None = None,
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
        term_weights: `MADConfig.term_weights`, worked out once.
        reader: [S, H] of the distillation token at the layer, for ``global_source: token``.

    Returns:
        The scalar, and per kind its share (weights included, coefficients not) without gradient.
    """
    # without a place for any token a kind says nothing; its head is still one of the loss, unless others use it
    heads_of = [_HEADS.get(term.name, term.name) for term in terms]
    nothing = [
        term.name
        for term, head in zip(terms, heads_of, strict=True)
        if not term.valid.shape[1] and heads_of.count(head) > 1
    ]
    if nothing:
        terms = [term for term in terms if term.name not in nothing]
    if not terms:  # tags alone are taught, and this batch has none
        return torch.zeros((), device=hidden.device), {}
    used = [cast(ProjectionHead, heads[_HEADS.get(term.name, term.name)]) for term in terms]
    # One gather for all terms: its backward fills one buffer of the hidden states' size instead of one per term. Kind
    # after kind, so that what each head reads, and its gradient, lies in one piece.
    first = (rows * hidden.shape[1]).unsqueeze(1)
    places = torch.cat([(first + term.positions).flatten() for term in terms])
    states = hidden.flatten(0, 1).index_select(0, places).to(used[0].dtype)
    predictions = []
    pieces = torch.split(states, [term.positions.numel() for term in terms])
    for term, head, piece in zip(terms, used, pieces, strict=True):
        if term.name.startswith("global"):
            if config.global_source == "mean":
                piece = _mean_state(hidden, text_mask).to(piece.dtype)[rows]
            elif reader is not None:
                piece = reader.to(piece.dtype).index_select(0, rows)
        predictions.append(head(piece))
    with torch.autocast(hidden.device.type, enabled=False):
        coefficients = tuple(term_weights[term.name] for term in terms)
        masks = [term.valid for term in terms]
        loss: Tensor
        loss, shares = WeightedMeans.apply(
            coefficients, masks, sequence_weight, *_distances(config, predictions, terms)
        )
    found = dict(zip([term.name for term in terms], shares.unbind(), strict=True))
    found.update({name: torch.zeros_like(loss) for name in nothing})
    return loss, found


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
    if config.distance == "cosine":
        flat = [target.flatten(0, 1) for target in targets]
        if len({target.shape[-1] for target in targets}) == 1:
            return [CosineDistances.apply(flat, *predictions)]
        return [CosineDistances.apply([target], one) for one, target in zip(predictions, flat, strict=True)]
    if len({target.shape[-1] for target in targets}) == 1:
        return [_distance(config, torch.cat(predictions), torch.cat([target.flatten(0, 1) for target in targets]))]
    return [
        _distance(config, prediction, target.flatten(0, 1))
        for prediction, target in zip(predictions, targets, strict=True)
    ]


def _distance(config: MADConfig, predictions: Tensor, targets: Tensor) -> Tensor:
    """[n] of vectors [n, D]."""
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


def _mean_state(hidden: Tensor, text_mask: Tensor) -> Tensor:
    """[S, H] mean of the text states."""
    kept = text_mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden[:, : text_mask.shape[1]] * kept).sum(1) / kept.sum(1).clamp_min(1)
