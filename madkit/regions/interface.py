"""What every reader of region features gives, whatever the file's layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Regions:
    """The regions of one image.

    boxes: [n, 4] float32, corners (x1, y1, x2, y2) as shares of width and height, 0..1, x1 < x2, y1 < y2.
    features: [n, dim] float32.
    confidence: [n] float32 detector scores, None where the file has none.
    size: (width, height) of the image in pixels, None where the file does not say.
    """

    boxes: Floats
    features: Floats
    confidence: Floats | None = None
    size: tuple[int, int] | None = None


class RegionReader(Protocol):
    """Random access to the regions of images, by image id. Safe to use from several threads."""

    @property
    def dim(self) -> int:
        """Length of a feature vector."""

    def ids(self) -> Sequence[str]:
        """The ids of all images, in the file's order."""

    def get(self, image_id: str) -> Regions:
        """The regions of an image.

        Raises NotFoundError for an unknown id, DataError for boxes or features that cannot be right.
        """

    def get_many(self, image_ids: Sequence[str]) -> list[Regions]:
        """The regions of many images, in their order; faster than one `get` each where the layout allows it."""

    def close(self) -> None:
        """Release the file; a later `get` opens it again."""
