"""Region readers by the name of the file layout."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from madkit.core.errors import UsageProblem
from madkit.core.registry import Registry, suggest
from madkit.core.workspace import mirror_root
from madkit.regions.detect import detect_format
from madkit.regions.interface import RegionReader

__all__ = ["READERS", "detect_format", "open_regions"]

_INDEX_FOLDER = "index_folder"  # the option of readers that keep an index

READERS: Registry[type[RegionReader]] = Registry("region-file format")
READERS.register(
    "butd-hdf5", "madkit.regions.butd_hdf5:ButdHdf5Reader", about="HDF5 of BUTD ports and BAN, fixed or adaptive"
)
READERS.register(
    "lxmert-tsv", "madkit.regions.lxmert_tsv:LxmertTsvReader", about="LXMERT's TSV, through an offset index"
)
READERS.register("butd-tsv", "madkit.regions.butd_tsv:ButdTsvReader", about="the classic bottom-up-attention TSV")
READERS.register("vl-bert", "madkit.regions.vl_bert:VlBertReader", about="VL-BERT's JSON files, in a folder or zip")
READERS.register("vilbert-lmdb", "madkit.regions.vilbert_lmdb:VilbertLmdbReader", about="ViLBERT's LMDB")
READERS.register("uniter-npz", "madkit.regions.uniter_npz:UniterNpzReader", about="UNITER's and VILLA's .npz folder")
READERS.register(
    "uniter-lmdb", "madkit.regions.uniter_lmdb:UniterLmdbReader", about="UNITER's LMDB, plain or compressed"
)
READERS.register("milvlg-npz", "madkit.regions.milvlg_npz:MilvlgNpzReader", about=".npz of bottom-up-attention.pytorch")
READERS.register("mmf-npy", "madkit.regions.mmf_npy:MmfNpyReader", about="MMF's and Pythia's .npy with _info.npy")


def open_regions(format: str, path: Path, *, index_folder: Path | None = None, **options: Any) -> RegionReader:
    """Open a file or folder of region features.

    Args:
        format: the layout, one of `READERS`; `detect_format` tells it from the files.
        path: the file or folder.
        index_folder: where an index is kept, of a layout that needs one, when it cannot lie beside the file (shared
            storage is often read-only, and without a place the file is scanned whole at every opening); the user's
            cache folder by default.
        **options: of the layout's reader. Where the layout has confidences: `min_confidence`, `min_boxes` and
            `max_boxes`, UNITER's rule.

    Raises:
        UsageProblem: an unknown layout, or an option that its reader does not have.
        NotFoundError: the file, or one that belongs to it, does not exist.
        DataError: the file does not have that layout.
        MadkitError: the layout needs a package that is not installed.
    """
    reader = READERS.get(format)
    known = [name for name in inspect.signature(reader).parameters if name not in ("path", _INDEX_FOLDER)]
    for name in options:
        if name not in known:
            raise UsageProblem(
                f"Region files of the format {format!r} have no option {name!r}.{suggest(name, known)}",
                hint=f"leave it out; options: {', '.join(known)}" if known else "leave it out",
            )
    if _INDEX_FOLDER in inspect.signature(reader).parameters:
        options[_INDEX_FOLDER] = index_folder or _user_indexes()
    return reader(path, **options)  # type: ignore[call-arg]  # the protocol says nothing of constructors


def _user_indexes() -> Path | None:
    """Where indexes go that no data set has a place for; None for a user without a home, as in some containers."""
    try:
        return mirror_root() / "region-index"
    except RuntimeError:
        return None
