"""The teacher's side of a training set, gathered from the cache once, so that a step only selects rows.

Images: patch tokens are pooled into the boxes of the student's regions when they are read and then let go; what stays
is one vector per region and image. Texts: teacher tokens are aligned to the student's tokens once per distinct text,
because a text is cut the same way wherever it stands. Both are kept in float16, as the cache has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from madkit.cache import ImageTokens, TextTokens, TokenCache
from madkit.core.console import Progress
from madkit.core.seeds import permutation
from madkit.mad.align import align_text, boxes_in_view, pool_regions, pool_selected
from madkit.mad.select import function_word_mask_of_spans
from madkit.mad.targets import ChannelStats

CHUNK_IMAGES = 256
CHUNK_TEXTS = 2048
_WHOLE = 0.999  # a box that covers this share of the picture is the picture
_SEEN = 0.5  # a box of which the teacher saw less than this has no target: its patches would describe something else


@dataclass(slots=True)
class ImageBank:
    """regions [n, R, Dv] float16 and globals [n, Dv] float32 of the images of a set, in its own order.

    `present` [n] bool says which of them the cache has; the others are zeros, and no term may compare them.
    `covered` [n, R] bool says which regions have a target, where the cache holds a selection of patches or the teacher
    saw a part of the images; None: all.
    """

    regions: Tensor
    globals: Tensor
    stats: ChannelStats
    global_stats: ChannelStats
    present: Tensor
    covered: Tensor | None = None


@dataclass(slots=True)
class TextBank:
    """globals [n, Dl] float32 of the distinct texts of a set.

    `tokens` [u, Dl] float16 are targets of the distinct (text, span) pairs of the student's tokens, `has` [u] says
    which of them a teacher token overlaps, `content` [u] which are no function words. The three are None where no
    term compares text tokens. `present` [n] bool says which texts the cache has values for; the others are zeros.
    """

    globals: Tensor
    stats: ChannelStats
    global_stats: ChannelStats
    present: Tensor
    tokens: Tensor | None = None
    has: Tensor | None = None
    content: Tensor | None = None


def _stats(store: ImageTokens | TextTokens) -> tuple[ChannelStats, ChannelStats]:
    """Mean and variance of the tokens and of the globals, as the extraction counted them."""
    tokens = ChannelStats(torch.tensor(store.mean), torch.tensor(store.var))
    return tokens, ChannelStats(torch.tensor(store.global_mean), torch.tensor(store.global_var))


def image_bank(
    cache: TokenCache,
    image_ids: Sequence[str],
    boxes: Tensor,
    *,
    threads: int = 2,
    permute_seed: int | None = None,
    progress: Progress | None = None,
    tokens: bool = True,
) -> ImageBank:
    """Read and pool the images of a set.

    Args:
        cache: the teacher's cache. CacheError names images that it lacks.
        image_ids: n ids.
        boxes: [n, R, 4] normalised corners of the student's regions; padding is pooled like a thin box.
        threads: readers.
        permute_seed: control: every image is given the tokens of another one.
        progress: advanced by one per image.
        tokens: whether any term compares regions; without, they stay zeros, and a cache of global vectors will do.
    """
    images = cache.images
    known = images.present(image_ids)
    there = np.flatnonzero(known)
    rows = images.rows(image_ids, absent="skip")
    if permute_seed is not None:
        rows = rows[_derangement(len(rows), permute_seed)]
    n, R = boxes.shape[:2]
    partly = images.selected is not None or images.has_views
    covered = torch.zeros(n, R, dtype=torch.bool) if tokens and partly else None
    regions = torch.zeros(n, R, images.dim, dtype=torch.float16)
    global_ = torch.zeros(n, images.dim)

    def read(start: int) -> int:
        piece = rows[start : start + CHUNK_IMAGES]
        where = torch.from_numpy(there[start : start + CHUNK_IMAGES])
        whole = torch.from_numpy(np.ascontiguousarray(images.globals(piece))).float()
        global_[where] = whole
        if not tokens:
            return len(piece)
        patches = torch.from_numpy(np.ascontiguousarray(images.tokens(piece)))
        box = boxes[where].float()
        picture = (box[..., 2] - box[..., 0]) * (box[..., 3] - box[..., 1]) >= _WHOLE
        seen = torch.ones_like(picture)
        views = images.views(piece)
        if views is not None:
            box, share = boxes_in_view(box, torch.from_numpy(views))
            seen = picture | (share >= _SEEN)
        if images.selected is None:
            pooled = pool_regions(patches, box, images.grid, image_global=whole, whole_image=picture)
            known = seen
        else:
            places = torch.from_numpy(images.positions(piece))
            pooled, known = pool_selected(patches, places, box, images.grid, image_global=whole, whole_image=picture)
        if covered is not None:
            covered[where] = known & seen
            pooled = pooled * (known & seen).unsqueeze(-1)
        regions[where] = pooled.half()
        return len(piece)

    with ThreadPoolExecutor(max_workers=max(1, threads)) as workers:
        for done in workers.map(read, range(0, len(rows), CHUNK_IMAGES)):
            if progress is not None:
                progress.advance(done)
    return ImageBank(regions, global_, *_stats(images), torch.from_numpy(known), covered)


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
) -> TextBank:
    """Read the texts of a set, and align their tokens where `pairs` are given.

    Args:
        cache: the teacher's cache. CacheError names texts that it lacks.
        texts: n distinct texts.
        pairs: [u, 3] (row of the text, start, end) of the distinct student tokens, sorted by row; None: globals only.
        threads: readers.
        progress: advanced by one per text.
    """
    store = cache.texts
    known = store.present(texts)
    rows = np.zeros(len(texts), dtype=np.int64)
    rows[known] = store.rows(texts, absent="skip")
    global_ = torch.zeros(len(texts), store.dim)
    u = 0 if pairs is None else len(pairs)
    tokens = torch.zeros(u, store.dim, dtype=torch.float16)
    has = torch.zeros(u, dtype=torch.bool)
    content = torch.zeros(u, dtype=torch.bool)

    def read(start: int) -> int:
        here = known[start : start + CHUNK_TEXTS]
        stop = start + len(here)
        piece = rows[start:stop][here]
        global_[torch.from_numpy(start + np.flatnonzero(here))] = torch.from_numpy(
            np.ascontiguousarray(store.globals(piece))
        ).float()
        if pairs is None:
            return len(here)
        low, high = np.searchsorted(pairs[:, 0], [start, stop])
        mine = pairs[low:high]
        ragged = store.tokens(piece)
        offsets = np.zeros(len(here) + 1, dtype=np.int64)  # a text that is absent has no tokens
        offsets[1:][here] = np.diff(ragged.offsets)
        offsets = np.cumsum(offsets)
        targets, mask = align_text(
            torch.from_numpy(mine[:, 1:].copy()).unsqueeze(0),
            torch.from_numpy(mine[:, 0] - start).unsqueeze(0),
            torch.from_numpy(np.ascontiguousarray(ragged.tokens)),
            torch.from_numpy(np.ascontiguousarray(ragged.spans)),
            torch.from_numpy(offsets),
        )
        tokens[low:high] = targets[0].half()
        has[low:high] = mask[0]
        bounds = np.searchsorted(mine[:, 0], np.arange(start, stop + 1))
        for place in range(len(here)):
            first, last = int(bounds[place]), int(bounds[place + 1])
            spans = [(int(a), int(b)) for a, b in mine[first:last, 1:]]
            if spans:
                content[low + first : low + last] = ~function_word_mask_of_spans(texts[start + place], spans)
        return len(here)

    with ThreadPoolExecutor(max_workers=max(1, threads)) as workers:
        for done in workers.map(read, range(0, len(texts), CHUNK_TEXTS)):
            if progress is not None:
                progress.advance(done)
    bank = TextBank(global_, *_stats(store), torch.from_numpy(known))
    if pairs is not None:
        bank.tokens, bank.has, bank.content = tokens, has, content
    return bank
