"""Which layout region files have, told from their first bytes and names."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from madkit.core.errors import DataError, NotFoundError
from madkit.core.registry import suggest
from madkit.regions.lmdb_store import DATA_FILE, LmdbStore, is_lmdb
from madkit.regions.numpy_files import npz_names

_LOOKED_AT = 20_000  # files of a folder
_LONGEST_LINE = 1 << 26  # bytes of a TSV's row; one with 100 boxes has 1.1 MB
_COLUMNS = {10: "lxmert-tsv", 6: "butd-tsv"}
_INDEX = ".madkit-index.npz"  # as `tsv_index` calls them
_HDF5 = b"\x89HDF\r\n\x1a\n"


def detect_format(path: Path) -> str:
    """The name of the layout at a path, one of those that `open_regions` knows.

    Raises:
        NotFoundError: there is nothing at the path.
        DataError: none of the layouts, or one that only looks like them; the message says what was found.
    """
    if not path.exists():
        if ".zip@" in str(path):  # VL-BERT's way of writing a folder in a zip
            return "vl-bert"
        siblings = [entry.name for entry in islice(path.parent.iterdir(), 2000)] if path.parent.is_dir() else []
        raise NotFoundError(f"There are no region files at {path}.{suggest(path.name, siblings)}")
    if is_lmdb(path):
        return _of_database(path)
    return _of_folder(path) if path.is_dir() else _of_file(path)


def _unknown(path: Path, found: str, hint: str | None = None) -> DataError:
    from madkit.regions.opening import READERS

    return DataError(
        f"{path} has no layout of region files that is known here: {found}.",
        hint=hint or f"name the layout if you know it: one of {', '.join(READERS.names())}",
    )


def _of_file(path: Path) -> str:
    with path.open("rb") as stream:
        start = stream.read(8)
    if start == _HDF5:
        return "butd-hdf5"
    if start[:2] == b"PK":
        return _of_zip(path)
    if start[:6] == b"\x93NUMPY":
        raise _unknown(path, "it is one .npy file", f"give the folder: {path.parent}")
    if start[:1] == b"\x80":
        raise _unknown(path, "it is a pickle", "give the features, not the file with the ids")
    if start[:2] == b"\x1f\x8b" or path.suffix in (".gz", ".tar", ".tgz", ".bz2", ".xz"):
        raise _unknown(path, "it is packed", f"unpack it: tar xf {path.name}")
    if path.suffix.lower() in (".h5", ".hdf5"):
        raise DataError(f"{path} is no HDF5 file in spite of its name.", hint="download it again")
    return _of_rows(path)


def _of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
    except zipfile.BadZipFile:
        raise DataError(
            f"{path} is no readable zip: it is damaged, or its download was cut off.", hint="download it again"
        ) from None
    endings = {name.rpartition(".")[2].lower() for name in names}
    if path.suffix == ".npz" or endings == {"npy"}:
        what = _of_npz(path)
        raise _unknown(path, f"it is one file of the layout {what}", f"give the folder: {path.parent}")
    if "json" in endings and "npz" not in endings:
        return "vl-bert"
    if endings & {"tsv", "h5", "hdf5", "npz", "npy", "mdb"}:
        kind = sorted(endings & {"tsv", "h5", "hdf5", "npz", "npy", "mdb"})[0]
        raise _unknown(path, f"it is a zip of .{kind} files", f"unpack it: unzip {path.name}")
    raise _unknown(path, f"it is a zip of {_shown(sorted(names)[:3]) or 'nothing'}")


def _of_rows(path: Path) -> str:
    """TSVs have no header: the number of columns is all there is."""
    with path.open("rb") as stream:
        line = stream.readline(_LONGEST_LINE)
    columns = line.count(b"\t") + 1
    if columns in _COLUMNS:
        return _COLUMNS[columns]
    if columns > 1:
        raise _unknown(path, f"its first row has {columns} tab-separated columns; LXMERT's have 10, BUTD's have 6")
    raise _unknown(path, "it is neither HDF5, LMDB, a zip, nor rows with tabs")


def _of_npz(path: Path) -> str:
    names = npz_names(path, str(path))
    if "norm_bb" in names:
        return "uniter-npz"
    if {"x", "bbox"} <= names:
        return "milvlg-npz"
    raise _unknown(path, f"an npz file with the arrays {_shown(sorted(names))}")


def _of_folder(path: Path) -> str:
    first: dict[str, Path] = {}
    for file in islice(_files(path), _LOOKED_AT):
        first.setdefault(file.suffix.lower(), file)
        if file.name.endswith("_info.npy"):
            return "mmf-npy"
    if ".npz" in first:
        return _of_npz(first[".npz"])
    if ".npy" in first:
        raise _unknown(path, f"{first['.npy'].name} has no {first['.npy'].stem}_info.npy with its boxes beside it")
    if any((child / DATA_FILE).is_file() for child in path.iterdir() if child.is_dir()):
        return "uniter-lmdb"
    if ".json" in first and _is_vl_bert(first[".json"]):
        return "vl-bert"
    inside = [first[ending] for ending in (".h5", ".hdf5", ".tsv", ".zip") if ending in first]
    if inside:
        raise _unknown(path, f"it is a folder with {inside[0].name}", f"give the file: {inside[0]}")
    raise _unknown(path, f"a folder with {_shown([file.name for file in first.values()][:3]) or 'nothing in it'}")


def _files(root: Path) -> Iterator[Path]:
    """Files below a folder, without hidden ones, databases and the indexes that madkit keeps beside TSVs."""
    for folder, names, files in os.walk(root):
        here = Path(folder)
        names[:] = sorted(name for name in names if name[0] != "." and not (here / name / DATA_FILE).is_file())
        yield from (here / name for name in sorted(files) if name[0] != "." and not name.endswith(_INDEX))


def _is_vl_bert(path: Path) -> bool:
    with path.open("rb") as stream:
        start = stream.read(1 << 20)
    return all(re.search(rb'"%s"\s*:' % key, start) for key in (b"num_boxes", b"image_w"))


def _of_database(path: Path) -> str:
    store = LmdbStore(path)
    try:
        keys = store.first_keys(3)
        if b"__keys__" in keys:
            return "uniter-lmdb"
        listed = store.get(b"keys")
        key = next((key for key in keys if key not in (b"keys", b"__keys__")), None)
        value = (store.get(key) if key is not None else None) or b""
    finally:
        store.close()
    if value.startswith(b"PK") or b"norm_bb" in value:
        return "uniter-lmdb"
    if b"feature_path" in value:
        raise _unknown(path, "it is an LMDB of MMF", "give MMF's folder of .npy files")
    if listed is not None or b"image_h" in value:
        return "vilbert-lmdb"
    raise _unknown(path, f"an LMDB with the keys {_shown([key.decode(errors='replace') for key in keys])}")


def _shown(names: Iterable[str]) -> str:
    return ", ".join(name[:60] for name in names)
