"""The teacher's side of a set that does not fit into memory: a batch's rows are read from the cache when it asks.

These stand in the place of a bank's tensors and are indexed like them; what they give is the same to the last digit.
Files are mapped, so what was read lately is the system's page cache and no memory of the process. Whoever trains reads
ahead (`madkit.distill.loop.ahead`), so that a step finds its rows there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from madkit.cache import ImageTokens, TextTokens
from madkit.distill.teacher.region_targets import pool_boxes
from madkit.mad.align import align_text


class StreamedGlobals:
    """Global vectors [n, D] float32 of a store's items; zeros where it has no values.

    Args:
        store: images or texts.
        rows: [n] rows of the store; -1 where it has no values.
    """

    def __init__(self, store: ImageTokens | TextTokens, rows: NDArray[np.int64]) -> None:
        self._store = store
        self._rows = rows
        self.shape = torch.Size((len(rows), store.dim))

    def __getitem__(self, key: Tensor) -> Tensor:
        """[..., D] of the items `key` [...]."""
        wanted, where = torch.unique(key, return_inverse=True)
        rows = self._rows[wanted.numpy()]
        there = rows >= 0
        found = torch.zeros(len(rows), self.shape[1])
        if there.any():
            found[torch.from_numpy(there)] = _tensor(self._store.globals(rows[there])).float()
        return found[where]


class StreamedRegions:
    """Regions [n, R, Dv] float16: patches are read and averaged over the boxes of the images that are asked for.

    Args:
        images: the image half of a cache.
        rows: [n] rows of the cache; -1 where it has no values.
        boxes: [n, R, 4] normalised corners.
        globals_: [n, Dv], the target of boxes that hold the whole image.
    """

    def __init__(
        self, images: ImageTokens, rows: NDArray[np.int64], boxes: Tensor, globals_: Tensor | StreamedGlobals
    ) -> None:
        self._images = images
        self._rows = rows
        self._boxes = boxes
        self._globals = globals_
        self.shape = torch.Size((len(rows), boxes.shape[1], images.dim))

    def __getitem__(self, key: Any) -> Tensor:
        """[B, R, Dv] of the images `key` [B]; (key, slice) or (key, index) take some of the regions, as of a tensor."""
        images, cut = key if isinstance(key, tuple) else (key, slice(None))
        wanted, where = torch.unique(images, return_inverse=True)
        rows = self._rows[wanted.numpy()]
        there = rows >= 0
        found = torch.zeros(len(rows), *self.shape[1:], dtype=torch.float16)
        if there.any():
            known = wanted[torch.from_numpy(there)]
            pooled, _ = pool_boxes(self._images, rows[there], self._boxes[known].float(), self._globals[known])
            found[torch.from_numpy(there)] = pooled
        return found[where, cut]


class StreamedTexts:
    """Targets [u, Dl] float16 of a set's distinct student tokens: their texts are read and aligned when asked for.

    Args:
        store: the text half of a cache.
        rows: [n] rows of the cache for the set's texts; -1 where it has no values.
        pairs: [u, 3] (place among the texts, start, end), sorted by text.
    """

    def __init__(self, store: TextTokens, rows: NDArray[np.int64], pairs: NDArray[np.int64]) -> None:
        self._store = store
        self._rows = rows
        self._pairs = pairs
        self.shape = torch.Size((len(pairs), store.dim))

    def __getitem__(self, key: Tensor) -> Tensor:
        """[..., Dl] of the tokens `key` [...]."""
        wanted, where = torch.unique(key, return_inverse=True)
        pairs = self._pairs[wanted.numpy()]
        texts, place = np.unique(pairs[:, 0], return_inverse=True)
        rows = self._rows[texts]
        there = rows >= 0
        ragged = self._store.tokens(rows[there])
        lengths = np.zeros(len(texts) + 1, dtype=np.int64)  # a text that is absent has no tokens
        lengths[1:][there] = np.diff(ragged.offsets)
        found, _ = align_text(
            torch.from_numpy(pairs[:, 1:].copy()).unsqueeze(0),
            torch.from_numpy(place.reshape(-1)).unsqueeze(0),
            _tensor(ragged.tokens),
            _tensor(ragged.spans),
            torch.from_numpy(np.cumsum(lengths)),
        )
        return found[0].half()[where]


def _tensor(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))
