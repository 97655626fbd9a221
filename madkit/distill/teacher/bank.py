"""The teacher's side of a training set, gathered from the cache once, so that a step only selects rows.

Images: patch tokens are pooled into the boxes of the student's regions when they are read and then let go; what stays
is one vector per region and image. Texts: teacher tokens are aligned to the student's tokens once per distinct text,
because a text is cut the same way wherever it stands. Both are kept in float16, as the cache has them. A side that does
not fit into memory is not gathered, but read when a batch asks for it (`streamed_bank`); which of the two is decided by
whoever makes the bank (`bank_room`).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from madkit.cache import ImageTokens, TextTokens, TokenCache
from madkit.core.console import Progress
from madkit.core.seeds import permutation
from madkit.distill.teacher.region_targets import pool_boxes, seen_boxes
from madkit.distill.teacher.streamed_bank import StreamedGlobals, StreamedRegions, StreamedTexts
from madkit.mad.align import align_spans, align_text
from madkit.mad.select import function_word_mask_of_spans
from madkit.mad.targets import ChannelStats

CHUNK_IMAGES = 256
CHUNK_TEXTS = 2048


class Vectors(Protocol):
    """Vectors that are looked up by row: a tensor, or what reads them from the cache when it is asked."""

    @property
    def shape(self) -> torch.Size:
        """[rows, ..., D]."""

    def __getitem__(self, key: Any, /) -> Tensor:
        """The vectors of rows [...], as indexing a tensor gives them."""


@dataclass(slots=True)
class ImageBank:
    """regions [n, R, Dv] float16 and globals [n, Dv] float32 of the images of a set, in its own order.

    `present` [n] bool says which of them the cache has; the others are zeros, and no term may compare them.
    `covered` [n, R] bool says which regions have a target, where the cache holds a selection of patches or the teacher
    saw a part of the images; None: all.
    """

    regions: Vectors
    globals: Vectors
    stats: ChannelStats
    global_stats: ChannelStats
    present: Tensor
    covered: Tensor | None = None

    @property
    def streamed(self) -> bool:
        """Whether regions are read when they are asked for."""
        return not isinstance(self.regions, Tensor)


@dataclass(slots=True)
class TextBank:
    """globals [n, Dl] float32 of the distinct texts of a set.

    `tokens` [u, Dl] float16 are targets of the distinct (text, span) pairs of the student's tokens, `has` [u] says
    which of them a teacher token overlaps, `content` [u] which are no function words. The three are None where no
    term compares text tokens. `present` [n] bool says which texts the cache has values for; the others are zeros.
    """

    globals: Vectors
    stats: ChannelStats
    global_stats: ChannelStats
    present: Tensor
    tokens: Vectors | None = None
    has: Tensor | None = None
    content: Tensor | None = None

    @property
    def streamed(self) -> bool:
        """Whether vectors are read when they are asked for."""
        return not isinstance(self.globals, Tensor)


def _stats(store: ImageTokens | TextTokens) -> tuple[ChannelStats, ChannelStats]:
    """Mean and variance of the tokens and of the globals, as the extraction counted them."""
    tokens = ChannelStats(torch.tensor(store.mean), torch.tensor(store.var))
    return tokens, ChannelStats(torch.tensor(store.global_mean), torch.tensor(store.global_var))


def image_bytes(cache: TokenCache, boxes: Tensor, *, tokens: bool) -> int:
    """What `image_bank` holds of images with boxes [n, R, 4], in bytes."""
    n, R = boxes.shape[:2]
    return int(n * cache.images.dim * (4 + (2 * R if tokens else 0)))


def text_bytes(cache: TokenCache, texts: int, pairs: NDArray[np.int64] | None) -> int:
    """What `text_bank` holds of so many texts and the tokens `pairs` [u, 3], in bytes."""
    return int(cache.texts.dim * (4 * texts + (0 if pairs is None else 2 * len(pairs))))


def image_bank(
    cache: TokenCache,
    image_ids: Sequence[str],
    boxes: Tensor,
    *,
    threads: int = 2,
    permute_seed: int | None = None,
    progress: Progress | None = None,
    tokens: bool = True,
    stream: bool = False,
) -> ImageBank:
    """Read and pool the images of a set.

    Args:
        cache: the teacher's cache. CacheError names images that it lacks.
        image_ids: n ids.
        boxes: [n, R, 4] normalised corners of the student's regions; padding is pooled like a thin box.
        threads: readers.
        permute_seed: control: every image is given the tokens of another one.
        progress: advanced by one per image.
        tokens: whether any term compares regions; without, they are zeros that take no memory, no patch is read, and a
            cache of global vectors will do.
        stream: gather no vectors, but read those of a batch when they are asked for.
    """
    images = cache.images
    known = images.present(image_ids)
    there = np.flatnonzero(known)
    rows = images.rows(image_ids, absent="skip")
    if permute_seed is not None:
        rows = rows[_derangement(len(rows), permute_seed)]
    n, R = boxes.shape[:2]
    partly = tokens and (images.selected is not None or images.has_views)
    covered = torch.zeros(n, R, dtype=torch.bool) if partly else None
    regions: Vectors = torch.zeros(1, 1, 1, dtype=torch.float16).expand(n, R, images.dim)  # a shape without memory
    if tokens and not stream:
        regions = torch.zeros(n, R, images.dim, dtype=torch.float16)
    globals_: Vectors = torch.zeros(0 if stream else n, images.dim)
    if stream:
        all_rows = np.full(n, -1, dtype=np.int64)
        all_rows[there] = rows
        globals_ = StreamedGlobals(images, all_rows)
        regions = StreamedRegions(images, all_rows if tokens else np.full(n, -1), boxes, globals_)

    def read(start: int) -> int:
        piece = rows[start : start + CHUNK_IMAGES]
        where = torch.from_numpy(there[start : start + CHUNK_IMAGES])
        if isinstance(globals_, Tensor):
            whole = torch.from_numpy(np.ascontiguousarray(images.globals(piece))).float()
            globals_[where] = whole
            if tokens and isinstance(regions, Tensor):
                regions[where], seen = pool_boxes(images, piece, boxes[where].float(), whole)
                if covered is not None:
                    covered[where] = seen
        elif covered is not None:
            covered[where] = seen_boxes(images, piece, boxes[where].float())
        return len(piece)

    with ThreadPoolExecutor(max_workers=max(1, threads)) as workers:
        for done in workers.map(read, range(0, len(rows), CHUNK_IMAGES)):
            if progress is not None:
                progress.advance(done)
    return ImageBank(regions, globals_, *_stats(images), torch.from_numpy(known), covered)


def _derangement(n: int, seed: int) -> NDArray[np.int64]:
    """A permutation that leaves no place where it was (n > 1): a cycle through all places in random order."""
    order = np.asarray(permutation(n, "permuted teacher", seed), dtype=np.int64)
    target = np.empty(n, dtype=np.int64)
    target[order] = np.roll(order, 1)
    return target


def text_bank(
    cache: TokenCache,
    texts: Sequence[str],
    pairs: NDArray[np.int64] | None,
    *,
    threads: int = 2,
    progress: Progress | None = None,
    stream: bool = False,
) -> TextBank:
    """Read the texts of a set, and align their tokens where `pairs` are given.

    Args:
        cache: the teacher's cache. CacheError names texts that it lacks.
        texts: n distinct texts.
        pairs: [u, 3] (row of the text, start, end) of the distinct student tokens, sorted by row; None: globals only.
        threads: readers.
        progress: advanced by one per text.
        stream: gather no vectors, but read those of a batch when they are asked for.
    """
    store = cache.texts
    known = store.present(texts)
    rows = np.full(len(texts), -1, dtype=np.int64)
    rows[known] = store.rows(texts, absent="skip")
    globals_: Vectors = StreamedGlobals(store, rows) if stream else torch.zeros(len(texts), store.dim)
    u = 0 if pairs is None else len(pairs)
    tokens: Vectors = torch.zeros(0 if stream else u, store.dim, dtype=torch.float16)
    if stream and pairs is not None:
        tokens = StreamedTexts(store, rows, pairs)
    has = torch.zeros(u, dtype=torch.bool)
    content = torch.zeros(u, dtype=torch.bool)

    def read(start: int) -> int:
        here = known[start : start + CHUNK_TEXTS]
        stop = start + len(here)
        piece = rows[start:stop][here]
        if isinstance(globals_, Tensor):
            globals_[torch.from_numpy(start + np.flatnonzero(here))] = torch.from_numpy(
                np.ascontiguousarray(store.globals(piece))
            ).float()
        if pairs is None:
            return len(here)
        low, high = np.searchsorted(pairs[:, 0], [start, stop])
        mine = pairs[low:high]
        offsets = np.zeros(len(here) + 1, dtype=np.int64)  # a text that is absent has no tokens
        if isinstance(tokens, Tensor):
            ragged = store.tokens(piece)
            spans, lengths = ragged.spans, np.diff(ragged.offsets)
        else:
            spans, lengths = store.spans(piece), store.lengths(piece)
        offsets[1:][here] = lengths
        places = (
            torch.from_numpy(mine[:, 1:].copy()).unsqueeze(0),
            torch.from_numpy(mine[:, 0] - start).unsqueeze(0),
        )
        cuts = (torch.from_numpy(np.ascontiguousarray(spans)), torch.from_numpy(np.cumsum(offsets)))
        if isinstance(tokens, Tensor):
            targets, mask = align_text(*places, torch.from_numpy(np.ascontiguousarray(ragged.tokens)), *cuts)
            tokens[low:high] = targets[0].half()
        else:
            mask = align_spans(*places, *cuts).mask
        has[low:high] = mask[0]
        bounds = np.searchsorted(mine[:, 0], np.arange(start, stop + 1))
        for place in range(len(here)):
            first, last = int(bounds[place]), int(bounds[place + 1])
            pieces = [(int(a), int(b)) for a, b in mine[first:last, 1:]]
            if pieces:
                content[low + first : low + last] = ~function_word_mask_of_spans(texts[start + place], pieces)
        return len(here)

    with ThreadPoolExecutor(max_workers=max(1, threads)) as workers:
        for done in workers.map(read, range(0, len(texts), CHUNK_TEXTS)):
            if progress is not None:
                progress.advance(done)
    bank = TextBank(globals_, *_stats(store), torch.from_numpy(known))
    if pairs is not None:
        bank.tokens, bank.has, bank.content = tokens, has, content
    return bank
