"""Region readers by the name of the file layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from madkit.core.registry import Registry
from madkit.regions.interface import RegionReader

READERS: Registry[type[RegionReader]] = Registry("region-file format")
READERS.register("butd-hdf5", "madkit.regions.butd_hdf5:ButdHdf5Reader")
READERS.register("lxmert-tsv", "madkit.regions.lxmert_tsv:LxmertTsvReader")
READERS.register("butd-tsv", "madkit.regions.butd_tsv:ButdTsvReader")
READERS.register("vl-bert", "madkit.regions.vl_bert:VlBertReader")
READERS.register("vilbert-lmdb", "madkit.regions.vilbert_lmdb:VilbertLmdbReader")
READERS.register("uniter-npz", "madkit.regions.uniter_npz:UniterNpzReader")
READERS.register("uniter-lmdb", "madkit.regions.uniter_lmdb:UniterLmdbReader")
READERS.register("milvlg-npz", "madkit.regions.milvlg_npz:MilvlgNpzReader")
READERS.register("mmf-npy", "madkit.regions.mmf_npy:MmfNpyReader")


def open_regions(format: str, path: Path, **options: Any) -> RegionReader:
    """Open a file of region features.

    Args:
        format: the layout; "butd-hdf5" is the HDF5 of bottom-up-attention ports (fixed or adaptive number of boxes).
        path: the file.

    Raises:
        UsageProblem: an unknown layout.
        NotFoundError: the file, or one that belongs to it, does not exist.
        DataError: the file does not have that layout.
    """
    return READERS.get(format)(path, **options)  # type: ignore[call-arg]
