"""The terms of the token part of one batch: which student positions are compared with which targets."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from madkit.mad.choice import choose_regions, choose_tags, choose_text
from madkit.mad.chosen import ChosenTokens, Lookup
from madkit.mad.config import MADConfig
from madkit.mad.targets import ChannelStats, TeacherTargets


@dataclass(frozen=True, slots=True)
class Term:
    """One kind of target: N sequences x K tokens at student positions, with what they are compared to."""

    name: str
    positions: Tensor  # [N, K] in the student's sequence (text first, then regions)
    valid: Tensor  # [N, K] bool
    target: Tensor  # [N, K, D]
    identity: Tensor | None  # [N, K]: equal numbers are the same target
    stats: ChannelStats | None


def terms_of(
    config: MADConfig,
    active: Collection[str],
    targets: TeacherTargets,
    rows: Tensor,
    *,
    text_mask: Tensor,
    region_mask: Tensor,
    tag_regions: Tensor | None,
    query_index: Tensor | None,
    global_index: Tensor | None,
    step: int,
) -> list[Term]:
    """The terms `active` (`MADConfig.term_weights`) of `config` for the taught sequences `rows` [N]."""
    T, R = text_mask.shape[1], region_mask.shape[1]
    image = targets.image_index.index_select(0, rows)
    parts = []
    if "global_image" in active or "global_text" in active:
        where = global_index
        if config.global_source == "query":
            where = last_token(text_mask) if query_index is None else query_index
        first, always = _at_the_first(len(rows), rows.device)
        place = first if where is None else where[rows].unsqueeze(1)
        if "global_image" in active:
            target = targets.image_global.index_select(0, image).unsqueeze(1)
            stats = targets.vision_global_stats or targets.vision_stats
            parts.append(Term("global_image", place, always, target, image.unsqueeze(1), stats))
        if "global_text" in active:
            target = targets.text_global.index_select(0, rows).unsqueeze(1)
            parts.append(
                Term("global_text", place, always, target, None, targets.text_global_stats or targets.text_stats)
            )
    if targets.chosen is not None:
        return parts + _chosen_terms(targets.chosen, targets, image, T, R, named=config.distance == "info-nce")
    tags = tag_regions[rows] if tag_regions is not None and config.tag_targets else None
    if "token_text" in active:
        index, valid = choose_text(config, targets, rows, tags, step)
        target = take(targets.text_tokens, rows.unsqueeze(1), index)
        valid = valid & text_mask[rows].gather(1, index)
        parts.append(Term("token_text", index, valid, target, None, targets.text_stats))
    if "token_region" in active:
        index, valid = choose_regions(config, targets, rows, region_mask[rows], step)
        target = take(targets.regions, image.unsqueeze(1), index)
        identity = image.unsqueeze(1) * R + index
        parts.append(Term("token_region", index + T, valid, target, identity, targets.vision_stats))
    if "token_tag" in active and tags is not None and R > 0:
        embeddings, index, kept = choose_tags(config, targets, rows, tags, text_mask[rows], region_mask[rows], step)
        target = embeddings.gather(1, index.unsqueeze(-1).expand(-1, -1, embeddings.shape[-1]))
        identity = image.unsqueeze(1) * R + tags.gather(1, index)
        parts.append(Term("token_tag", index, kept, target, identity, targets.vision_stats))
    return parts


def _chosen_terms(
    chosen: ChosenTokens, targets: TeacherTargets, image: Tensor, T: int, R: int, *, named: bool
) -> list[Term]:
    """The terms of tokens that were chosen before; `named`: with numbers for equal targets, which negatives need."""
    parts = []
    first = image.unsqueeze(1) * R if named else image
    for name, kind in (("token_text", chosen.text), ("token_region", chosen.region), ("token_tag", chosen.tag)):
        if kind is None:
            continue
        target = kind.target.to(image.device) if isinstance(kind.target, Lookup) else kind.target
        if name == "token_text":
            parts.append(Term(name, kind.index, kind.valid, target, None, targets.text_stats))
        elif name == "token_region":
            identity = first + kind.index if named else None
            parts.append(Term(name, kind.index + T, kind.valid, target, identity, targets.vision_stats))
        else:
            assert kind.region is not None
            identity = first + kind.region if named else None
            parts.append(Term(name, kind.index, kind.valid, target, identity, targets.vision_stats))
    return parts


@lru_cache(maxsize=64)
def _at_the_first(n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The position [n, 1] of [CLS], and that it counts [n, 1]. Read only: they are the same for all steps."""
    with torch.inference_mode(False):
        place = torch.zeros(n, 1, dtype=torch.long, device=device)
        return place, torch.ones(n, 1, dtype=torch.bool, device=device)


def last_token(text_mask: Tensor) -> Tensor:
    """[S] position of the last real text token of text_mask [S, T]."""
    positions = torch.arange(text_mask.shape[1], device=text_mask.device)
    return torch.where(text_mask, positions, 0).amax(-1)


def take(table: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Vectors [N, K, D] of table [M, L, D] at (rows [N, 1], columns [N, K]).

    index_select, whose backward is one index_add; indexing by tensors would sort the indices in its backward.
    """
    flat = rows * table.shape[1] + columns
    return table.flatten(0, 1).index_select(0, flat.flatten()).view(*columns.shape, table.shape[-1])
