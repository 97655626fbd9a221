"""Folders of `.npz` files as UNITER's extractor writes them, one file per image; the id is the file's name."""

from __future__ import annotations

from madkit.regions.file_tree import list_tree
from madkit.regions.interface import Regions
from madkit.regions.keyed import KeyedReader
from madkit.regions.numpy_files import read_npz
from madkit.regions.uniter_record import KEYS, uniter_regions


class UniterNpzReader(KeyedReader):
    """Reads `<folder>/<image>.npz` (also in subfolders) on demand. Ids are the paths below the folder, with `.npz`."""

    _expects = "one .npz file per image with the arrays norm_bb, features and conf"

    def _list_ids(self) -> list[str]:
        return list_tree(self._path, ".npz")

    def _read(self, image_id: str) -> Regions:
        path = self._path / image_id
        return uniter_regions(read_npz(path, KEYS, str(path)), self._selection, str(path))
