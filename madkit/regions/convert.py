"""Region features from one layout into another, image by image, in little memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from madkit.core.console import info
from madkit.core.errors import DataError, UsageProblem
from madkit.core.registry import suggest
from madkit.regions.butd_writer import write_butd_hdf5
from madkit.regions.interface import RegionReader, Regions
from madkit.regions.layout_writers import FloatName, write_lxmert_tsv, write_uniter_npz, write_vl_bert

TARGETS = ("butd-hdf5", "uniter-npz", "lxmert-tsv", "vl-bert")
_BATCH = 32  # images read at once

Advance = Callable[[int], None]


def convert_regions(
    source: RegionReader,
    target: Path,
    to: str,
    *,
    ids: Sequence[str] | None = None,
    sizes: Mapping[str, tuple[int, int]] | None = None,
    dtype: FloatName | None = None,
    advance: Advance | None = None,
) -> int:
    """Write the regions of a reader in another layout. The target appears when it is whole.

    Args:
        source: an open reader; what its options leave out is not written.
        target: the file or folder to write (`vl-bert`: a folder, or a zip where the name ends in `.zip`).
        to: the layout, one of `TARGETS`.
        ids: which images, in this order; all by default. Ids that are names of `.npz` files lose that ending in
            layouts where ids are no file names.
        sizes: (width, height) in pixels by image id, for files that do not say (UNITER's); it must agree with those
            that do. All layouts but `uniter-npz` need the sizes.
        dtype: of the features: "float16" or "float32" for `butd-hdf5` and `uniter-npz` (float16 by default, as UNITER
            has them), always float32 for the others.
        advance: called with 1 after every image.

    Returns:
        The number of images.

    Raises:
        UsageProblem: an unknown layout, a dtype that it does not have, a folder that is there already.
        NotFoundError: `ids` has an image that the source lacks.
        DataError: an image without size, sizes that contradict, content that does not fit; names the image.
    """
    if to not in TARGETS:
        raise UsageProblem(
            f"Region features cannot be written as '{to}'.{suggest(to, TARGETS)}", hint=f"one of: {', '.join(TARGETS)}"
        )
    if to in ("lxmert-tsv", "vl-bert") and dtype not in (None, "float32"):
        raise UsageProblem(f"The layout '{to}' holds float32 only, not {dtype}.", hint="leave the dtype out")
    wanted = list(source.ids()) if ids is None else list(ids)
    sized = to != "uniter-npz"
    items = _items(source, wanted, sizes or {}, sized=sized, advance=advance)
    if to == "uniter-npz":
        return write_uniter_npz(target, items, dtype=dtype or "float16")
    if to == "lxmert-tsv":
        return write_lxmert_tsv(target, _noted(items, to))
    if to == "vl-bert":
        return write_vl_bert(target, items)
    return write_butd_hdf5(target, _in_pixels(_noted(items, to)), dtype=dtype or "float16")


def _items(
    source: RegionReader,
    ids: Sequence[str],
    sizes: Mapping[str, tuple[int, int]],
    *,
    sized: bool,
    advance: Advance | None,
) -> Iterator[tuple[str, Regions]]:
    for start in range(0, len(ids), _BATCH):
        batch = ids[start : start + _BATCH]
        for image_id, regions in zip(batch, source.get_many(batch), strict=True):
            name = image_id.removesuffix(".npz")
            given = sizes.get(image_id, sizes.get(name))
            if sized and given is None and regions.size is None:
                raise DataError(
                    f"The size of image {image_id} is not known: the source has boxes as shares of it, the target "
                    "in pixels.",
                    hint="give the images' sizes, or convert to uniter-npz, which needs none",
                )
            if given is not None and regions.size is not None and not _agree(given, regions.size):
                raise DataError(
                    f"Image {image_id}: its region file says {regions.size[0]} x {regions.size[1]} pixels, the image "
                    f"is {given[0]} x {given[1]}."
                )
            if given is not None:
                regions = replace(regions, size=(int(given[0]), int(given[1])))
            yield name, regions
            if advance is not None:
                advance(1)


def _agree(given: tuple[int, int], read: tuple[int, int]) -> bool:
    """Within a pixel: some layouts say the size only by the ratio of two kinds of boxes."""
    return abs(given[0] - read[0]) <= 1 and abs(given[1] - read[1]) <= 1


def _noted(items: Iterator[tuple[str, Regions]], to: str) -> Iterator[tuple[str, Regions]]:
    """Say once what the target cannot hold."""
    told = False
    for name, regions in items:
        if not told and to == "butd-hdf5" and regions.confidence is not None:
            info("The layout butd-hdf5 has no place for confidences; they are left out.")
            told = True
        if not told and to == "lxmert-tsv" and regions.confidence is None:
            info("The source has no confidences; the columns of lxmert-tsv for them are filled with zeros.")
            told = True
        yield name, regions


def _in_pixels(
    items: Iterator[tuple[str, Regions]],
) -> Iterator[tuple[str, NDArray[Any], NDArray[Any], tuple[int, int]]]:
    for name, regions in items:
        assert regions.size is not None  # `_items` saw to it
        pixels = regions.boxes.astype(np.float64) * np.asarray(regions.size * 2, dtype=np.float64)
        yield name, pixels, regions.features, regions.size
