"""Tokens of a batch that were chosen before the step: what stays of a teacher's side when only those are compared.

Relevance, and with it the choice, depends on the example and the teachers alone, not on the student or the step. Who
trains for more than one epoch therefore chooses once (`distill.teacher.choices`) and hands each step the few targets
that it compares, not every token of every sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from madkit.mad.config import MADConfig

ChoiceKey = tuple[object, ...]


def choice_key(config: MADConfig) -> ChoiceKey:
    """All of a configuration that the choice of tokens depends on."""
    return (
        config.tokens, config.k_text, config.k_region, config.k_tag, config.fraction, config.relevance,
        config.candidates, config.tag_targets, tuple(config.term_weights),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Lookup:
    """Rows of a table that may lie on another device; `to` makes them a tensor there.

    Attributes:
        table: [n, D].
        rows: [...] long.
        mask: [...] bool: the others become zeros. None: all count.
    """

    table: Tensor
    rows: Tensor
    mask: Tensor | None = None

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Tensor:
        """[..., D] on `device`, read where the table is."""
        rows = moved(self.rows, self.table.device, non_blocking)
        found = self.table.index_select(0, rows.flatten()).view(*rows.shape, self.table.shape[1])
        if self.mask is not None:
            found = found * self.mask.to(self.table.device, non_blocking=non_blocking).unsqueeze(-1)
        return moved(found, torch.device(device), non_blocking)


@dataclass(frozen=True, slots=True)
class ChosenKind:
    """Chosen tokens of one kind in N sequences, K each.

    Attributes:
        index: [N, K] text positions, or regions of the image.
        valid: [N, K] bool.
        target: [N, K, D] their embeddings; anything where not valid.
        region: [N, K] region that a tag stands for; None for words and regions.
    """

    index: Tensor
    valid: Tensor
    target: Tensor | Lookup
    region: Tensor | None = None

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> ChosenKind:
        """The same on another device; a `Lookup` is looked up."""
        device, target = torch.device(device), self.target
        return ChosenKind(
            moved(self.index, device, non_blocking),
            moved(self.valid, device, non_blocking),
            target.to(device, non_blocking=non_blocking)
            if isinstance(target, Lookup)
            else moved(target, device, non_blocking),
            moved(self.region, device, non_blocking),
        )


@dataclass(frozen=True, slots=True)
class ChosenTokens:
    """The token part of a batch's targets.

    Attributes:
        sequences: [N] the sequences that are taught.
        gold: they are the gold candidates' alone, one per example, and the criterion is to be given the labels.
        made_for: `choice_key` of the settings that they were chosen for; a criterion of other ones refuses them.
        text, region, tag: what is compared of each kind; None where the configuration has no such term.
    """

    sequences: Tensor
    gold: bool
    made_for: ChoiceKey
    text: ChosenKind | None = None
    region: ChosenKind | None = None
    tag: ChosenKind | None = None

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> ChosenTokens:
        """The same on another device."""
        device = torch.device(device)
        kinds = (
            None if kind is None else kind.to(device, non_blocking=non_blocking)
            for kind in (self.text, self.region, self.tag)
        )
        return ChosenTokens(moved(self.sequences, device, non_blocking), self.gold, self.made_for, *kinds)


@overload
def moved(value: Tensor, device: torch.device, non_blocking: bool) -> Tensor: ...
@overload
def moved(value: Tensor | None, device: torch.device, non_blocking: bool) -> Tensor | None: ...


def moved(value: Tensor | None, device: torch.device, non_blocking: bool) -> Tensor | None:
    """`value` on `device`; one that is there is not even asked to go, since a batch has some thirty tensors."""
    if value is None or value.device == device:
        return value
    return value.to(device, non_blocking=non_blocking)
