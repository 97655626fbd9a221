from __future__ import annotations

import io
import json
import os
import threading
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import lmdb
import msgpack
import msgpack_numpy
import numpy as np
import pytest

from madkit.core.errors import DataError, NotFoundError
from madkit.regions import open_regions
from madkit.regions.uniter_lmdb import UniterLmdbReader

Record = dict[str, Any]


def record(count: int = 5, seed: int = 0, confidence: list[float] | None = None) -> Record:
    draw = np.random.default_rng(seed)
    low = draw.uniform(0, 0.6, (count, 2))
    high = low + draw.uniform(0.05, 0.39, (count, 2))
    scores = np.linspace(0.9, 0.1, count) if confidence is None else np.array(confidence)
    return {
        "norm_bb": np.concatenate([low, high, high - low], 1).astype(np.float16),
        "features": draw.normal(size=(count, 4)).astype(np.float16),
        "conf": scores[:, None].astype(np.float16),
        "soft_labels": draw.uniform(size=(count, 7)).astype(np.float16),
    }


def plain(content: Record) -> bytes:
    data: bytes = msgpack.packb(content, default=msgpack_numpy.encode, use_bin_type=True)
    return data


def compressed(content: Record) -> bytes:
    """As the owners' converter does it, with the stray array that numpy made of the argument `allow_pickle` then."""
    with io.BytesIO() as writer:
        np.savez_compressed(writer, **content)
        with zipfile.ZipFile(writer, "a") as archive, archive.open("allow_pickle.npy", "w") as member:
            np.lib.format.write_array(member, np.asanyarray(True))
        return writer.getvalue()


def database(path: Path, values: dict[str, bytes], *, listed: bool = True) -> Path:
    path.mkdir(parents=True)
    environment = lmdb.open(str(path), map_size=1 << 24)
    with environment.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key.encode(), value)
        if listed:
            transaction.put(b"__keys__", json.dumps(list(values)).encode())
    environment.close()
    return path


IMAGES = {f"coco_val2014_{n:012d}.npz": record(n % 4 + 2, seed=n) for n in (9, 1, 5)}


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize(("name", "pack"), [("all", plain), ("all_compressed", compressed)])
def test_both_kinds_are_read_as_their_owners_read_them(tmp_path: Path, name: str, pack: Any, listed: bool) -> None:
    path = database(tmp_path / name, {key: pack(content) for key, content in IMAGES.items()}, listed=listed)
    reader = open_regions("uniter-lmdb", path)
    assert list(reader.ids()) == (list(IMAGES) if listed else sorted(IMAGES))
    assert reader.dim == 4
    for key, content in IMAGES.items():
        raw = pack(content)
        oracle = (
            dict(np.load(io.BytesIO(raw), allow_pickle=True))
            if pack is compressed
            else msgpack.unpackb(raw, object_hook=msgpack_numpy.decode, raw=False)
        )
        assert ("allow_pickle" in oracle) is (pack is compressed)
        regions = reader.get(key)
        np.testing.assert_array_equal(regions.boxes, oracle["norm_bb"][:, :4])
        np.testing.assert_array_equal(regions.features, oracle["features"])
        np.testing.assert_array_equal(regions.confidence, oracle["conf"][:, 0])
    with pytest.raises(NotFoundError, match="has no image"):
        reader.get("coco_val2014_000000000002.npz")
    reader.close()
    assert len(reader.get(next(iter(IMAGES))).boxes) == 3  # opens again
    reader.close()


UNSORTED = record(6, confidence=[0.1, 0.9, 0.125, 0.5, 0.15, 0.25])
BEST = [1, 3, 5, 4, 2, 0]


@pytest.mark.parametrize(
    ("name", "options", "kept"),
    [
        ("all", {}, None),
        ("feat_numbb36", {}, None),
        ("feat_numbb4", {}, 4),
        ("feat_numbb4_compressed", {}, 4),
        ("feat_th0.2_max100_min10", {}, None),
        ("feat_th0.2_max100_min1", {}, 3),
        ("feat_th0.2_max2_min1_compressed", {}, 2),
        ("feat_th0.2_max100_min4", {}, 4),
        ("feat_th0.2_max2_min1", {"max_boxes": 5}, 5),  # the caller's limits replace the name's
        ("all", {"min_confidence": 0.2, "min_boxes": 1}, 3),
    ],
)
def test_the_folders_name_says_how_many_boxes(tmp_path: Path, name: str, options: Any, kept: int | None) -> None:
    pack = compressed if name.endswith("_compressed") else plain
    regions = UniterLmdbReader(database(tmp_path / name, {"a.npz": pack(UNSORTED)}), **options).get("a.npz")
    order = list(range(6)) if kept is None else BEST[:kept]
    np.testing.assert_array_equal(regions.features, UNSORTED["features"][order])


def test_the_nbb_file_counts_where_it_is_there(tmp_path: Path) -> None:
    path = database(tmp_path / "feat_th0.2_max100_min1", {"a.npz": plain(UNSORTED), "b.npz": plain(UNSORTED)})
    (tmp_path / "nbb_th0.2_max100_min1.json").write_text(json.dumps({"a.npz": 2}))
    reader = UniterLmdbReader(path)
    np.testing.assert_array_equal(reader.get("a.npz").features, UNSORTED["features"][BEST[:2]])
    assert len(reader.get("b.npz").features) == 3  # not in it: the rule
    reader.close()
    (tmp_path / "nbb_th0.2_max100_min1.json").write_text("[]")
    with pytest.raises(DataError, match="must be a JSON object from image to number"):
        UniterLmdbReader(path)


def test_the_folder_above_is_enough_where_it_holds_one_database(tmp_path: Path) -> None:
    database(tmp_path / "feat_numbb36", {"a.npz": plain(record())})
    (tmp_path / "nbb_th0.2_max100_min10.json").write_text("{}")
    assert UniterLmdbReader(tmp_path).ids() == ["a.npz"]
    assert UniterLmdbReader(tmp_path / "feat_numbb36" / "data.mdb").ids() == ["a.npz"]
    database(tmp_path / "all", {"b.npz": plain(record())})
    with pytest.raises(DataError, match="holds several databases: all, feat_numbb36"):
        UniterLmdbReader(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no LMDB database"):
        UniterLmdbReader(tmp_path / "empty")
    with pytest.raises(NotFoundError, match="does not exist"):
        UniterLmdbReader(tmp_path / "none")


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({}, "holds no region features"),
        ({"a.npz": b"\x80\x04K\x01."}, "image a.npz: the record .*(no msgpack map|cannot be unpacked)"),
        ({"a.npz": b"PK\x03\x04 no zip"}, "image a.npz: it cannot be read as an npz file"),
        ({"a.npz": compressed(record())[:-30]}, "image a.npz: it cannot be read as an npz file"),
        ({"a.npz": plain({"norm_bb": record()["norm_bb"]})}, "image a.npz: the array 'features' is missing"),
        ({"a.npz": plain({**record(), "features": np.full((5, 4), np.nan)})}, "image a.npz: the features of 5 of 5"),
    ],
)
def test_damaged_records_are_named(tmp_path: Path, values: dict[str, bytes], problem: str) -> None:
    path = database(tmp_path / "all", values)
    with pytest.raises(DataError, match=problem):
        UniterLmdbReader(path)
    with suppress(DataError):
        UniterLmdbReader(path).close()  # the failure left nothing open that would stop a second try


def test_a_list_that_is_wrong(tmp_path: Path) -> None:
    path = database(tmp_path / "all", {"a.npz": plain(record()), "__keys__": b'["a.npz", "b.npz"]'}, listed=False)
    reader = UniterLmdbReader(path)
    with pytest.raises(DataError, match=r"image b\.npz: '__keys__' lists the image, but its record is missing"):
        reader.get("b.npz")
    reader.close()
    for number, (wrong, problem) in enumerate([(b"{", "is no JSON"), (b"[1]", "must hold a JSON list of names")]):
        other = database(tmp_path / str(number), {"a.npz": plain(record()), "__keys__": wrong}, listed=False)
        with pytest.raises(DataError, match=problem):
            UniterLmdbReader(other)


def test_a_database_that_was_cut_off_does_not_kill_the_process(tmp_path: Path) -> None:
    path = database(tmp_path / "all", {f"{n}.npz": plain(record(50, seed=n)) for n in range(40)})
    file = path / "data.mdb"
    raw = file.read_bytes()
    for size in (len(raw) // 2, 8192, 4000, 0):
        file.write_bytes(raw[:size])
        with pytest.raises(DataError, match=r"cut off|no LMDB database"):
            UniterLmdbReader(path)


def test_two_readers_threads_and_a_forked_child(tmp_path: Path) -> None:
    path = database(tmp_path / "all", {f"{n}.npz": plain(record(seed=n)) for n in range(30)})
    one, two = UniterLmdbReader(path), UniterLmdbReader(path, max_boxes=2)
    wrong: list[int] = []

    def read(offset: int) -> None:
        for n in [*range(offset, 30), *range(offset)]:
            if not np.array_equal(one.get(f"{n}.npz").features, record(seed=n)["features"]):
                wrong.append(n)

    threads = [threading.Thread(target=read, args=(7 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if len(two.get("3.npz").boxes) == 2 and len(one.get("4.npz").boxes) == 5 else 1
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    one.close()
    assert len(two.get("5.npz").boxes) == 2
    two.close()
