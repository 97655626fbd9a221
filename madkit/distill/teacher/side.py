"""One teacher's side of a set of examples: its vectors, and how a batch's targets are cut from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from madkit.cache import TokenCache
from madkit.core.seeds import derive_seed
from madkit.distill.batches.examples import ExampleSet, TeacherRows
from madkit.distill.batches.order import Indices
from madkit.distill.teacher.absent_side import no_images, no_texts
from madkit.distill.teacher.bank import ImageBank, TextBank, image_bank, image_bytes, text_bank, text_bytes
from madkit.distill.teacher.bank_room import Room
from madkit.distill.teacher.choices import Choices, rows_of
from madkit.mad.config import MADConfig
from madkit.mad.criterion import separate_spaces
from madkit.mad.targets import TeacherTargets
from madkit.students.interface import StudentInputs

_AT_ONCE = 16_384  # examples


def needs_text_tokens(config: MADConfig) -> bool:
    """Whether any term compares single text tokens, so that they must be read at all."""
    words = config.affinity_weight > 0 and config.affinity_form != "sentence"
    return words or "token_text" in config.term_weights


def needs_regions(config: MADConfig) -> bool:
    """Whether any term compares regions, so that the cache must hold image tokens."""
    return config.affinity_weight > 0 or bool({"token_region", "token_tag"} & set(config.term_weights))


def compares_modalities(config: MADConfig) -> bool:
    """Whether a term sets regions against texts, which only a teacher with one space for both can teach."""
    relevance = config.relevance == "shared" and config.tokens == "adaptive" and bool(config.term_weights)
    return config.affinity_weight > 0 or relevance


class TeacherSide:
    """The banks of one set of examples and how a batch's targets are cut from them."""

    def __init__(
        self,
        examples: ExampleSet,
        cache: TokenCache,
        config: MADConfig,
        *,
        threads: int = 2,
        permute_seed: int | None = None,
        whole: bool = True,
        also: Sequence[MADConfig] = (),
        room: Room | None = None,
    ) -> None:
        """Read what `config` needs, and what those of `also` need, which are taught from the same vectors.

        `whole` refuses a cache of images or texts alone; else its other side is empty. `room` says what is held where;
        None: one of its own.

        Raises CacheError, which names missing images or texts and the command that extracts them, or ConfigError where
        `config` compares images with texts and the teacher's two encoders do not share a space.
        """
        room = Room() if room is None else room
        self.examples = examples
        self.shared_space, self.logit_scale = cache.shared_space, cache.logit_scale
        configs = (config, *also)
        for one in configs:
            if compares_modalities(one) and not self.shared_space:  # said before anything is read
                raise separate_spaces(one.affinity_weight > 0)
        self.images: ImageBank
        if whole or "images" in cache.parts:
            regions = any(map(needs_regions, configs))
            self.images = image_bank(
                cache,
                examples.image_ids,
                examples.region_boxes,
                threads=threads,
                permute_seed=permute_seed,
                tokens=regions,
                stream=room.streams("images", image_bytes(cache, examples.region_boxes, tokens=regions)),
            )
            if regions and isinstance(self.images.regions, Tensor):  # else they are zeros, which take no room
                self.images.regions = room.place("regions", self.images.regions)
        else:
            self.images = no_images(examples.region_boxes)
        pairs = examples.token_pairs if any(map(needs_text_tokens, configs)) else None
        self.texts: TextBank
        if whole or "texts" in cache.parts:
            stream = room.streams("texts", text_bytes(cache, len(examples.texts), pairs))
            self.texts = text_bank(cache, examples.texts, pairs, threads=threads, stream=stream)
        else:
            self.texts = no_texts(len(examples.texts))
        self._texts_there = None if self.texts.present.all() else self.texts.present
        self._taught = self._find_taught()
        self._keys: Tensor | None = None
        if any(one.tokens == "random" for one in configs):
            names = examples.ids
            self._keys = torch.tensor([derive_seed("token choice", name) for name in names])
        # what several settings compare of the same vectors is chosen by their criteria, batch by batch
        self._choices = None if also else Choices(config, examples, self.images, self.texts, keys=self._keys)

    def _find_taught(self) -> Tensor | None:
        """[n * C] bool: sequences whose image and at least one text the cache has; None where it has all."""
        if self._texts_there is None and self.images.present.all():
            return None
        parts = []
        for start in range(0, len(self.examples), _AT_ONCE):
            rows = self.examples.teacher_rows(np.arange(start, min(start + _AT_ONCE, len(self.examples))))
            said = ((rows.texts >= 0) & self.texts.present[rows.texts.clamp_min(0)]).any(1)
            parts.append(said & self.images.present[rows.images].repeat_interleave(self.examples.n_candidates))
        return torch.cat(parts)

    @property
    def reads(self) -> bool:
        """Whether vectors are read from the cache when a batch asks for them."""
        return self.images.streamed or self.texts.streamed

    @property
    def taught(self) -> Tensor:
        """[n] bool: examples of whose every sequence the teacher says something, because the cache has its items."""
        if self._taught is None:
            return torch.ones(len(self.examples), dtype=torch.bool)
        return self._taught.view(-1, self.examples.n_candidates).all(1)

    @property
    def untaught(self) -> int:
        """Examples with a sequence that the teacher says nothing about, because the cache lacks its image or texts."""
        return int((~self.taught).sum())

    def targets(self, rows: TeacherRows, indices: Indices, inputs: StudentInputs) -> TeacherTargets:
        """The teacher's side of a batch whose student tensors are `inputs`."""
        return self._said(rows, indices, inputs, words=True, regions=True)

    def _said(
        self, rows: TeacherRows, indices: Indices, inputs: StudentInputs, *, words: bool, regions: bool
    ) -> TeacherTargets:
        R, S, Dl = inputs.region_mask.shape[1], len(rows.texts), self.texts.globals.shape[1]
        if words and self.texts.tokens is not None and self.texts.has is not None and self.texts.content is not None:
            there = rows.tokens >= 0
            place = rows.tokens.clamp_min(0)
            tokens = self.texts.tokens[place]
            mask = there & self.texts.has[place]
            content = there & self.texts.content[place]
        else:  # no term reads them: nothing that would have to be copied to a GPU
            tokens = torch.zeros(S, 0, Dl, dtype=torch.float16)
            mask = content = torch.zeros(S, 0, dtype=torch.bool)
        keys = None
        if self._keys is not None:
            keys = self._keys[torch.from_numpy(indices)].repeat_interleave(self.examples.n_candidates)
        return TeacherTargets(
            text_tokens=tokens,
            text_mask=mask,
            text_global=self.text_globals(rows.texts),
            regions=self.images.regions[rows.images, :R] if regions else self._no_regions(len(rows.images)),
            region_mask=inputs.region_mask
            if self.images.covered is None or not regions
            else inputs.region_mask & self.images.covered[rows.images, :R],
            image_global=rows_of(self.images.globals, rows.images),
            image_index=inputs.image_index,
            shared_space=self.shared_space,
            text_content=content,
            text_stats=self.texts.stats,
            vision_stats=self.images.stats,
            text_global_stats=self.texts.global_stats,
            vision_global_stats=self.images.global_stats,
            taught=self._taught_sequences(indices),
            example_key=keys,
        )

    def chosen(
        self, rows: TeacherRows, indices: Indices, inputs: StudentInputs, *, label: Tensor | None, step: int
    ) -> TeacherTargets:
        """`targets` with the token part chosen already, and without tensors that nothing else compares.

        Args:
            rows: where the teacher's vectors of the batch stand.
            indices: its examples.
            inputs: the student's tensors.
            label: [B] labels that the criterion will be given; None: it gets none.
            step: number of the step.
        """
        if self._choices is None:
            return self.targets(rows, indices, inputs)
        config = self._choices.config
        taught = self._taught_sequences(indices)
        chosen = self._choices.of(
            rows, indices, inputs, label=label, taught=taught, step=step,
            whole=lambda: self.targets(rows, indices, inputs),
        )  # fmt: skip
        words = config.affinity_weight > 0 and config.affinity_form != "sentence"
        return replace(
            self._said(rows, indices, inputs, words=words, regions=config.affinity_weight > 0), chosen=chosen
        )

    def _no_regions(self, B: int) -> Tensor:
        return torch.zeros(B, 0, self.images.regions.shape[2], dtype=torch.float16)

    def _taught_sequences(self, indices: Indices) -> Tensor | None:
        if self._taught is None:
            return None
        return self._taught.view(-1, self.examples.n_candidates)[torch.from_numpy(indices)].flatten()

    def text_globals(self, rows: Tensor) -> Tensor:
        """l_0 [S, Dl] of sequences made of the texts `rows` [S, G] (-1 none): the mean over the texts."""
        if rows.shape[1] == 1 and self._texts_there is None and bool((rows >= 0).all()):
            return rows_of(self.texts.globals, rows.squeeze(1))
        there = (rows >= 0).unsqueeze(-1)
        if self._texts_there is not None:
            there = there & self._texts_there[rows.clamp_min(0)].unsqueeze(-1)
        vectors = torch.where(there, self.texts.globals[rows.clamp_min(0)], 0.0)
        return vectors.sum(1) / there.sum(1).clamp_min(1)
