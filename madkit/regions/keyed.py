"""What readers of stores with one record per image share: known ids, one feature length, the selection of boxes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from madkit.core.errors import DataError, NotFoundError
from madkit.core.registry import suggest
from madkit.regions.interface import Regions
from madkit.regions.selection import Selection

_SUGGEST_AMONG = 2000  # ids; looking for near misses among 120,000 would take seconds


class KeyedReader(ABC):
    """A store of one record per image. A subclass lists the keys and reads one record."""

    def __init__(
        self,
        path: Path,
        *,
        min_confidence: float | None = None,
        min_boxes: int | None = None,
        max_boxes: int | None = None,
    ) -> None:
        """Open the store and read its first record.

        Args:
            path: the store.
            min_confidence: boxes above it are kept; see `Selection` for this and the next two.
            min_boxes: so many are kept at least.
            max_boxes: so many are kept at most.

        Raises:
            UsageProblem: impossible limits.
            NotFoundError: there is no such store.
            DataError: it does not have the layout.
        """
        self._path = path
        self._selection = Selection(min_confidence, min_boxes, max_boxes)
        self._ids = self._list_ids()
        if not self._ids:
            raise DataError(f"{path} holds no region features.", hint=f"it should hold {self._expects}")
        self._dim = self._find_dim()

    _expects: str  # what the store should look like, for the hint of an error

    def _find_dim(self) -> int:
        for image_id in self._ids:
            dim = int(self._read(image_id).features.shape[1])
            if dim:
                return dim
        raise DataError(
            f"{self._path}: none of the {len(self._ids):,} images has a box.", hint=f"it should hold {self._expects}"
        )

    @abstractmethod
    def _list_ids(self) -> list[str]:
        """All ids, in the store's order."""

    @abstractmethod
    def _read(self, image_id: str) -> Regions:
        """The checked regions of an image that the store has, boxes selected."""

    def _where(self, image_id: str) -> str:
        return f"{self._path}, image {image_id}"

    @property
    def dim(self) -> int:
        """Length of a feature vector."""
        return self._dim

    def ids(self) -> Sequence[str]:
        """The ids of all images, in the store's order."""
        return self._ids

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self._ids)

    def get(self, image_id: str) -> Regions:
        """The regions of an image.

        Raises NotFoundError for an unknown id, DataError naming the image for a damaged record and for boxes or
        features that cannot be right.
        """
        if image_id not in self._known:
            near = suggest(image_id, self._ids[:_SUGGEST_AMONG])
            raise NotFoundError(f"{self._path} has no image {image_id!r}.{near}")
        regions = self._read(image_id)
        if not len(regions.boxes):
            return replace(regions, features=np.zeros((0, self._dim), dtype=np.float32))
        if regions.features.shape[1] != self._dim:
            raise DataError(
                f"{self._where(image_id)}: features of length {regions.features.shape[1]}, "
                f"those of {self._ids[0]} have {self._dim}."
            )
        return regions

    def get_many(self, image_ids: Sequence[str]) -> list[Regions]:
        """The regions of many images, in their order."""
        return [self.get(image_id) for image_id in image_ids]

    def close(self) -> None:  # noqa: B027  # nothing is open between two reads, unless a subclass says so
        """Release what is open; a later `get` opens it again."""
