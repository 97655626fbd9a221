"""The region features of a training set: in memory where they fit, else read batch by batch.

Boxes and counts are always in memory, since the teacher's side is pooled by them. 110,000 images of 50 boxes and 2048
numbers are 45 GB: such a set is read from its file as it is needed, by threads, while the step before is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from madkit.core.console import info
from madkit.core.free_memory import memory_share
from madkit.distill.batches.page_locked import gathered
from madkit.regions import RegionReader, Regions

SHARE_OF_MEMORY = 0.4
_LOOKED_AT = 32
_AT_ONCE = 64
_BLOCK = 1 << 24  # numbers that are put together on the way: 64 MB, which go back to the system when they are let go


class RegionFeatures:
    """The regions of n images, in a set's own order.

    Attributes:
        boxes: [n, R, 4] normalised corners; R is the largest number of regions.
        counts: [n] regions of each image.
        mask: [n, R] bool.
        in_memory: whether the features are, or are read anew for every batch.
    """

    def __init__(
        self, reader: RegionReader, image_ids: Sequence[str], *, threads: int = 2, limit: int | None = None
    ) -> None:
        """Read all boxes, and the features where they take at most `limit` bytes (None: a share of what is free).

        Raises what the reader raises.
        """
        self.reader = reader
        self.image_ids = list(image_ids)
        self.threads = max(1, threads)
        limit = memory_share(SHARE_OF_MEMORY) if limit is None else limit
        first = self._read(self.image_ids[:_LOOKED_AT])
        guess = float(np.mean([region.features.nbytes for region in first])) * len(self.image_ids)
        self.in_memory = bool(guess <= limit)
        if not self.in_memory:
            _tell(guess)
        boxes: list[NDArray[np.float32]] = []
        blocks: list[NDArray[np.float32]] = []
        waiting: list[NDArray[np.float32]] = []
        held = 0
        for start in range(0, len(self.image_ids), _AT_ONCE):
            for region in self._read(self.image_ids[start : start + _AT_ONCE]):
                boxes.append(np.asarray(region.boxes, dtype=np.float32))
                if self.in_memory:
                    waiting.append(np.asarray(region.features, dtype=np.float32))
                    held += waiting[-1].nbytes
            if held > max(limit, guess):  # the first images have fewer regions than the others
                _tell(held / len(boxes) * len(self.image_ids))
                self.in_memory, held = False, 0
                blocks.clear()
                waiting.clear()
            if sum(map(len, waiting)) * reader.dim >= _BLOCK:
                blocks.append(np.concatenate(waiting))
                waiting.clear()
        self.counts: NDArray[np.int64] = np.asarray([len(box) for box in boxes], dtype=np.int64)
        most = int(self.counts.max())
        self.boxes = torch.zeros(len(boxes), most, 4)
        for row, box in enumerate(boxes):
            self.boxes[row, : len(box)] = torch.from_numpy(box)
        self.mask = torch.arange(most) < torch.from_numpy(self.counts)[:, None]
        self._starts = torch.from_numpy(np.cumsum(self.counts) - self.counts)
        blocks += waiting
        waiting.clear()
        self._features = self._joined(blocks) if self.in_memory else None

    def _joined(self, parts: list[NDArray[np.float32]]) -> Tensor:
        """[all regions + 1, F]: the regions of every image, one after another, and a row of zeros.

        Without padding, which takes more than the features where images have 10 to 100 regions. `parts` is emptied on
        the way, so that nothing lies in memory twice.
        """
        joined = torch.empty(int(self.counts.sum()) + 1, self.reader.dim)
        end = 0
        parts.reverse()
        while parts:
            part = parts.pop()
            joined[end : end + len(part)] = torch.from_numpy(part)
            end += len(part)
        joined[end] = 0
        return joined

    def features(self, rows: Tensor, width: int) -> Tensor:
        """Features [B, width, F] of images `rows` [B]; zeros where an image has fewer regions."""
        if self._features is not None:
            places = self._starts[rows, None] + torch.arange(width)
            places = torch.where(self._counted(rows, width), places, len(self._features) - 1)
            return gathered(self._features, places.flatten()).view(len(rows), width, -1)
        wanted, where = torch.unique(rows, return_inverse=True)
        found = self._read([self.image_ids[row] for row in wanted.tolist()])
        out = torch.zeros(len(found), width, self.reader.dim)
        for place, region in enumerate(found):
            count = min(width, len(region.features))
            out[place, :count] = torch.from_numpy(np.asarray(region.features[:count], dtype=np.float32))
        return gathered(out, where)

    def _counted(self, rows: Tensor, width: int) -> Tensor:
        """[B, width] bool: places of real regions."""
        return torch.arange(width) < torch.from_numpy(self.counts)[rows, None]

    def links(self, row: int) -> NDArray[np.float32]:
        """Boxes [r, 4] of an image."""
        boxes: NDArray[np.float32] = self.boxes[row, : int(self.counts[row])].numpy()
        return boxes

    def _read(self, ids: Sequence[str]) -> list[Regions]:
        if len(ids) < 2 or self.threads == 1:
            return [self.reader.get(one) for one in ids]
        with ThreadPoolExecutor(max_workers=self.threads) as workers:
            return list(workers.map(self.reader.get, ids))


def _tell(size: float) -> None:
    info(f"The region features take about {size / 1e9:,.1f} GB and are read batch by batch.")
