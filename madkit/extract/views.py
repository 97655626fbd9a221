"""Which part of each image a vision teacher sees: what a cache keeps so that boxes can be compared with its patches."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from madkit.teachers.interface import VisionTeacher
from madkit.teachers.preprocess import WHOLE, Preprocessing, View


def keeps_views(teacher: VisionTeacher) -> bool:
    """Whether a teacher may see less than whole images, so that its cache says which part."""
    preprocessing = _preprocessing(teacher)
    return preprocessing is not None and preprocessing.cuts


def look_at(teacher: VisionTeacher, path: Path) -> tuple[Tensor, View]:
    """Read an image as the teacher does: uint8 [3, H, W], and the part of the image that this is.

    Raises:
        DataError: the file is missing or no image.
    """
    preprocessing = _preprocessing(teacher)
    return (teacher.load_image(path), WHOLE) if preprocessing is None else preprocessing.look(path)


def _preprocessing(teacher: VisionTeacher) -> Preprocessing | None:
    """A teacher of somebody's own need not have one; it is taken to see whole images."""
    found = getattr(teacher, "preprocessing", None)
    return found if isinstance(found, Preprocessing) else None
