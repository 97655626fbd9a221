from __future__ import annotations

import base64
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest

from madkit.core.errors import DataError, NotFoundError, UsageProblem
from madkit.regions import detect_format, open_regions, write_butd_hdf5
from madkit.regions.opening import READERS

SHARED = Path(__file__).parents[3] / "shared" / "data" / "regions"

BOX = np.array([[10, 20, 50, 60]], np.float32)
VECTOR = np.ones((1, 3), np.float32)


def b64(values: Any) -> str:
    return base64.b64encode(values.tobytes()).decode()


def hdf5(root: Path) -> Path:
    write_butd_hdf5(root / "r.h5", [("a", BOX, VECTOR, (100, 80))])
    return root / "r.h5"


def lxmert_tsv(root: Path) -> Path:
    number, score = b64(np.zeros(1, np.int64)), b64(np.ones(1, np.float32))
    row = ["a", "80", "100", number, score, number, score, "1", b64(BOX), b64(VECTOR)]
    (root / "val2014_obj36.tsv").write_text("\t".join(row) + "\n")
    return root / "val2014_obj36.tsv"


def butd_tsv(root: Path) -> Path:
    (root / "trainval.tsv").write_text("\t".join(["9", "100", "80", "1", b64(BOX), b64(VECTOR)]) + "\n")
    return root / "trainval.tsv"


def vl_bert_record() -> str:
    return json.dumps({"image_h": 80, "image_w": 100, "num_boxes": 1, "boxes": b64(BOX), "features": b64(VECTOR)})


def vl_bert(root: Path) -> Path:
    (root / "json").mkdir()
    (root / "json" / "9.json").write_text(vl_bert_record())
    return root / "json"


def vl_bert_zip(root: Path) -> Path:
    with zipfile.ZipFile(root / "v.zip", "w") as archive:
        archive.writestr("v/9.json", vl_bert_record())
    return root / "v.zip"


def database(path: Path, **values: bytes) -> Path:
    environment = lmdb.open(str(path), map_size=1 << 22)
    with environment.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key.encode(), value)
    environment.close()
    return path


def vilbert_lmdb(root: Path) -> Path:
    record = {
        "image_id": "9",
        "image_h": 80,
        "image_w": 100,
        "num_boxes": 1,
        "boxes": b64(BOX),
        "features": b64(VECTOR),
    }
    return database(root / "features.lmdb", **{"9": pickle.dumps(record), "keys": pickle.dumps([b"9"])})


def uniter_arrays() -> dict[str, Any]:
    return {"norm_bb": np.array([[0.1, 0.2, 0.5, 0.7, 0.4, 0.5]]), "features": VECTOR, "conf": np.ones((1, 1))}


def uniter_npz(root: Path) -> Path:
    (root / "npz").mkdir()
    np.savez(root / "npz" / "a.npz", **uniter_arrays())
    return root / "npz"


def uniter_lmdb(root: Path) -> Path:
    raw = (uniter_npz(root) / "a.npz").read_bytes()
    database(root / "all_compressed", **{"a.npz": raw, "__keys__": b'["a.npz"]'})
    return root / "all_compressed"


def uniter_folder_above(root: Path) -> Path:
    (root / "img_db").mkdir()
    uniter_lmdb(root).rename(root / "img_db" / "all_compressed")
    (root / "img_db" / "nbb_th0.2_max100_min10.json").write_text("{}")
    return root / "img_db"


def milvlg_npz(root: Path) -> Path:
    (root / "m").mkdir()
    np.savez(root / "m" / "a.npz", x=VECTOR, bbox=BOX, num_bbox=1, image_h=80, image_w=100)
    return root / "m"


def mmf_npy(root: Path) -> Path:
    (root / "mmf" / "deep").mkdir(parents=True)
    np.save(root / "mmf" / "deep" / "a.npy", VECTOR)
    np.save(root / "mmf" / "deep" / "a_info.npy", {"bbox": BOX, "image_width": 100, "image_height": 80})
    return root / "mmf"


@pytest.mark.parametrize(
    ("make", "format"),
    [
        (hdf5, "butd-hdf5"),
        (lxmert_tsv, "lxmert-tsv"),
        (butd_tsv, "butd-tsv"),
        (vl_bert, "vl-bert"),
        (vl_bert_zip, "vl-bert"),
        (vilbert_lmdb, "vilbert-lmdb"),
        (uniter_npz, "uniter-npz"),
        (uniter_lmdb, "uniter-lmdb"),
        (uniter_folder_above, "uniter-lmdb"),
        (milvlg_npz, "milvlg-npz"),
        (mmf_npy, "mmf-npy"),
    ],
)
def test_every_layout_is_told_and_opened(tmp_path: Path, make: Callable[[Path], Path], format: str) -> None:
    path = make(tmp_path)
    assert detect_format(path) == format
    reader = open_regions(format, path)
    regions = reader.get(reader.ids()[0])
    np.testing.assert_array_equal(regions.features, VECTOR)
    expected = [0.1, 0.2, 0.5, 0.7] if format.startswith("uniter") else [0.1, 0.25, 0.5, 0.75]
    np.testing.assert_allclose(regions.boxes, [expected], rtol=1e-3)
    reader.close()


def test_all_layouts_have_a_test_above() -> None:
    marks = test_every_layout_is_told_and_opened.pytestmark
    assert {format for _, format in marks[0].args[1]} == set(READERS.names())


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared example files are not here")
def test_real_rows(tmp_path: Path) -> None:
    rows = tmp_path / "train2014_obj36.tsv"
    rows.symlink_to(SHARED / rows.name)
    assert detect_format(rows) == "lxmert-tsv"
    open_regions("lxmert-tsv", rows).close()
    assert len(list(tmp_path.iterdir())) == 2  # the index of the rows is no region file
    with pytest.raises(DataError, match=r"a folder with train2014_obj36\.tsv") as caught:
        detect_format(tmp_path)
    assert str(rows) in (caught.value.hint or "")


def gz(root: Path) -> Path:
    (root / "x.tsv.gz").write_bytes(b"\x1f\x8b....")
    return root / "x.tsv.gz"


def zipped(name: str) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        with zipfile.ZipFile(root / "z.zip", "w") as archive:
            archive.writestr(name, "x")
        return root / "z.zip"

    return make


def written(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        (root / "in").mkdir()
        (root / "in" / name).write_bytes(content)
        return root / "in" / name

    return make


def folder_of(name: str, content: bytes) -> Callable[[Path], Path]:
    return lambda root: written(name, content)(root).parent


def mmf_lmdb(root: Path) -> Path:
    return database(root / "d.lmdb", a=pickle.dumps({"feature_path": "a"}), keys=pickle.dumps([b"a"]))


def one_npz(root: Path) -> Path:
    return uniter_npz(root) / "a.npz"


def other_npz(root: Path) -> Path:
    np.savez(root / "a.npz", weights=VECTOR)
    return root


@pytest.mark.parametrize(
    ("make", "problem", "hint"),
    [
        (gz, "it is packed", "unpack it"),
        (zipped("x.tsv"), "it is a zip of .tsv files", "unzip z.zip"),
        (zipped("x.jpg"), "it is a zip of x.jpg", "name the layout"),
        (written("z.zip", b"PK\3\4 cut"), "no readable zip", "download it again"),
        (written("r.h5", b"<html>"), "no HDF5 file in spite of its name", "download it again"),
        (written("ids.pkl", pickle.dumps({})), "it is a pickle", "not the file with the ids"),
        (written("a.npy", b"\x93NUMPY"), "one .npy file", "give the folder"),
        (written("x.tsv", b"a\tb\tc\n"), "3 tab-separated columns", "name the layout"),
        (written("x", b""), "neither HDF5, LMDB, a zip, nor rows", "name the layout"),
        (one_npz, "it is one file of the layout uniter-npz", "give the folder"),
        (other_npz, "an npz file with the arrays weights", "name the layout"),
        (folder_of("a.npy", b"x"), "a.npy has no a_info.npy", "name the layout"),
        (folder_of("a.json", b"{}"), "a folder with a.json", "name the layout"),
        (folder_of("r.h5", b"x"), "it is a folder with r.h5", "r.h5"),
        (folder_of(".x", b"x"), "nothing in it", "name the layout"),
        (lambda root: database(root / "d", a=b"x"), "an LMDB with the keys a", "name the layout"),
        (mmf_lmdb, "it is an LMDB of MMF", "folder of .npy files"),
    ],
)
def test_what_is_none_of_them_is_described(
    tmp_path: Path, make: Callable[[Path], Path], problem: str, hint: str
) -> None:
    path = make(tmp_path)
    with pytest.raises(DataError) as caught:
        detect_format(path)
    assert problem in str(caught.value)
    assert str(path.name) in str(caught.value)
    assert hint in (caught.value.hint or "")


def test_nothing_there_suggests_what_is(tmp_path: Path) -> None:
    (tmp_path / "train36.hdf5").touch()
    with pytest.raises(NotFoundError, match=r"Did you mean 'train36\.hdf5'"):
        detect_format(tmp_path / "train36.hdf")
    with pytest.raises(NotFoundError, match="no region files at"):
        detect_format(tmp_path / "a" / "b")


def test_unknown_formats_and_options(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match=r"no region-file format 'uniter-lmbd'\. Did you mean 'uniter-lmdb'"):
        open_regions("uniter-lmbd", tmp_path)
    with pytest.raises(UsageProblem, match=r"have no option 'max_box'\. Did you mean 'max_boxes'"):
        open_regions("uniter-npz", uniter_npz(tmp_path), max_box=3)
    with pytest.raises(UsageProblem, match="have no option 'min_confidence'"):
        open_regions("butd-hdf5", hdf5(tmp_path), min_confidence=0.2)
    open_regions("butd-hdf5", tmp_path / "r.h5", index_folder=tmp_path / "indexes").close()  # for those that have one
    assert not (tmp_path / "indexes").exists()
