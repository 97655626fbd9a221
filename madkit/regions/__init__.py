"""Region features (boxes with feature vectors) from the files in which detectors' outputs are distributed."""

from __future__ import annotations

from madkit.regions.butd_writer import write_butd_hdf5
from madkit.regions.interface import RegionReader, Regions
from madkit.regions.opening import open_regions

__all__ = ["RegionReader", "Regions", "open_regions", "write_butd_hdf5"]
