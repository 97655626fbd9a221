"""A store's image tokens in the form of region features, for students that see with a teacher's eyes (clip-vil).

Every kept patch is a region, its cell is its box (in shares of the whole image, also where the teacher saw a part of
it). Such a student pays the teacher again at inference: it can answer only about images that were extracted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from madkit.cache.reader import TokenCache
from madkit.core.errors import NotFoundError
from madkit.regions.interface import Regions


class TokenRegions:
    """A region reader over a store. Safe to use from several threads; closing it leaves the store open.

    Args:
        cache: an open store with image tokens.
    """

    def __init__(self, cache: TokenCache) -> None:
        self._cache = cache
        rows, columns = cache.images.grid
        y, x = (place.reshape(-1) for place in np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"))
        corners = [x / columns, y / rows, (x + 1) / columns, (y + 1) / rows]
        self._cells = np.stack(corners, axis=1).astype(np.float32)

    @property
    def dim(self) -> int:
        """Width of a token."""
        return self._cache.images.dim

    def ids(self) -> Sequence[str]:
        """The ids of all images."""
        return self._cache.images.ids

    def get(self, image_id: str) -> Regions:
        """The tokens of an image as regions (NotFoundError for an image that the store has no values for)."""
        return self.get_many([image_id])[0]

    def get_many(self, image_ids: Sequence[str]) -> list[Regions]:
        """The tokens of many images, read together."""
        images = self._cache.images
        there = images.present(image_ids)
        if not there.all():
            lost = image_ids[int(np.flatnonzero(~there)[0])]
            raise NotFoundError(
                f"The cache {self._cache.path.name} has no tokens of the image '{lost}', which the student sees with.",
                hint="see what is absent: madkit cache info",
            )
        rows = images.rows(image_ids)
        tokens, places, views = images.tokens(rows), images.positions(rows), images.views(rows)
        found = []
        for number in range(len(rows)):
            boxes = self._cells[places[number]]
            if views is not None:
                low, size = views[number, :2], views[number, 2:] - views[number, :2]
                boxes = (np.tile(low, 2) + boxes * np.tile(size, 2)).astype(np.float32)
            found.append(Regions(boxes, tokens[number].astype(np.float32)))
        return found

    def close(self) -> None:
        """Nothing of its own to release."""
