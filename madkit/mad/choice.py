"""The configured choice of tokens for a batch: what the criterion teaches, and what reports draw."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from madkit.core.errors import ConfigError
from madkit.mad.align import align_tags
from madkit.mad.config import MADConfig
from madkit.mad.select import choose, cosine_relevance, indices_to_mask, region_relevance, text_relevance
from madkit.mad.targets import TeacherTargets


@dataclass(frozen=True, slots=True)
class Selection:
    """Tokens that are taught: text [S, T] bool and regions [S, R] bool."""

    text: Tensor
    regions: Tensor


def select_for(
    config: MADConfig,
    targets: TeacherTargets,
    *,
    text_mask: Tensor,
    region_mask: Tensor,
    tag_regions: Tensor | None = None,
    step: int = 0,
) -> Selection:
    """The tokens that the criterion would teach in every sequence of a batch, for reports and pictures."""
    rows = torch.arange(text_mask.shape[0], device=text_mask.device)
    region_mask = region_mask & targets.region_mask[targets.image_index]
    tags = tag_regions if config.tag_targets else None
    index, valid = choose_text(config, targets, rows, tags, step)
    text = indices_to_mask(index, valid & text_mask.gather(1, index), text_mask.shape[1])
    index, valid = choose_regions(config, targets, rows, region_mask, step)
    return Selection(text, indices_to_mask(index, valid, region_mask.shape[1]))


def shares_space(config: MADConfig, targets: TeacherTargets) -> bool:
    """Whether relevance is measured against the other modality."""
    return targets.shared_space if config.relevance == "auto" else config.relevance == "shared"


def _keys(config: MADConfig, targets: TeacherTargets, rows: Tensor) -> Tensor | None:
    if config.tokens != "random":
        return None
    if targets.example_key is None:
        raise ConfigError(
            "tokens: random needs a number that names each example, and none was given.",
            hint="pass example_key in TeacherTargets, or choose another selection.",
        )
    return targets.example_key[rows]


def _reference(config: MADConfig, targets: TeacherTargets, rows: Tensor) -> Tensor:
    """[N, Dv] what regions are relevant to."""
    if shares_space(config, targets):
        return targets.text_global[rows]
    return targets.image_global[targets.image_index[rows]]


def choose_text(
    config: MADConfig, targets: TeacherTargets, rows: Tensor, tags: Tensor | None, step: int
) -> tuple[Tensor, Tensor]:
    """Index and validity [N, K] of the text positions that are taught in sequences `rows`.

    Tags (tags [N, T] >= 0) are left out. ``all`` teaches function words too; a choice never falls on one.
    """
    mask = (targets.text_mask if config.tokens == "all" else targets.selectable_text)[rows]
    if tags is not None:
        mask = mask & (tags < 0)
    relevance = None
    if config.tokens == "adaptive":
        relevance = text_relevance(
            targets.text_tokens[rows], targets.text_global[rows], targets.image_global, targets.image_index[rows],
            shared=shares_space(config, targets),
        )  # fmt: skip
    keys = _keys(config, targets, rows)
    return choose(
        config.tokens, mask, relevance=relevance, keys=keys, step=step, salt=1, k=config.k_text,
        fraction=config.fraction,
    )  # fmt: skip


def choose_regions(
    config: MADConfig, targets: TeacherTargets, rows: Tensor, mask: Tensor, step: int
) -> tuple[Tensor, Tensor]:
    """Index and validity [N, K] of the regions that are taught in sequences `rows`; mask [N, R]."""
    relevance = None
    if config.tokens == "adaptive":
        relevance = region_relevance(
            targets.regions, targets.image_global, targets.text_global[rows], targets.image_index[rows],
            shared=shares_space(config, targets),
        )  # fmt: skip
    keys = _keys(config, targets, rows)
    return choose(
        config.tokens, mask, relevance=relevance, keys=keys, step=step, salt=2, k=config.k_region,
        fraction=config.fraction,
    )  # fmt: skip


def choose_tags(
    config: MADConfig,
    targets: TeacherTargets,
    rows: Tensor,
    tags: Tensor,
    text_mask: Tensor,
    region_mask: Tensor,
    step: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Region embeddings [N, T, Dv] of all tags, and index and validity [N, K] of the tags that are taught.

    Everything but `targets` is indexed by sequence already: tags and text_mask [N, T], region_mask [N, R].
    """
    image = targets.image_index[rows]
    embeddings, valid = align_tags(tags, targets.regions, targets.region_mask, image)
    valid = valid & text_mask & region_mask.gather(1, tags.clamp(0, region_mask.shape[1] - 1))
    index, kept = choose(
        config.tokens, valid, relevance=cosine_relevance(embeddings, _reference(config, targets, rows)),
        keys=_keys(config, targets, rows), step=step, salt=3, k=config.k_tag, fraction=config.fraction,
    )  # fmt: skip
    return embeddings, index, kept


def choose_words(config: MADConfig, targets: TeacherTargets, tags: Tensor | None) -> tuple[Tensor, Tensor]:
    """The words that ask in word affinity: the k most relevant ones, whatever the token part selects."""
    mask = targets.selectable_text if tags is None else targets.selectable_text & (tags < 0)
    relevance = text_relevance(
        targets.text_tokens, targets.text_global, targets.image_global, targets.image_index, shared=True
    )
    return choose("adaptive", mask, relevance=relevance, k=config.k_text, fraction=config.fraction)
