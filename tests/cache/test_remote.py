"""Stores at a URL: what is fetched when, what is trusted, what makes room, and how a store gets there."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pytest

from madkit.cache import TokenCache, remote_files, remote_lock, remote_mirror, verify_cache
from madkit.cache.manage import find_store, list_stores
from madkit.cache.plan import PARTS
from madkit.cache.pruning import plan_prune, prune, remove_store
from madkit.cache.remote import RemoteStore
from madkit.cache.remote_copy import RemoteCopy, remote_units
from madkit.cache.remote_files import RemoteFolder
from madkit.cache.writer import StoreWriter
from madkit.core.errors import CacheError, NotFoundError
from madkit.core.workspace import Workspace

LENGTHS = [3, 0, 5, 300, 1, 128, 127, 0, 4, 4, 129, 2]


@pytest.fixture(autouse=True)
def mirrors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mirror folder of the test's own, no waiting between attempts, and nothing known of other mirrors."""
    monkeypatch.setenv("MADKIT_CACHE_DIR", str(tmp_path / "mirrors"))
    monkeypatch.delenv("MADKIT_CACHE_LIMIT_GB", raising=False)
    monkeypatch.setattr(remote_mirror, "FREE_BYTES", 0.0)  # the disk that tests run on may be nearly full
    monkeypatch.setattr(remote_files, "DELAYS", (0.0, 0.0))
    monkeypatch.setattr(remote_mirror._Room, "used", 0)
    monkeypatch.setattr(remote_mirror._Room, "seen", float("-inf"))
    return tmp_path / "mirrors"


@pytest.fixture
def store(maker: Any, tmp_path: Path) -> Any:
    """A complete local store of three shards of images and twelve texts."""
    return maker(tmp_path / "cache" / "test-mini-vcr-000000000000", LENGTHS)


@pytest.fixture
def fine(maker: Any, tmp_path: Path) -> Any:
    """The same with 13 shards of images."""
    return maker(tmp_path / "cache" / "test-mini-vcr-222222222222", LENGTHS, shard_mb=0.0001)


@pytest.fixture
def base() -> Iterator[str]:
    """URL of an empty folder in memory."""
    url = f"memory://{uuid.uuid4().hex}"
    yield url
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are downloaded."""
    names: list[str] = []
    real = RemoteFolder.download

    def counted(self: RemoteFolder, name: str, target: Path) -> None:
        names.append(name)
        real(self, name, target)

    monkeypatch.setattr(RemoteFolder, "download", counted)
    return names


def put(written: Any, base: str, *, units: int | None = None, damaged: tuple[str, ...] = ()) -> tuple[RemoteStore, int]:
    """Write a store at a URL, or so many units of it; return it and how many were written."""
    store = RemoteStore.at(f"{base}/{written.path.name}")
    with StoreWriter(store.mirror, written.plan, remote=RemoteCopy(store, damaged=damaged)) as writer:
        return store, written.fill(writer, units)


def payload(files: RemoteFolder) -> dict[str, bytes]:
    return {name: files.read(name) for name in json.loads(files.read("manifest.json"))["files"]}


def shards(mirror: Path, array: str = "*/tokens") -> set[str]:
    return {path.relative_to(mirror).as_posix() for path in mirror.glob(f"{array}/c/**/*") if path.is_file()}


def forget(mirrors: Path) -> None:
    """Be another machine."""
    subprocess.run(["rm", "-rf", str(mirrors)], check=True)


def test_a_store_written_to_a_url_has_the_bytes_of_a_local_one(store: Any, base: str) -> None:
    there, _ = put(store, base)
    here = json.loads((store.path / "manifest.json").read_text())
    assert payload(there.files) == {name: (store.path / name).read_bytes() for name in here["files"]}
    assert json.loads(there.files.read("manifest.json"))["files"] == here["files"]
    extra = set(there.files.sizes()) - set(here["files"]) - {"manifest.json", "plan.json"}
    units = {f"journal/{part}-{unit}.json" for part in PARTS for unit in range(store.plan.units(part))}
    assert extra == units  # and no lock


def test_reading_fetches_metadata_at_once_and_shards_when_touched(
    store: Any, base: str, mirrors: Path, downloads: list[str]
) -> None:
    there, _ = put(store, base)
    forget(mirrors)
    rng = np.random.default_rng(0)
    with TokenCache.open(there.url) as cache:
        assert cache.path == there.mirror
        assert not shards(there.mirror)
        rows = np.array([0, 1])
        assert np.array_equal(cache.images.tokens(rows), store.images[rows])
        assert shards(there.mirror) == {store.plan.images.arrays()["tokens"].file(0)}
        for _ in range(20):
            rows = rng.integers(0, len(store.images), 9)
            assert np.array_equal(cache.images.tokens(rows), store.images[rows])
            assert np.array_equal(cache.images.globals(rows), store.image_globals[rows])
            rows = rng.integers(0, len(store.texts), 9)
            words = cache.texts.tokens(rows)
            assert np.array_equal(words.tokens, np.concatenate([store.tokens[row] for row in rows]))
            assert np.array_equal(words.spans, np.concatenate([store.spans[row] for row in rows]))
        local = TokenCache.open(store.path)
        assert np.array_equal(cache.images.mean, local.images.mean)
    assert len(downloads) == len(set(downloads))
    before = len(downloads)
    with TokenCache.open(there, check=True) as cache:  # again, from the mirror
        assert np.array_equal(cache.images.tokens([24, 3]), store.images[[24, 3]])
    assert len(downloads) == before


def test_a_pickled_cache_fetches_from_its_url_on_the_machine_that_gets_it(
    store: Any, base: str, mirrors: Path, downloads: list[str]
) -> None:
    there, _ = put(store, base)
    with TokenCache.open(there, check=True) as cache:
        sent = pickle.dumps(cache)
    forget(mirrors)
    before = len(downloads)
    with pickle.loads(sent) as got:
        assert got.images._check
        assert np.array_equal(got.images.tokens([24, 3]), store.images[[24, 3]])
    assert len(downloads) > before


def test_one_batch_fetches_its_shards_at_the_same_time(
    fine: Any, base: str, mirrors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, _ = put(fine, base)
    forget(mirrors)
    together = threading.Barrier(4)
    real = RemoteFolder.download

    def waiting(self: RemoteFolder, name: str, target: Path) -> None:
        together.wait(timeout=20)  # nobody gets through alone
        real(self, name, target)

    with TokenCache.open(there) as cache:
        monkeypatch.setattr(RemoteFolder, "download", waiting)
        unit = fine.plan.images.unit
        rows = np.arange(4) * unit
        for check in (False, True):
            cache.images._tokens.check = check
            assert np.array_equal(cache.images.tokens(rows + check), fine.images[rows + check])


@pytest.mark.parametrize("check", [False, True])
def test_threads_that_need_the_same_shard_fetch_it_once(
    store: Any, base: str, mirrors: Path, downloads: list[str], check: bool
) -> None:
    there, _ = put(store, base)
    forget(mirrors)
    with TokenCache.open(there, check=check) as cache:
        downloads.clear()
        wrong: list[object] = []

        def read() -> None:
            rows = np.arange(len(store.images))
            if not np.array_equal(cache.images.tokens(rows), store.images[rows]):
                wrong.append("values")

        threads = [threading.Thread(target=read) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
    assert sorted(downloads) == sorted(
        store.plan.images.arrays()["tokens"].file(unit) for unit in range(store.plan.images.units)
    )


PROCESS = """
import sys
from pathlib import Path
from madkit.cache import TokenCache
from madkit.cache.remote_files import RemoteFolder

real, log = RemoteFolder.download, Path(sys.argv[2])
def counted(self, name, target):
    with log.open("a") as file:
        file.write(name + "\\n")
    real(self, name, target)
RemoteFolder.download = counted
sys.stdin.readline()
with TokenCache.open(sys.argv[1]) as cache:
    cache.images.tokens(range(len(cache.images)))
"""


def test_processes_that_need_the_same_shard_fetch_it_once(store: Any, tmp_path: Path, mirrors: Path) -> None:
    there, _ = put(store, f"file://{tmp_path}/far")
    forget(mirrors)
    command = [sys.executable, "-c", PROCESS, there.url, str(tmp_path / "log")]
    children = [subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(2)]
    for child in children:
        child.communicate(b"\n", timeout=120)
        assert child.returncode == 0
    names = (tmp_path / "log").read_text().splitlines()
    assert len(names) == len(set(names)) > store.plan.images.units


def test_a_file_that_arrives_damaged_is_fetched_once_more(
    store: Any, base: str, mirrors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, _ = put(store, base)
    forget(mirrors)
    real, broken = RemoteFolder.download, ["images/tokens/c/0/0/0"]

    def flaky(self: RemoteFolder, name: str, target: Path) -> None:
        real(self, name, target)
        if name in broken:
            broken.remove(name)
            target.write_bytes(target.read_bytes()[:-1])

    monkeypatch.setattr(RemoteFolder, "download", flaky)
    with TokenCache.open(there) as cache:
        assert np.array_equal(cache.images.tokens([0]), store.images[[0]])
    assert not broken


@pytest.mark.parametrize(
    ("change", "said"),
    [(lambda data: data[:-5], "bytes instead of"), (lambda data: b"x" + data[1:], "its checksum is wrong")],
)
def test_an_object_that_is_not_what_the_manifest_says_is_refused(
    store: Any, base: str, mirrors: Path, change: Callable[[bytes], bytes], said: str
) -> None:
    there, _ = put(store, base)
    name = "images/tokens/c/0/0/0"
    there.files.write(name, change(there.files.read(name)))
    forget(mirrors)
    with TokenCache.open(there) as cache:
        with pytest.raises(CacheError, match=said) as caught:
            cache.images.tokens([0])
        assert f"{there.url}/{name}" in caught.value.message
        assert "madkit cache verify" in str(caught.value.hint)
        last = len(store.images) - 1
        assert np.array_equal(cache.images.tokens([last]), store.images[[last]])  # the others can be read
    assert not list(mirrors.rglob("*.part"))


def test_the_mirror_keeps_to_its_limit_and_what_was_used_last(
    fine: Any, base: str, mirrors: Path, monkeypatch: pytest.MonkeyPatch, downloads: list[str]
) -> None:
    there, _ = put(fine, base)
    forget(mirrors)
    size = json.loads(there.files.read("manifest.json"))["files"]["images/tokens/c/0/0/0"]["bytes"]
    unit = fine.plan.images.unit
    with TokenCache.open(there) as cache:
        kept = sum(path.stat().st_size for path in there.mirror.rglob("c/**/*") if path.is_file())
        monkeypatch.setenv("MADKIT_CACHE_LIMIT_GB", str((kept + 3.5 * size) / 1e9))
        for number in range(4):  # the fourth makes the first go, which was used least recently
            cache.images.tokens([number * unit])
            path = there.mirror / f"images/tokens/c/{number}/0/0"
            os.utime(path, (1e9 + number, 1e9 + number))
        assert shards(there.mirror) == {f"images/tokens/c/{number}/0/0" for number in (1, 2, 3)}
        os.utime(there.mirror / "images/tokens/c/1/0/0")
        cache.images.tokens([4 * unit])
        assert shards(there.mirror) == {f"images/tokens/c/{number}/0/0" for number in (1, 3, 4)}
        assert set(cache.images._tokens._maps) == {1, 3, 4}  # no map keeps the space
        rows = np.arange(len(fine.images))
        monkeypatch.setenv("MADKIT_CACHE_LIMIT_GB", "0")  # a fine larger than the limit is read all the same
        assert np.array_equal(cache.images.tokens(rows), fine.images)
        assert np.array_equal(cache.images.tokens(rows[::-1]), fine.images[::-1])
    assert downloads.count("images/tokens/c/0/0/0") > 1


def test_a_mirror_without_a_limit_leaves_a_share_of_the_disk_free(
    fine: Any, base: str, mirrors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, _ = put(fine, base)
    forget(mirrors)
    unit = fine.plan.images.unit
    monkeypatch.setattr(remote_mirror, "FREE_BYTES", 20e9)
    with TokenCache.open(there) as cache:
        for free, left in ((20e9, {0}), (60e9, {0, 1}), (19e9, {2})):  # of 1 TB at most 20 GB are left alone
            usage = SimpleNamespace(total=int(1e12), used=int(1e12 - free), free=int(free + 1e6))
            monkeypatch.setattr(remote_mirror.shutil, "disk_usage", lambda _, usage=usage: usage)
            cache.images.tokens([max(left) * unit])
            assert shards(there.mirror) == {f"images/tokens/c/{number}/0/0" for number in left}


def test_what_was_not_uploaded_never_makes_room(fine: Any, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(self: RemoteFolder, name: str, source: Path) -> None:
        if "/c/" in name and "extents" not in name:
            raise OSError("network is unreachable")
        real(self, name, source)

    real = RemoteFolder.upload
    monkeypatch.setattr(RemoteFolder, "upload", down)
    with pytest.raises(OSError, match="network"):
        put(fine, base, units=5)
    mirror = RemoteStore.at(f"{base}/{fine.path.name}").mirror
    there = shards(mirror)
    assert there
    monkeypatch.setenv("MADKIT_CACHE_LIMIT_GB", "0")
    remote_mirror.make_room(1 << 20)
    assert shards(mirror) == there
    monkeypatch.setattr(RemoteFolder, "upload", real)
    finished = len((mirror / "journal.jsonl").read_text().splitlines())
    assert put(fine, base)[1] == sum(fine.plan.units(part) for part in PARTS) - finished


def test_another_store_under_the_same_url_replaces_the_mirror(
    maker: Any, store: Any, base: str, mirrors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, _ = put(store, base)
    with TokenCache.open(there) as cache:
        cache.images.tokens(range(25))
    held = {name: (there.mirror / name).stat().st_size for name in shards(there.mirror, "images/tokens")}
    assert len(held) == store.plan.images.units
    there.files.remove(list(there.files.sizes()))
    other = maker(tmp_path / store.path.name, LENGTHS[::-1], images=25)
    other.images = store.images + np.float16(1)  # files of the same sizes
    monkeypatch.setenv("MADKIT_CACHE_DIR", str(tmp_path / "theirs"))  # another machine writes it
    put(other, base)
    monkeypatch.setenv("MADKIT_CACHE_DIR", str(mirrors))
    with TokenCache.open(there) as cache:
        assert not shards(there.mirror, "images/tokens")
        assert np.array_equal(cache.images.tokens(range(25)), other.images)
        assert held == {name: (there.mirror / name).stat().st_size for name in held}
        assert cache.texts.lengths([0])[0] == LENGTHS[-1]


def test_an_unfinished_store_says_how_far_it_is(store: Any, base: str) -> None:
    there, _ = put(store, base, units=3)
    total = sum(store.plan.units(part) for part in PARTS)
    with pytest.raises(CacheError, match=rf"{there.url} is unfinished \(3 of {total} shards\)"):
        TokenCache.open(there.url)
    with pytest.raises(NotFoundError, match="There is no token cache at memory://"):
        TokenCache.open(f"{base}/nothing")
    (row,) = list_stores(Workspace(Path("none"), base))
    assert (row.state, row.images) == ("unfinished", len(store.images))


def test_another_machine_goes_on_where_the_first_one_stopped(store: Any, base: str, mirrors: Path) -> None:
    there, first = put(store, base, units=7)
    assert len(remote_units(there)) == first == 7
    forget(mirrors)
    there, second = put(store, base)
    assert second == sum(store.plan.units(part) for part in PARTS) - 7
    assert payload(there.files) == {name: (store.path / name).read_bytes() for name in payload(there.files)}
    assert verify_cache(there).ok
    forget(mirrors)
    assert put(store, base)[1] == 0  # complete: nothing to do, and nothing but metadata comes
    assert not shards(there.mirror, "*/*") - {f"{part}/statistics/c/0/0" for part in PARTS} - {"texts/extents/c/0/0"}


def test_what_was_finished_here_is_uploaded_and_not_computed_again(
    fine: Any, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = RemoteFolder.upload

    def down(self: RemoteFolder, name: str, source: Path) -> None:
        if name.startswith("images/tokens/c/3"):
            self._try(name, lambda fs, path: fs.open_nothing(path))
        real(self, name, source)

    monkeypatch.setattr(RemoteFolder, "upload", down)
    with pytest.raises(CacheError, match=r"images/tokens/c/3/0/0 cannot be reached after 3 attempts") as caught:
        put(fine, base)
    assert "run the same command again" in str(caught.value.hint)
    monkeypatch.setattr(RemoteFolder, "upload", real)
    there = RemoteStore.at(f"{base}/{fine.path.name}")
    assert ("images", 3) not in remote_units(there)
    assert (there.mirror / "images/tokens/c/3/0/0").is_file()
    written: list[int] = []
    monkeypatch.setattr(
        StoreWriter,
        "write_unit",
        lambda self, part, unit, *rest, real=StoreWriter.write_unit: (
            written.append(unit) if part == "images" else None,
            real(self, part, unit, *rest),
        ),
    )
    put(fine, base)
    assert 3 not in written
    assert payload(there.files) == {name: (fine.path / name).read_bytes() for name in payload(there.files)}


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from conftest import make_store
from madkit.cache.remote import RemoteStore
from madkit.cache.remote_copy import RemoteCopy
from madkit.cache.remote_files import RemoteFolder
from madkit.cache.writer import StoreWriter

os.fsync = lambda descriptor: None
written = make_store(Path(sys.argv[2]), [3, 0, 5, 300, 1, 128, 127, 0, 4, 4, 129, 2], finish=False)
real = RemoteFolder.write
def killed(self, name, data):
    if name == "journal/images-2.json":
        os.kill(os.getpid(), signal.SIGKILL)
    real(self, name, data)
RemoteFolder.write = killed
store = RemoteStore.at(sys.argv[3])
with StoreWriter(store.mirror, written.plan, remote=RemoteCopy(store)) as writer:
    written.fill(writer)
"""


@pytest.mark.parametrize("machine", ["the same", "another"])
def test_killed_between_payload_and_journal(store: Any, tmp_path: Path, mirrors: Path, machine: str) -> None:
    base = f"file://{tmp_path}/far"
    there = RemoteStore.at(f"{base}/{store.path.name}")
    here = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", KILLED, here, str(tmp_path / "x"), there.url], timeout=120)
    assert done.returncode == -9
    assert "images/tokens/c/2/0/0" in there.files.sizes()
    assert ("images", 2) not in remote_units(there)
    assert ".lock" in there.files.sizes()  # of a process that is gone: taken over at once
    if machine == "another":
        forget(mirrors)
    journal = there.mirror / "journal.jsonl"
    finished = len(remote_units(there) if machine == "another" else journal.read_text().splitlines())
    _, written = put(store, base)
    assert written == sum(store.plan.units(part) for part in PARTS) - finished
    assert payload(there.files) == {name: (store.path / name).read_bytes() for name in payload(there.files)}
    assert verify_cache(there).ok


def test_a_second_writer_is_refused_and_told_by_whom(store: Any, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    there = RemoteStore.at(f"{base}/{store.path.name}")
    first = remote_lock.RemoteLock(there.files)
    first.acquire()
    with pytest.raises(
        CacheError, match=rf"is being written by process {os.getpid()} on .* \(last sign .* ago\)"
    ) as caught:
        put(store, base)
    assert "10 minutes" in str(caught.value.hint)
    monkeypatch.setattr(remote_lock, "STALE_S", -1.0)
    put(store, base)  # a lock without a sign for too long
    first.release()  # which does not touch what is not its own
    assert verify_cache(there).ok


def test_a_writer_whose_lock_was_taken_over_stops(store: Any, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_lock, "RENEW_S", 0.01)
    there = RemoteStore.at(f"{base}/{store.path.name}")
    theirs = {"host": "elsewhere", "pid": 7, "time": time.time(), "token": "x"}
    with (
        pytest.raises(CacheError, match="taken over by process 7 on elsewhere"),
        StoreWriter(there.mirror, store.plan, remote=RemoteCopy(there)) as writer,
    ):
        deadline = time.monotonic() + 10
        while not writer._remote._lock.lost and time.monotonic() < deadline:
            there.files.write(".lock", json.dumps(theirs).encode())
            time.sleep(0.005)
        store.fill(writer)
    assert json.loads(there.files.read(".lock"))["pid"] == 7


def test_verify_reads_the_remote_store_and_names_what_is_wrong(store: Any, base: str, mirrors: Path) -> None:
    there, _ = put(store, base)
    forget(mirrors)
    assert verify_cache(there).ok
    assert not shards(there.mirror)  # not through a mirror
    name = "images/tokens/c/1/0/0"
    data = bytearray(there.files.read(name))
    data[3] ^= 1
    there.files.write(name, bytes(data))
    there.files.remove(["texts/globals/c/0/0"])
    there.files.write("images/globals/c/0/0", there.files.read("images/globals/c/0/0")[:-1])
    there.files.write("images/tokens/c/99/0/0", b"stray")
    first = store.plan.images.unit
    found = {(problem.file, problem.kind, problem.rows) for problem in verify_cache(there).problems}
    assert (name, "damaged", (first, first + 1)) in found
    assert ("images/globals/c/0/0", "truncated", (0, store.plan.images.unit)) in found
    assert ("texts/globals/c/0/0", "missing", (0, store.plan.text.unit)) in found
    assert ("images/tokens/c/99/0/0", "foreign", None) in found
    assert len(found) == 4


def test_damaged_units_are_written_again_and_nothing_else(
    store: Any, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, _ = put(store, base)
    name = "images/tokens/c/1/0/0"
    there.files.write(name, b"x" * len(there.files.read(name)))
    assert not verify_cache(there).ok
    _, written = put(store, base, damaged=(name, "images/ids.json"))
    assert written == 1
    assert verify_cache(there).ok
    assert payload(there.files) == {name: (store.path / name).read_bytes() for name in payload(there.files)}


def test_list_and_prune_at_a_url(maker: Any, store: Any, base: str, tmp_path: Path) -> None:
    place = Workspace(tmp_path / "no-workspace", base)
    assert list_stores(place) == []
    there, _ = put(store, base)
    put(maker(tmp_path / "other-mini-vcr-111111111111", LENGTHS), base, units=2)
    rows = list_stores(place)
    assert [(row.path.name, row.state) for row in rows] == [
        ("other-mini-vcr-111111111111", "unfinished"),
        ("test-mini-vcr-000000000000", "complete"),
    ]
    assert rows[1].as_row()["path"] == there.url
    (removal,) = plan_prune(place)
    remove_store(removal.row.path)
    assert [row.path.name for row in list_stores(place)] == ["test-mini-vcr-000000000000"]
    assert RemoteFolder(base).folders() == ["test-mini-vcr-000000000000"]
    assert not (place.cache / "other-mini-vcr-111111111111").exists()


def test_at_a_url_nothing_but_stores_is_a_cache_and_is_removed(
    store: Any, base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "manifest.json": b'{"name": "the bucket of somebody"}',
        "thesis/chapter.tex": b"years of work",
        "app-0123456789ab/manifest.json": b'{"name": "app"}',
        "app-0123456789ab/images/1.jpg": b"a picture",
        "trip/plan.json": b"on monday we",
    }
    for name, data in files.items():
        RemoteFolder(base).write(name, data)
    there, _ = put(store, base, units=2)
    there.files.write("notes.txt", b"mine")
    place = Workspace(tmp_path / "no-workspace", base)
    assert [row.path.name for row in list_stores(place)] == [there.name]
    lock = remote_lock.RemoteLock(there.files)
    lock.acquire()
    assert prune(plan_prune(place)) == []
    lock.release()
    assert f"{there.url} is being written by process" in capsys.readouterr().err
    prune(plan_prune(place))
    assert {name: RemoteFolder(base).read(name) for name in RemoteFolder(base).sizes()} == {
        **files,
        f"{there.name}/notes.txt": b"mine",
    }
    for name in ("thesis", "app-0123456789ab", "trip"):
        with pytest.raises(CacheError, match="is no token cache of madkit"):
            plan_prune(place, name)
        (found,) = find_store(place, name)
        with pytest.raises(CacheError, match="is no token cache of madkit"):
            remove_store(found)


def test_other_mirrors_make_no_room(store: Any, base: str, mirrors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there, _ = put(store, base)
    others = [
        mirrors / "mirrors" / place
        for place in ("debian/pool/main/c/cairo", f"{there.mirror.parent.name}/own/c/file", "x/y/images/tokens/c/0")
    ]
    for other in others:
        other.parent.mkdir(parents=True, exist_ok=True)
        other.write_bytes(b"x" * 100)
        other.chmod(0o444)
    monkeypatch.setenv("MADKIT_CACHE_LIMIT_GB", "0")
    remote_mirror.make_room(1)
    assert all(other.exists() for other in others)
    assert not shards(there.mirror)


def test_a_web_server_is_enough_for_reading(store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *rest: Any) -> None:
            super().__init__(*rest, directory=str(store.path.parent))

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        (row,) = list_stores(Workspace(tmp_path, base))
        assert str(row.path) == f"{base}/{store.path.name}"
        with TokenCache.open(f"{base}/{store.path.name}") as cache:
            assert np.array_equal(cache.images.tokens([3, 20]), store.images[[3, 20]])
        with pytest.raises(NotFoundError, match="There is no token cache at http"):
            TokenCache.open(f"{base}/nothing")
        with pytest.raises(CacheError, match="can only be read"):
            put(store, base)
        server.shutdown()
    with pytest.raises(CacheError, match=f"{base}/{store.path.name}/manifest.json cannot be reached after 3 attempts"):
        TokenCache.open(f"{base}/{store.path.name}")


@pytest.mark.parametrize("said", ["many", "-1", "inf"])
def test_a_limit_that_is_no_size(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MADKIT_CACHE_LIMIT_GB", said)
    with pytest.raises(Exception, match=f"MADKIT_CACHE_LIMIT_GB is '{said}', which is no size"):
        remote_mirror.size_limit()


def test_processes_of_one_job_fill_one_remote_store(store: Any, base: str, mirrors: Path) -> None:
    there = RemoteStore.at(f"{base}/{store.path.name}")
    with StoreWriter(there.mirror, store.plan, remote=RemoteCopy(there)) as first:
        units = {part: first.missing(part) for part in PARTS}
        first.take({part: numbers[::2] for part, numbers in units.items()})
        store.fill(first, 1000)
        remote = RemoteCopy(there, process=1)
        with StoreWriter(there.mirror, store.plan, process=1, remote=remote) as second:
            second.take({part: numbers[1::2] for part, numbers in units.items()})
            store.fill(second, 1000)
        first.gather()
        first.finish(seconds=1.0)
    assert payload(there.files) == {name: (store.path / name).read_bytes() for name in payload(there.files)}
    assert verify_cache(there).ok


def test_a_store_that_is_being_changed_is_not_complete(store: Any, base: str) -> None:
    there, _ = put(store, base)
    with StoreWriter(there.mirror, store.plan, remote=RemoteCopy(there)) as writer:
        assert writer.finished
        writer.reopen("images", 0)
        store.fill(writer, 1)
    assert "manifest.json" not in there.files.sizes()
    put(store, base)
    assert verify_cache(there).ok


def test_a_repair_that_stops_at_once_leaves_what_the_next_extraction_mends(store: Any, base: str) -> None:
    there, _ = put(store, base)
    name = "images/tokens/c/1/0/0"
    there.files.write(name, b"x" * len(there.files.read(name)))
    with StoreWriter(there.mirror, store.plan, remote=RemoteCopy(there, damaged=(name,))):
        pass
    assert ("images", 1) not in remote_units(there)
    assert not {name, "manifest.json"} & set(there.files.sizes())
    assert put(store, base)[1] <= 1
    assert verify_cache(there).ok


def test_a_limit_below_the_store_is_said(
    store: Any, base: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there, _ = put(store, base)
    TokenCache.open(there).close()
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("MADKIT_CACHE_LIMIT_GB", "0.000001")
    TokenCache.open(there).close()
    assert "more than MADKIT_CACHE_LIMIT_GB lets it keep here" in capsys.readouterr().err


def test_a_lock_whose_answer_was_lost_is_ones_own(store: Any, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A time-out after the write: the second attempt, which the storage's own library makes, finds the object there."""
    there, _ = put(store, base)
    real = RemoteFolder.create

    def answers_late(self: RemoteFolder, name: str, data: bytes) -> bool:
        real(self, name, data)
        return False

    monkeypatch.setattr(RemoteFolder, "create", answers_late)
    lock = remote_lock.RemoteLock(there.files)
    lock.acquire()
    assert there.files.read_or_none(".lock") is not None
    lock.release()
    assert there.files.read_or_none(".lock") is None


@pytest.mark.parametrize("error", [PermissionError, FileNotFoundError, NotADirectoryError])
def test_what_is_wrong_on_this_machine_is_not_put_on_the_network(
    store: Any, base: str, error: type[OSError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, _ = put(store, base)
    target, number = tmp_path / "mirror" / "shard.part", {PermissionError: 13, FileNotFoundError: 2}.get(error, 20)
    attempts = []

    def refused(*_: object) -> None:
        attempts.append(0)
        raise error(number, "no", str(target if error is PermissionError else target.parent))

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "get_file", refused)
    with pytest.raises(error, match="mirror"):
        there.files.download("plan.json", target)
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "put_file", refused)
    with pytest.raises(error, match="mirror"):
        there.files.upload("plan.json", target)
    assert len(attempts) <= 3  # a folder that may be missing at the other end is made once
