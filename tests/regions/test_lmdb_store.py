from __future__ import annotations

import sys
from pathlib import Path

import lmdb
import pytest

from madkit.core.errors import DataError, MadkitError, NotFoundError
from madkit.regions.lmdb_store import LmdbStore, is_lmdb


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "d"
    environment = lmdb.open(str(path), map_size=1 << 22)
    with environment.begin(write=True) as transaction:
        for number in range(50):
            transaction.put(f"{number:02d}".encode(), bytes([number]) * 3000)
    environment.close()
    return path


def test_values_and_keys(database: Path) -> None:
    store = LmdbStore(database)
    assert store.get(b"07") == b"\x07" * 3000
    assert store.get(b"x") is None
    assert store.get(b"") is None
    assert store.get(b"x" * 1000) is None
    assert store.all_keys() == [f"{number:02d}".encode() for number in range(50)]
    assert store.first_keys(2) == [b"00", b"01"]
    store.close()
    assert store.get(b"07") is not None  # opens again
    store.close()
    store.close()
    assert [path.name for path in database.iterdir() if path.name != "lock.mdb"] == ["data.mdb"]


def test_the_file_itself_is_a_database_too(database: Path) -> None:
    file = (database / "data.mdb").rename(database.parent / "features.lmdb")
    assert is_lmdb(file)
    assert not is_lmdb(database)
    store = LmdbStore(file)
    assert store.get(b"07") is not None
    store.close()


def test_many_stores_share_one_file(database: Path) -> None:
    link = database.parent / "link"
    link.symlink_to(database)
    one, two = LmdbStore(database), LmdbStore(link)
    one.close()
    assert two.get(b"01") == b"\x01" * 3000
    two.close()
    environment = lmdb.open(str(database), readonly=True, lock=False)  # it would refuse a file that is still open
    environment.close()


def test_what_is_no_database(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        LmdbStore(tmp_path / "none")
    with pytest.raises(DataError, match="no LMDB database"):
        LmdbStore(tmp_path)
    (tmp_path / "file").write_bytes(b"x" * 10_000)
    with pytest.raises(DataError, match="no LMDB database"):
        LmdbStore(tmp_path / "file")


def test_without_the_package_the_error_says_what_to_install(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(MadkitError, match="the package lmdb is not installed") as caught:
        LmdbStore(database)
    assert caught.value.hint == 'install it: pip install "madkit[lmdb]"'
    monkeypatch.setitem(sys.modules, "msgpack", None)
    from madkit.regions.msgpack_arrays import unpack_arrays

    with pytest.raises(MadkitError, match="msgpack, which is not installed"):
        unpack_arrays(b"\x80", "x")
