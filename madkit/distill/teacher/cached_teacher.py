"""A teacher as its cache knows it, for a training loop of one's own: texts, spans and boxes in, targets out.

`madkit distill` gathers a whole training set before it begins (`teacher_bank`). Here a batch is read when it is asked
for, whatever network and tokenizer it is meant for; the numbers are the same.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from madkit.cache import ImageTokens, TextTokens, TokenCache
from madkit.core.errors import ConfigError, DataError
from madkit.core.seeds import derive_seed
from madkit.distill.teacher.region_targets import pool_boxes
from madkit.distill.teacher.student_places import check_boxes, places_of_tokens, rows_of_images
from madkit.mad.align import align_text
from madkit.mad.config import MADConfig
from madkit.mad.criterion import MADCriterion
from madkit.mad.probe import cross_fit_probe, probe_features
from madkit.mad.select import function_word_mask_of_spans
from madkit.mad.sides import teachable
from madkit.mad.targets import ChannelStats, TeacherTargets
from madkit.mad.weigh import confidence_of_all

_KEPT_TEXTS = 65536

Texts = Sequence[str] | Sequence[Sequence[str]]
"""The text of each sequence, or its texts in the order in which the student reads them."""


class CachedTeacher:
    """What a frozen teacher says about a batch, read from its token cache. Safe to use from several threads.

    Pickled, it takes the place of its cache along, which is opened again where it is wanted: in a ``DataLoader``'s
    processes, for example.

    A cache of images or of texts alone teaches its side: vectors of the other one have width 0, and `criterion` makes a
    criterion without their terms.

    Args:
        cache: an open cache.
        globals_only: read no tokens: every text token and region then is without a target. For ``tokens: global``, and
            for caches that were extracted with ``--tokens global``.

    Attributes:
        cache: as given.
        reads_images: whether the teacher reads images.
        reads_texts: whether it reads texts.
        vision_dim: Dv, width of the image vectors; 0 where it reads none.
        text_dim: Dl, width of the text vectors; 0 where it reads none.
        shared_space: whether both can be compared by cosine.
    """

    def __init__(self, cache: TokenCache, *, globals_only: bool = False) -> None:
        self.cache = cache
        self.globals_only = globals_only
        self.reads_images, self.reads_texts = "images" in cache.parts, "texts" in cache.parts
        self.vision_dim = cache.images.dim if self.reads_images else 0
        self.text_dim = cache.texts.dim if self.reads_texts else 0
        self.shared_space = cache.shared_space and self.reads_images and self.reads_texts
        self._vision_stats = _stats(cache.images) if self.reads_images else (None, None)
        self._text_stats = _stats(cache.texts) if self.reads_texts else (None, None)

    def criterion(self, config: MADConfig, student_dim: int) -> MADCriterion:
        """A criterion for students of width `student_dim`, of all that this teacher can teach of `config`.

        Terms of a side that it does not read, and affinity where its sides share no space, are left out
        (:func:`madkit.mad.sides.teachable`). Raises ConfigError where nothing is left.
        """
        left = teachable(
            config, images=self.reads_images, texts=self.reads_texts, shared_space=self.shared_space
        ).config
        if left is None:
            raise ConfigError(
                f"The teacher '{self.cache.teacher}' can teach nothing of these settings: it reads "
                f"{' and '.join(self.cache.parts)}{'' if self.shared_space else ', without a space of both'}.",
                hint="switch on terms of what it reads, or take another teacher.",
            )
        return MADCriterion(left, student_dim, self.vision_dim, self.text_dim)

    def targets(
        self,
        *,
        images: Sequence[str],
        texts: Texts,
        spans: Tensor,
        segments: Tensor | None = None,
        boxes: Tensor | None = None,
        region_mask: Tensor | None = None,
        image_index: Tensor | None = None,
        keys: Sequence[Hashable] | None = None,
    ) -> TeacherTargets:
        """The targets of S sequences of T text tokens, over B images of R regions.

        Args:
            images: B image ids; of a teacher that reads none they are merely counted.
            texts: S texts, or S sequences of texts (question and answer).
            spans: [S, T, 2] characters (start, end) of each student token, counted in the token's own text. Fast
                tokenizers give them: see `token_spans`. An empty span is no text.
            segments: [S, T] which of its sequence's texts a token belongs to, -1 for special tokens and padding.
                May be left out where each sequence is one text: then every span that is not empty belongs to it.
            boxes: [B, R, 4] corners (x1, y1, x2, y2) of the student's regions, as shares (0 to 1) of the whole image's
                width and height. None: the student has no regions.
            region_mask: [B, R] bool: real regions. None: all.
            image_index: [S] row of each sequence's image. None: the S / B sequences of an image follow each other.
            keys: S names of the sequences' examples, whatever the batch; needed by ``tokens: random`` only.

        Returns:
            Targets on the CPU, tokens and regions in float16 as the cache has them; `TeacherTargets.to` moves them.
            Images and texts that the cache knows but has no values for (``extract --allow-missing``) teach nothing.

        Raises:
            CacheError: images or texts that the cache does not know, or a cache without tokens.
            DataError: shapes that do not fit together, spans outside of their texts, boxes outside of 0 to 1 or with
                their corners the wrong way round.
        """
        rows = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
        S, B = len(rows), len(images)
        image_index = rows_of_images(image_index, S, B)
        spans, segments = places_of_tokens(rows, spans, segments)
        regions, region_mask, image_global, seen = self._regions(images, boxes, region_mask)
        tokens, mask, content, text_global, said = self._text(rows, spans, segments)
        taught = said & seen[image_index]
        return TeacherTargets(
            text_tokens=tokens,
            text_mask=mask,
            text_global=text_global,
            regions=regions,
            region_mask=region_mask,
            image_global=image_global,
            image_index=image_index,
            shared_space=self.shared_space,
            text_content=content,
            text_stats=self._text_stats[0],
            vision_stats=self._vision_stats[0],
            text_global_stats=self._text_stats[1],
            vision_global_stats=self._vision_stats[1],
            taught=None if bool(taught.all()) else taught,
            example_key=None if keys is None else torch.tensor([derive_seed("token choice", key) for key in keys]),
        )

    def globals(self, *, images: Sequence[str], texts: Texts) -> tuple[Tensor, Tensor]:
        """v_0 [B, Dv] of images and l_0 [S, Dl] of sequences (the mean over a sequence's texts), float32.

        Zeros where the cache has no values. Raises CacheError for images or texts that it does not know.
        """
        rows = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
        return self._image_globals(images)[0], self._text_globals(rows)[0]

    def confidence(
        self,
        *,
        images: Sequence[str],
        texts: Texts,
        target: Tensor,
        n_candidates: int = 1,
        folds: int = 5,
        seed: int = 0,
    ) -> Tensor:
        """The teacher's confidence c_T [N] in the gold target of N labelled examples, for ``weighting``.

        The cross-fitted probe of docs/method.md: no example is scored by a head that has seen it or its image. It is
        fitted on the examples that the cache has values for; any other takes their mean, and has no term to weigh.

        Args:
            images: N image ids.
            texts: the texts of N * n_candidates sequences, candidates of an example in a row.
            target: [N] labels, or [N, K] soft scores (VQA).
            n_candidates: C.
            folds: parts of the cross-fitting.
            seed: of the parts.

        Raises:
            CacheError: images or texts that the cache does not know.
            DataError: numbers that do not fit together, or fewer than two images with values.
        """
        N, S = len(images), len(texts)
        if n_candidates < 1 or N * n_candidates != S or len(target) != N:
            raise DataError(
                f"{N} images, {S} sequences of texts and {len(target)} targets are not those of examples with "
                f"{n_candidates} candidates each."
            )
        image, seen, _ = self._image_globals(images)
        text, said, *_ = self._text_globals([(text,) if isinstance(text, str) else tuple(text) for text in texts])
        known = torch.nonzero(torch.from_numpy(seen) & said.view(N, n_candidates).all(1)).flatten()
        if not len(known):
            raise DataError(
                "The cache has no values for any of these examples, so no probe can be fitted.",
                hint="see what is absent: madkit cache info",
            )
        features = probe_features(image, text.view(N, n_candidates, -1) if n_candidates > 1 else text)[known]
        groups = [images[row] for row in known.tolist()]
        gold = target.detach().cpu()[known]
        found = cross_fit_probe(features, gold, groups=groups, folds=folds, seed=seed).confidence
        return confidence_of_all(N, known, found)

    # -- images -----------------------------------------------------------------------------------------------------

    def _image_globals(self, images: Sequence[str]) -> tuple[Tensor, NDArray[np.bool_], NDArray[np.int64]]:
        """v_0 [B, Dv], which images have values, and the rows of those in the cache."""
        if not self.reads_images:
            return torch.zeros(len(images), 0), np.ones(len(images), dtype=np.bool_), np.zeros(0, dtype=np.int64)
        store = self.cache.images
        known = store.present(images)
        rows = store.rows(images, absent="skip")
        vectors = torch.zeros(len(images), store.dim)
        vectors[torch.from_numpy(np.flatnonzero(known))] = _tensor(store.globals(rows)).float()
        return vectors, known, rows

    def _regions(
        self, images: Sequence[str], boxes: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Targets [B, R, Dv] and mask [B, R] of regions, v_0 [B, Dv], and which images have values [B]."""
        vectors, known, rows = self._image_globals(images)
        there = torch.from_numpy(np.flatnonzero(known))
        B = len(images)
        boxes = torch.zeros(B, 0, 4) if boxes is None else boxes.detach().cpu().float()
        mask = torch.ones(boxes.shape[:2], dtype=torch.bool) if mask is None else mask.cpu().bool()
        if boxes.shape != (B, mask.shape[-1], 4) or mask.shape != boxes.shape[:2]:
            raise DataError(
                f"{B} images need boxes of [{B}, R, 4] and a region_mask of [{B}, R], not {tuple(boxes.shape)} and "
                f"{tuple(mask.shape)}."
            )
        check_boxes(boxes, mask, images)
        regions = torch.zeros(*mask.shape, self.vision_dim, dtype=torch.float16)
        covered = torch.zeros_like(mask)
        if not self.globals_only and boxes.shape[1] > 0 and len(rows) > 0:
            regions[there], covered[there] = pool_boxes(self.cache.images, rows, boxes[there], vectors[there])
        return regions, mask & covered, vectors, torch.from_numpy(known)

    # -- texts ------------------------------------------------------------------------------------------------------

    def _text_globals(
        self, sequences: list[tuple[str, ...]]
    ) -> tuple[Tensor, Tensor, list[str], Tensor, NDArray[np.bool_], NDArray[np.int64]]:
        """l_0 [S, Dl], which sequences have a text with values [S], the distinct texts, and so on.

        Further: the place of each sequence's texts among the distinct ones [S, G] (-1 none), which of these have
        values, and the rows of those in the cache.
        """
        places: dict[str, int] = {}
        table = [[places.setdefault(text, len(places)) for text in texts] for texts in sequences]
        distinct = list(places)
        most = max((len(row) for row in table), default=0)
        index = torch.tensor([row + [-1] * (most - len(row)) for row in table], dtype=torch.long).view(len(table), most)
        if not self.reads_texts:
            everything, none = np.ones(len(distinct), dtype=np.bool_), np.zeros(0, dtype=np.int64)
            said = torch.ones(len(sequences), dtype=torch.bool)
            return torch.zeros(len(sequences), 0), said, distinct, index, everything, none
        store = self.cache.texts
        known = store.present(distinct)
        rows = store.rows(distinct, absent="skip")
        vectors = torch.zeros(len(distinct), store.dim)
        vectors[torch.from_numpy(np.flatnonzero(known))] = _tensor(store.globals(rows)).float()
        there = (index >= 0) & torch.from_numpy(known)[index.clamp_min(0)]
        summed = torch.where(there.unsqueeze(-1), vectors[index.clamp_min(0)], 0.0).sum(1)
        return summed / there.sum(1, keepdim=True).clamp_min(1), there.any(1), distinct, index, known, rows

    def _text(
        self, sequences: list[tuple[str, ...]], spans: Tensor, segments: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Targets [S, T, Dl], mask and content [S, T] of text tokens, l_0 [S, Dl], and who has any text [S]."""
        vectors, said, distinct, index, known, rows = self._text_globals(sequences)
        S, T = segments.shape
        if self.globals_only or len(rows) == 0:
            none = torch.zeros(S, T, dtype=torch.bool)
            return torch.zeros(1, 1, 1, dtype=torch.float16).expand(S, T, self.text_dim), none, none, vectors, said
        text = torch.where(segments >= 0, index.gather(1, segments.clamp_min(0)), -1)
        # what a text is cut into is aligned once, however often the batch holds it
        triples = torch.cat([text.unsqueeze(-1), spans], -1).flatten(0, 1)
        pairs, where = torch.unique(triples, dim=0, return_inverse=True)
        ragged = self.cache.texts.tokens(rows)
        lengths = np.zeros(len(distinct) + 1, dtype=np.int64)  # a text that is absent has no tokens
        lengths[1:][known] = np.diff(ragged.offsets)
        aligned, has = align_text(
            pairs[:, 1:].unsqueeze(0), pairs[:, 0].unsqueeze(0), _tensor(ragged.tokens), _tensor(ragged.spans),
            torch.from_numpy(np.cumsum(lengths)),
        )  # fmt: skip
        content = _content_of(distinct, pairs)
        place = where.view(S, T)
        return aligned[0].half()[place], has[0][place], content[place], vectors, said


def _stats(store: ImageTokens | TextTokens) -> tuple[ChannelStats, ChannelStats]:
    """Mean and variance of the tokens and of the globals, as the extraction counted them."""
    tokens = ChannelStats(torch.tensor(store.mean), torch.tensor(store.var))
    return tokens, ChannelStats(torch.tensor(store.global_mean), torch.tensor(store.global_var))


def _tensor(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


def _content_of(texts: list[str], pairs: Tensor) -> Tensor:
    """Which of the pairs [u, 3] (text, start, end), sorted by text, are no function words: [u] bool."""
    content = torch.zeros(len(pairs), dtype=torch.bool)
    numbers, counts = torch.unique_consecutive(pairs[:, 0], return_counts=True)
    first = 0
    for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
        if number >= 0:
            cut = tuple((start, end) for start, end in pairs[first : first + count, 1:].tolist())
            content[first : first + count] = torch.tensor(_content(texts[number], cut))
        first += count
    return content


@lru_cache(maxsize=_KEPT_TEXTS)
def _content(text: str, spans: tuple[tuple[int, int], ...]) -> tuple[bool, ...]:
    """Which spans of a text are no function words. Remembered: epochs read the same texts again."""
    flags: list[bool] = (~function_word_mask_of_spans(text, spans)).tolist()
    return tuple(flags)
