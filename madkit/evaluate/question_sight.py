"""What a student sees of images that nobody imported: files of region features, pixels, or a teacher's token cache."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from madkit.core.archives import Listing
from madkit.core.console import info
from madkit.core.errors import DataError, NotFoundError, UsageProblem
from madkit.core.files import read_json
from madkit.core.registry import suggest
from madkit.regions.declared import DeclaredBoxes
from madkit.regions.interface import RegionReader, Regions
from madkit.regions.pixels import GRID, file_regions

if TYPE_CHECKING:
    from madkit.evaluate.questions import Survey
    from madkit.students.student import Student

PIXELS = "pixels"  # in the place of a file of features: small pictures of the boxes
_MINI = "mini"
_SHOWN = 5


class BoxPixels:
    """A region reader that makes features of the image files as it goes: the pixels of the boxes, small.

    Args:
        files: image id -> file.
        boxes: image id -> its boxes; an image without any gets a grid.
        side: a feature is side * side * 3 numbers (see `madkit.regions.pixels`).
    """

    def __init__(self, files: Mapping[str, Path], boxes: Mapping[str, DeclaredBoxes], *, side: int) -> None:
        self._files, self._boxes, self._side = files, boxes, side

    @property
    def dim(self) -> int:
        """Numbers of a feature."""
        return 3 * self._side**2

    def ids(self) -> Sequence[str]:
        """The ids of all images."""
        return list(self._files)

    def get(self, image_id: str) -> Regions:
        """The regions of an image. Raises NotFoundError or DataError as `file_regions` does."""
        return file_regions(self._files[image_id], self._boxes.get(image_id), self._side, GRID)

    def get_many(self, image_ids: Sequence[str]) -> list[Regions]:
        """The regions of many images."""
        return [self.get(image_id) for image_id in image_ids]

    def close(self) -> None:
        """Nothing to release."""


@dataclass(frozen=True, slots=True)
class Sight:
    """A reader of what the student sees, the images that it has nothing of, and what it is known by."""

    reader: RegionReader
    missing: dict[str, str]  # image id -> why
    known_by: list[Any]
    reads_images: bool = False


@contextmanager
def sight_of(
    student: Student, folder: Path | None, survey: Survey, regions: Sequence[Path | str], format_: str | None = None
) -> Iterator[Sight]:
    """Open what a student sees of the images that are asked about.

    Args:
        student: decides by its family: files of region features, image files, or a teacher's token cache.
        folder: where it was loaded from, whose manifest says whether it learnt on the embedded benchmark; None: the
            student was given as it is.
        survey: the images, and their boxes.
        regions: files or folders of features, together those of all images; `PIXELS` for small pictures of the boxes;
            for a clip-vil student the folder of a token cache.
        format_: layout of the files; None: found out.

    Raises:
        UsageProblem: features that this student does not read, or none given.
        NotFoundError, DataError, CacheError: files that are absent or damaged.
    """
    visual = student.family.visual
    if visual == "pixels":
        if regions:
            raise UsageProblem(f"{student.identity.name} reads the image files themselves.", hint="leave out --regions")
        from madkit.students.patches import PatchReader

        config: Any = student.encoder.config
        size = {"patch": config.patch_size, "short": config.image_size, "longest": config.longest_size}
        yield Sight(PatchReader(survey.images, **size), _absent(survey), ["image files"], reads_images=True)
        return
    if visual == "teacher":
        with _tokens(student, regions) as reader:
            yield _of_files([reader], survey, f"its cache {regions[0]}", regions)
        return
    side = math.isqrt(student.region_dim // 3)
    fits = 3 * side**2 == student.region_dim
    if not regions and fits and _learnt_on_pixels(student, folder):
        info(f"{student.identity.name} sees small pictures of the boxes: --regions {PIXELS}.")
        regions = [PIXELS]
    if not regions:
        raise UsageProblem(
            f"{student.identity.name} reads region features of {student.region_dim} values, and none are given.",
            hint="--regions PATH: a file or folder of features under the images' names"
            + (f", or --regions {PIXELS}" if fits else ""),
        )
    if PIXELS in map(str, regions):
        if len(regions) > 1:
            raise UsageProblem(f"--regions {PIXELS} stands alone.", hint="give files, or pixels")
        if not fits:
            raise UsageProblem(
                f"{student.identity.name} reads region features of {student.region_dim} values, which are no pixels of "
                "a square.",
                hint="--regions PATH: a file or folder of the features that it was trained on",
            )
        boxes = BoxPixels(survey.images, survey.boxes, side=side)
        yield Sight(boxes, _absent(survey), [PIXELS], reads_images=True)
        return
    from madkit.regions import detect_format, open_regions

    paths = [Path(one) for one in regions]
    for path in paths:
        if (near := suggest(str(path), [PIXELS])) and not path.exists():
            raise NotFoundError(f"There are no region files at {path}.{near}", hint="--regions PATH, or pixels")
    readers = [open_regions(format_ or detect_format(path), path) for path in paths]
    try:
        yield _of_files(readers, survey, ", ".join(map(str, paths)), regions)
    finally:
        for one in readers:
            one.close()


@contextmanager
def _tokens(student: Student, regions: Sequence[Path | str]) -> Iterator[RegionReader]:
    from madkit.cache import TokenCache
    from madkit.cache.token_regions import TokenRegions

    if len(regions) != 1:
        raise UsageProblem(
            f"{student.identity.name} sees with its teacher's tokens, and needs one token cache of these images.",
            hint="madkit data import custom, then madkit extract --teacher NAME, then --regions CACHE_FOLDER",
        )
    with TokenCache.open(Path(regions[0])) as cache:
        yield TokenRegions(cache)


def _of_files(readers: list[RegionReader], survey: Survey, where: str, paths: Sequence[Path | str]) -> Sight:
    from madkit.regions import NamedRegions, match_images

    names = {image: file.name if Path(image).is_absolute() else image for image, file in survey.images.items()}
    keys, missing = match_images(readers, names)
    why = f"there are no region features in {where}"
    return Sight(NamedRegions(readers, keys), dict.fromkeys(missing, why), [stamp(Path(path)) for path in paths])


def stamp(path: Path) -> list[Any]:
    """What a file of features is known by: another file of that name is another one."""
    try:
        found = path.stat()
    except OSError:
        return [str(path)]
    return [str(path.absolute()), found.st_size, found.st_mtime_ns]


def _absent(survey: Survey) -> dict[str, str]:
    listing = Listing()
    return {
        image: f"the image {path} does not exist" for image, path in survey.images.items() if not listing.exists(path)
    }


def _learnt_on_pixels(student: Student, folder: Path | None) -> bool:
    """Whether it is one of the mini students, or learnt on the embedded benchmark, whose features are pixels."""
    if student.identity.name.startswith(f"{_MINI}-") and student.region_dim == 3 * 16**2:
        return True
    for path in () if folder is None else (folder / "manifest.json", folder.parent / "manifest.json"):
        if path.is_file():
            manifest = read_json(path)
            return isinstance(manifest, dict) and manifest.get("is_mini") is True and not manifest.get("regions")
    return False


def check_all_are_seen(sight: Sight, survey: Survey, *, allow_missing: bool) -> None:
    """Raise DataError, at the first line about one, for images that the student would see nothing of."""
    missing = sight.missing
    if not missing or (allow_missing and len(missing) < len(survey.images)):
        return
    first = next(iter(missing))
    names = ", ".join(list(missing)[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
    more = f" ({len(missing):,} of {len(survey.images):,} images: {names})" if len(survey.images) > 1 else ""
    raise DataError(
        f"{survey.first[first]}: {missing[first]}{more}.",
        hint="check --images and --regions; --allow-missing leaves out the questions about them"
        if len(missing) < len(survey.images)
        else "check --images and --regions: none of the images is there",
    )
