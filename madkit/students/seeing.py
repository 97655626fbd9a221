"""What a student sees with: a detector's regions, patches of the image files, or a teacher's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from madkit.regions import RegionReader

if TYPE_CHECKING:
    from madkit.students.student import Student
    from madkit.tasks.example import Example


def reader_for(student: Student, examples: Sequence[Example], regions: RegionReader | None) -> RegionReader | None:
    """The reader of what `student` sees of the images of `examples`.

    `regions` are the data's region features, or a teacher's tokens for a student that reads these. A student that reads
    pixels gets the patches of the image files instead.
    """
    if student.family.visual != "pixels":
        return regions
    from madkit.students.patches import PatchReader

    config: Any = student.encoder.config
    files = {example.image.id: example.image.path for example in examples}
    return PatchReader(files, patch=config.patch_size, short=config.image_size, longest=config.longest_size)
