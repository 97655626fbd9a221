"""The region features of a training set: in memory where they fit, else read batch by batch.

Boxes and counts are always in memory, since the teacher's side is pooled by them. 110,000 images of 50 boxes and 2048
numbers are 45 GB: such a set is read from its file as it is needed, by threads, while the step before is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from madkit.core.console import info
from madkit.regions import RegionReader, Regions

SHARE_OF_MEMORY = 0.4
_LOOKED_AT = 32
_AT_ONCE = 64
_UNKNOWN_MEMORY = 4 * 2**30


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
        limit = int(SHARE_OF_MEMORY * free_memory()) if limit is None else limit
        first = self._read(self.image_ids[:_LOOKED_AT])
        guess = np.mean([region.features.nbytes for region in first]) * len(self.image_ids)
        self.in_memory = bool(guess <= limit)
        if not self.in_memory:
            info(f"The region features take about {guess / 1e9:,.1f} GB and are read batch by batch.")
        kept: list[NDArray[np.float32]] = []
        boxes: list[NDArray[np.float32]] = []
        for start in range(0, len(self.image_ids), _AT_ONCE):
            for region in self._read(self.image_ids[start : start + _AT_ONCE]):
                boxes.append(np.asarray(region.boxes, dtype=np.float32))
                if self.in_memory:
                    kept.append(np.asarray(region.features, dtype=np.float32))
        self.counts: NDArray[np.int64] = np.asarray([len(box) for box in boxes], dtype=np.int64)
        most = int(self.counts.max())
        self.boxes = torch.zeros(len(boxes), most, 4)
        self._features = torch.zeros(len(boxes), most, reader.dim) if self.in_memory else None
        for row, box in enumerate(boxes):
            self.boxes[row, : len(box)] = torch.from_numpy(box)
            if self._features is not None:
                self._features[row, : len(box)] = torch.from_numpy(kept[row])
                kept[row] = box[:0]  # let go at once: never twice in memory
        self.mask = torch.arange(most) < torch.from_numpy(self.counts)[:, None]

    def features(self, rows: Tensor, width: int) -> Tensor:
        """Features [B, width, F] of images `rows` [B]; zeros where an image has fewer regions."""
        if self._features is not None:
            return self._features[rows, :width]
        wanted, where = torch.unique(rows, return_inverse=True)
        found = self._read([self.image_ids[row] for row in wanted.tolist()])
        out = torch.zeros(len(found), width, self.reader.dim)
        for place, region in enumerate(found):
            count = min(width, len(region.features))
            out[place, :count] = torch.from_numpy(np.asarray(region.features[:count], dtype=np.float32))
        return out[where]

    def links(self, row: int) -> NDArray[np.float32]:
        """Boxes [r, 4] of an image."""
        boxes: NDArray[np.float32] = self.boxes[row, : int(self.counts[row])].numpy()
        return boxes

    def _read(self, ids: Sequence[str]) -> list[Regions]:
        if len(ids) < 2 or self.threads == 1:
            return [self.reader.get(one) for one in ids]
        with ThreadPoolExecutor(max_workers=self.threads) as workers:
            return list(workers.map(self.reader.get, ids))


def free_memory() -> int:
    """Bytes that programs can still have, as Linux estimates it; a modest guess elsewhere."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(found.split()[1]) * 1024
    except (OSError, StopIteration, ValueError, IndexError):
        return _UNKNOWN_MEMORY
