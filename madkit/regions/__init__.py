"""Region features (boxes with feature vectors) from the files in which detectors' outputs are distributed."""

from __future__ import annotations

from madkit.regions.butd_writer import write_butd_hdf5
from madkit.regions.convert import TARGETS, convert_regions
from madkit.regions.interface import RegionReader, Regions
from madkit.regions.names import NamedRegions, candidate_keys, match_images
from madkit.regions.opening import READERS, detect_format, open_regions

__all__ = [
    "READERS",
    "TARGETS",
    "NamedRegions",
    "RegionReader",
    "Regions",
    "candidate_keys",
    "convert_regions",
    "detect_format",
    "match_images",
    "open_regions",
    "write_butd_hdf5",
]
