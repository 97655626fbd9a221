"""Which tokens of a set's sequences are compared: chosen once each, so that a step only looks its few targets up.

Relevance depends on an example and the teachers alone. The configured selection is therefore worked out when a sequence
is first asked for, with the same functions that choose for any batch (`madkit.mad.choice`), and what stays of it are
positions, some hundred bytes per sequence. Random selection depends on the step and is drawn when the batch is cut.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from madkit.distill.batches.examples import ExampleSet, TeacherRows
from madkit.distill.batches.order import Indices
from madkit.distill.teacher.bank import ImageBank, TextBank, Vectors
from madkit.mad.choice import choose_regions, choose_tags, choose_text
from madkit.mad.chosen import ChosenKind, ChosenTokens, Lookup, choice_key
from madkit.mad.config import MADConfig
from madkit.mad.select import choose, chosen_width
from madkit.mad.targets import TeacherTargets
from madkit.students.interface import StudentInputs

_SALTS = {"token_text": 1, "token_region": 2, "token_tag": 3}  # of random selection, as in `madkit.mad.choice`


@dataclass(slots=True)
class _Best:
    """Where the best positions of n sequences stand in one table [n, W] of all kinds, so that a step reads once.

    Attributes:
        table: the kinds' table, int32.
        first: column of how many positions count; the positions follow, best first, then what they stand for: rows of
            the text bank for words, regions for tags.
        width: how many positions there are.
    """

    table: Tensor
    first: int
    width: int

    def fill(self, rows: Tensor, index: Tensor, valid: Tensor, stands: Tensor | None = None) -> None:
        rows, first, index = rows.cpu(), self.first, index[:, : self.width]
        self.table[rows, first] = valid.sum(1, dtype=torch.int32).cpu()
        first += 1
        self.table[rows, first : first + index.shape[1]] = index.to("cpu", torch.int32)
        if stands is not None:
            first += self.width
            self.table[rows, first : first + index.shape[1]] = stands[:, : self.width].to("cpu", torch.int32)

    def of(self, found: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Index [N, width] and validity in the rows `found` [N, W] of the table."""
        width = min(width, self.width)
        index = found[:, self.first + 1 : self.first + 1 + width]
        return index, _numbers(width) < found[:, self.first : self.first + 1]

    def stands(self, found: Tensor, width: int) -> Tensor:
        """What these positions stand for [N, width]."""
        first = self.first + 1 + self.width
        return found[:, first : first + min(width, self.width)]


@lru_cache(maxsize=64)
def _numbers(width: int) -> Tensor:
    """0 to width - 1. Read only."""
    return torch.arange(width)


@dataclass(frozen=True, slots=True)
class _Asked:
    """One batch: its N taught sequences, by place in the batch and in the set, and what is known of them."""

    places: Tensor  # [N]
    rows: Tensor  # [N]
    image: Tensor  # [N] rows of the image bank
    tokens: Tensor  # [N, T] rows of the text bank's tokens, -1 none
    text_mask: Tensor  # [N, T]
    region_mask: Tensor  # [N, R] bool: regions with a target
    tags: Tensor | None  # [N, T] region of each tag, -1 none; None where tags are words like others
    keys: Tensor | None  # [N]

    def to(self, device: torch.device) -> _Asked:
        """The same on another device."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: None if one is None else one.to(device) for name, one in values.items()}
        return _Asked(**moved)


class Choices:
    """The tokens of a set that the token part of an objective compares.

    Args:
        config: the objective.
        examples: the set.
        images: the teacher's side of its images.
        texts: the teacher's side of its texts.
        keys: [n] number that names each example, for ``tokens: random``.
    """

    def __init__(
        self,
        config: MADConfig,
        examples: ExampleSet,
        images: ImageBank,
        texts: TextBank,
        *,
        keys: Tensor | None = None,
    ) -> None:
        self.config = config
        self._made_for = choice_key(config)
        self.examples = examples
        self.images = images
        self.texts = texts
        self.keys = keys
        self._has_tags = examples.has_tags
        longest = int(examples.text_lengths.max())
        lengths = {
            "token_text": (config.k_text, longest),
            "token_region": (config.k_region, int(examples.region_counts.max())),
            "token_tag": (config.k_tag, longest),
        }
        self.sizes = {name: k for name, (k, _) in lengths.items() if name in config.term_weights}
        n = len(examples) * examples.n_candidates
        self._best: dict[str, _Best] = {}
        self._all_ranked = False
        widths: dict[str, int] = {}
        if config.tokens == "adaptive":
            for name, k in self.sizes.items():
                widths[name] = chosen_width(lengths[name][1], k=k, fraction=config.fraction)
            if not self._has_tags and "token_tag" in widths:
                widths["token_tag"] = 0
        # the first column is 1 where a sequence has been chosen from
        columns = 1 + sum(1 + width * (1 if name == "token_region" else 2) for name, width in widths.items())
        self._table = torch.zeros(n if widths else 0, columns, dtype=torch.int32)
        first = 1
        for name, width in widths.items():
            self._best[name] = _Best(self._table, first, width)
            first += 1 + width * (1 if name == "token_region" else 2)

    def of(
        self,
        rows: TeacherRows,
        indices: Indices,
        inputs: StudentInputs,
        *,
        label: Tensor | None,
        taught: Tensor | None,
        step: int,
        whole: Callable[[], TeacherTargets],
    ) -> ChosenTokens:
        """The chosen tokens of a batch: where they are, and what they are compared with.

        Args:
            rows: where the teacher's vectors of the batch stand.
            indices: its examples.
            inputs: the student's tensors.
            label: [B] gold candidates; None: all candidates are taught.
            taught: [S] bool: sequences that the teacher says anything about; None: all.
            step: number of the step, for ``tokens: random``.
            whole: the full targets of the batch, asked for where a sequence has not been chosen from yet.
        """
        C = self.examples.n_candidates
        gold = C > 1 and self.config.candidates == "gold" and label is not None
        places = torch.arange(len(indices) * C)
        if gold and label is not None:
            places = places[::C] + label.clamp(0, C - 1)
        said = None if taught is None else taught[places].unsqueeze(1)
        if self._best:
            mine = self._sequences(places, indices)
            found = self._table.index_select(0, mine)
            if not self._all_ranked and not found[:, 0].all():
                self._rank(self._asked(places, rows, indices, inputs), whole())
                found = self._table.index_select(0, mine)
            return self._noted(places, found.long(), rows, inputs, said, gold=gold)
        asked = self._asked(places, rows, indices, inputs)
        kinds: dict[str, ChosenKind] = {}
        for name in self.sizes:
            if name == "token_tag" and (asked.tags is None or asked.region_mask.shape[1] == 0):
                continue
            index, valid = self._pick(name, asked, step)
            valid = valid if said is None else valid & said
            if name == "token_tag" and not valid.any():  # most tasks have no tags: nothing is projected for them
                index, valid = index[:, :0], valid[:, :0]
            if name == "token_text":
                assert self.texts.tokens is not None
                row = asked.tokens.gather(1, index).clamp_min(0)
                kinds[name] = ChosenKind(index, valid, rows_of(self.texts.tokens, row))
            elif name == "token_region":
                kinds[name] = ChosenKind(index, valid, self._regions(asked.image, index))
            elif asked.tags is not None:
                region = asked.tags.gather(1, index)
                kinds[name] = ChosenKind(index, valid, self._regions(asked.image, region.clamp_min(0)), region)
        return self._tokens(places, gold, kinds)

    def _noted(
        self,
        places: Tensor,
        noted: Tensor,
        rows: TeacherRows,
        inputs: StudentInputs,
        said: Tensor | None,
        *,
        gold: bool,
    ) -> ChosenTokens:
        """The chosen tokens of sequences that have all been chosen from, of which `noted` [N, W] is on the table."""
        config = self.config
        T, R = inputs.input_ids.shape[1], inputs.region_mask.shape[1]
        image = rows.images
        if self.examples.n_candidates > 1:
            image = image.index_select(0, inputs.image_index.index_select(0, places))
        kinds: dict[str, ChosenKind] = {}
        for name, k in self.sizes.items():
            if name == "token_tag" and (not config.tag_targets or R == 0):
                continue
            width = chosen_width(R if name == "token_region" else T, k=k, fraction=config.fraction)
            index, valid = self._best[name].of(noted, width)
            valid = valid if said is None else valid & said
            if name == "token_region":
                kinds[name] = ChosenKind(index, valid, self._regions(image, index))
                continue
            if name == "token_tag" and not (index.shape[1] and valid.any()):  # nothing is projected for them
                none = index[:, :0]
                nowhere = torch.zeros(len(index), 0, self.images.regions.shape[2], dtype=torch.float16)
                kinds[name] = ChosenKind(none, valid[:, :0], nowhere, none)
                continue
            stands = self._best[name].stands(noted, width)
            if name == "token_text":
                assert self.texts.tokens is not None
                kinds[name] = ChosenKind(index, valid, rows_of(self.texts.tokens, stands))
            else:
                kinds[name] = ChosenKind(index, valid, self._regions(image, stands.clamp_min(0)), stands)
        return self._tokens(places, gold, kinds)

    def _tokens(self, places: Tensor, gold: bool, kinds: dict[str, ChosenKind]) -> ChosenTokens:
        return ChosenTokens(
            places, gold, self._made_for, kinds.get("token_text"), kinds.get("token_region"), kinds.get("token_tag")
        )

    def _sequences(self, places: Tensor, indices: Indices) -> Tensor:
        """[N] the sequences of the set that stand at `places` of a batch."""
        example, C = torch.from_numpy(indices), self.examples.n_candidates
        return example if C == 1 else (example[:, None] * C + torch.arange(C)).flatten()[places]

    def _asked(self, places: Tensor, rows: TeacherRows, indices: Indices, inputs: StudentInputs) -> _Asked:
        C = self.examples.n_candidates
        example = torch.from_numpy(indices)
        owner = inputs.image_index[places]
        region_mask = inputs.region_mask
        if self.images.covered is not None:
            region_mask = region_mask & self.images.covered[rows.images, : region_mask.shape[1]]
        return _Asked(
            places=places,
            rows=self._sequences(places, indices),
            image=rows.images[owner],
            tokens=rows.tokens[places],
            text_mask=inputs.text_mask[places],
            region_mask=region_mask[owner],
            tags=inputs.tag_regions[places] if self.config.tag_targets else None,
            keys=None if self.keys is None else self.keys[example].repeat_interleave(C)[places],
        )

    def _rank(self, asked: _Asked, targets: TeacherTargets) -> None:
        """Choose from the sequences of a batch, where the regions are held, and note what was chosen."""
        config, rows = self.config, asked.rows
        where = targets.regions.device
        targets, asked = targets.to(where), asked.to(where)
        if "token_text" in self._best:
            index, valid = choose_text(config, targets, asked.places, asked.tags, 0)
            self._best["token_text"].fill(rows, index, valid, asked.tokens.gather(1, index).clamp_min(0))
        if "token_region" in self._best:
            found = choose_regions(config, targets, asked.places, asked.region_mask, 0)
            self._best["token_region"].fill(rows, *found)
        if "token_tag" in self._best and asked.tags is not None and asked.region_mask.shape[1] > 0:
            _, index, kept = choose_tags(
                config, targets, asked.places, asked.tags, asked.text_mask, asked.region_mask, 0
            )
            self._best["token_tag"].fill(rows, index, kept, asked.tags.gather(1, index))
        self._table[rows.cpu(), 0] = 1
        self._all_ranked = bool(self._table[:, 0].all())

    def _pick(self, name: str, asked: _Asked, step: int) -> tuple[Tensor, Tensor]:
        """Index [N, K] and validity [N, K] of one kind."""
        config, k = self.config, self.sizes[name]
        if name == "token_text":
            mask = self._words(asked)
        elif name == "token_region":
            mask = asked.region_mask
        else:
            assert asked.tags is not None
            there = asked.region_mask.gather(1, asked.tags.clamp(0, asked.region_mask.shape[1] - 1))
            mask = (asked.tags >= 0) & asked.text_mask & there
        return choose(config.tokens, mask, keys=asked.keys, step=step, salt=_SALTS[name], k=k, fraction=config.fraction)

    def _words(self, asked: _Asked) -> Tensor:
        """[N, T] bool: text positions that may be taught, as `choose_text` has them."""
        assert self.texts.has is not None
        assert self.texts.content is not None
        place = asked.tokens.clamp_min(0)
        mask = (asked.tokens >= 0) & self.texts.has[place]
        if self.config.tokens != "all":
            mask &= self.texts.content[place]
        return mask if asked.tags is None else mask & (asked.tags < 0)

    def _regions(self, image: Tensor, index: Tensor) -> Tensor | Lookup:
        """Embeddings [N, K, Dv] of the regions `index` [N, K] of images [N]."""
        regions = self.images.regions
        if not isinstance(regions, Tensor):
            return regions[image.unsqueeze(1), index]
        return Lookup(regions.flatten(0, 1), image.unsqueeze(1) * regions.shape[1] + index)


def rows_of(table: Vectors, rows: Tensor) -> Tensor:
    """[..., D] of a table at rows [...]."""
    if isinstance(table, Tensor):  # index_select is several times as fast as indexing
        return table.index_select(0, rows.flatten()).view(*rows.shape, table.shape[1])
    return table[rows]
