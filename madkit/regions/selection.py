"""How many of an image's boxes are used: UNITER's rule on detector confidences, for every layout that has them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from madkit.core.errors import DataError, UsageProblem
from madkit.regions.interface import Regions

MIN_BOXES, MAX_BOXES = 10, 100  # UNITER's defaults, in force where a threshold is asked for


@dataclass(frozen=True, slots=True)
class Selection:
    """Which boxes of an image to keep.

    UNITER keeps the first `min(max_boxes, max(min_boxes, count(confidence > min_confidence)))` boxes of a list that
    its extractor had sorted; other extractors sort nothing, so boxes are sorted here by falling confidence (ties stay
    in the file's order) before any is left out. Where none is, they stay in the file's order: ground-truth boxes are
    referred to by position. Without threshold and `max_boxes` all boxes stay.

    min_confidence: threshold, None for none.
    min_boxes: so many are kept even when fewer are above the threshold (None: 10 with a threshold).
    max_boxes: no more are kept (None: 100 with a threshold, else all).
    """

    min_confidence: float | None = None
    min_boxes: int | None = None
    max_boxes: int | None = None

    def __post_init__(self) -> None:
        low, high = self.min_boxes, self.max_boxes
        if (low is not None and low < 0) or (high is not None and high < 1):
            raise UsageProblem(f"min_boxes {low} and max_boxes {high} cannot be meant: at least 0 and 1.")
        if high is not None and (low or 0) > high:
            raise UsageProblem(f"min_boxes {low} is more than max_boxes {high}.")
        if self.min_confidence is not None and not 0 <= self.min_confidence <= 1:
            raise UsageProblem(f"min_confidence {self.min_confidence} is no confidence between 0 and 1.")

    def apply(self, regions: Regions, where: str, *, stored: DTypeLike = np.float32) -> Regions:
        """Keep the selected boxes.

        Args:
            regions: all boxes of an image.
            where: file and image, for the message.
            stored: the file's type of number for confidences. The threshold is rounded to it, as numpy does for the
                codes that compare a float16 array with a Python number.

        Raises:
            DataError: boxes must go and no confidences say which.
        """
        if self.min_confidence is None and self.max_boxes is None:
            return regions
        count = len(regions.boxes)
        confidence = regions.confidence
        if not count:
            return regions
        if confidence is None:
            if self.min_confidence is None and count <= (self.max_boxes or count):
                return regions
            raise DataError(
                f"{where}: {count} boxes without confidences, so none can be left out.",
                hint="leave out min_confidence and max_boxes, or use features with confidences",
            )
        keep = count
        if self.min_confidence is not None:
            low = self.min_boxes
            if low is None:
                low = min(MIN_BOXES, self.max_boxes) if self.max_boxes is not None else MIN_BOXES
            keep = max(low, int((confidence > np.asarray(self.min_confidence, dtype=stored)).sum()))
        high = self.max_boxes if self.max_boxes is not None else max(MAX_BOXES, self.min_boxes or 0)
        keep = min(high, keep)
        if keep >= count:
            return regions
        order = np.argsort(-confidence, kind="stable")[:keep]
        return Regions(regions.boxes[order], regions.features[order], confidence[order], regions.size)
