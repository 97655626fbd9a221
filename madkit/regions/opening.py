"""Region readers by the name of the file layout."""

from __future__ import annotations

from pathlib import Path

from madkit.core.registry import Registry
from madkit.regions.interface import RegionReader

READERS: Registry[type[RegionReader]] = Registry("region-file format")
READERS.register("butd-hdf5", "madkit.regions.butd_hdf5:ButdHdf5Reader")


def open_regions(format: str, path: Path) -> RegionReader:
    """Open a file of region features.

    Args:
        format: the layout; "butd-hdf5" is the HDF5 of bottom-up-attention ports (fixed or adaptive number of boxes).
        path: the file.

    Raises:
        UsageProblem: an unknown layout.
        NotFoundError: the file, or one that belongs to it, does not exist.
        DataError: the file does not have that layout.
    """
    return READERS.get(format)(path)  # type: ignore[call-arg]
