"""Nothing is read silently wrong: missing, truncated, damaged and foreign files, other versions, two writers."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from madkit.cache import TokenCache, choose_cache, find_caches, manage, reader, verify, verify_cache
from madkit.cache.manage import find_store, list_stores
from madkit.cache.plan import PARTS
from madkit.cache.pruning import plan_prune, prune, remove_store
from madkit.cache.writer import StoreWriter
from madkit.cli.main import main
from madkit.core.errors import CacheError, CacheInUse, NotFoundError
from madkit.core.files import FileLock
from madkit.core.workspace import Workspace


def test_a_sound_store_verifies(store: Any) -> None:
    report = verify_cache(store.path)
    assert report.ok
    assert report.files == len(json.loads((store.path / "manifest.json").read_text())["files"])


def test_a_missing_shard_is_an_error_never_zeros(store: Any) -> None:
    with TokenCache.open(store.path) as cache:
        (store.path / "images/tokens/c/1/0/0").unlink()
        with pytest.raises(CacheError, match=r"images/tokens/c/1/0/0 is missing"):
            cache.images.tokens(np.arange(25))
    with pytest.raises(CacheError, match=r"is damaged: images/tokens/c/1/0/0 is missing"):
        TokenCache.open(store.path)
    (problem,) = verify_cache(store.path).problems
    assert (problem.kind, problem.file) == ("missing", "images/tokens/c/1/0/0")
    assert problem.rows is not None
    assert problem.rows[0] < problem.rows[1] <= 25


def test_a_truncated_shard_is_found(store: Any) -> None:
    shard = store.path / "texts/tokens/c/0/0"
    with TokenCache.open(store.path) as cache:
        shard.write_bytes(shard.read_bytes()[:-9])
        with pytest.raises(CacheError, match=r"damaged|truncated"):
            cache.texts.tokens(np.arange(5))
        shard.write_bytes(b"")
    with pytest.raises(CacheError, match=r"texts/tokens/c/0/0 has 0 bytes instead of"):
        TokenCache.open(store.path)
    assert [problem.kind for problem in verify_cache(store.path).problems] == ["truncated"]


def test_verifying_reads_files_side_by_side(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files are being read at a time, or this would wait until its barrier breaks; the report keeps their order."""
    met, real = threading.Barrier(2, timeout=20), verify._Local.read
    first = list(json.loads((store.path / "manifest.json").read_text())["files"])[:2]

    def read(self: Any, name: str) -> bytes | None:
        if name in first:
            met.wait()
        return real(self, name)

    monkeypatch.setattr(verify._Local, "threads", 2)
    monkeypatch.setattr(verify._Local, "read", read)
    for file in ("images/globals/c/0/0", "texts/globals/c/0/0"):
        (store.path / file).unlink()
    assert [problem.file for problem in verify_cache(store.path).problems] == [
        "images/globals/c/0/0",
        "texts/globals/c/0/0",
    ]


@pytest.mark.parametrize("name", ["images/tokens/c/1/0/0", "texts/spans/c/0/0", "images/globals/c/0/0"])
def test_a_flipped_bit_is_found_by_checked_reads_and_by_verify(store: Any, name: str) -> None:
    file = store.path / name
    data = bytearray(file.read_bytes())
    data[5] ^= 4
    file.write_bytes(data)
    with TokenCache.open(store.path, check=True) as cache:
        read = {"images/tokens": cache.images.tokens, "images/globals": cache.images.globals}.get(
            name[:13].removesuffix("/"), cache.texts.tokens
        )
        read = cache.images.globals if "globals" in name else read
        with pytest.raises(CacheError, match="checksum at byte 0 is wrong"):
            read(np.arange(25))
    (problem,) = verify_cache(store.path).problems
    assert (problem.kind, problem.file) == ("damaged", name)
    assert problem.rows is not None
    assert problem.rows[1] - problem.rows[0] <= 128


def test_a_damaged_index_is_an_error_without_checks_too(store: Any) -> None:
    file = store.path / "images/tokens/c/0/0/0"
    data = bytearray(file.read_bytes())
    data[-10] ^= 1
    file.write_bytes(data)
    with (
        TokenCache.open(store.path) as cache,
        pytest.raises(CacheError, match="checksum of its index is wrong") as error,
    ):
        cache.images.tokens([0])
    assert error.value.hint == f"see: madkit cache verify {store.path.name}"
    assert "index" in verify_cache(store.path).problems[0].detail


def test_a_shard_of_another_store_is_found_by_verify(tmp_path: Path, maker: Callable[..., Any]) -> None:
    """A file that is sound by itself but not the one that was written."""
    first, second = maker(tmp_path / "a", [3] * 8), maker(tmp_path / "b", [3] * 9)
    shutil.copy(second.path / "images/tokens/c/0/0/0", first.path / "images/tokens/c/0/0/0")
    (problem,) = verify_cache(first.path).problems
    assert problem.detail == "it is not the file that was written"


def test_other_damage_is_named(store: Any) -> None:
    (store.path / "images/tokens/c/9").mkdir()
    (store.path / "images/tokens/c/9/0").write_bytes(b"x")
    (store.path / "texts/texts.json").write_text("[]")
    (store.path / "images/tokens/zarr.json").unlink()
    kinds = {problem.file: problem.kind for problem in verify_cache(store.path).problems}
    assert kinds["images/tokens/c/9/0"] == "foreign"
    assert kinds["texts/texts.json"] == "truncated"
    assert kinds["images/tokens/zarr.json"] in ("missing", "damaged")


def test_compressed_arrays_of_other_programs_are_refused_not_misread(store: Any) -> None:
    path = store.path / "images/tokens/zarr.json"
    metadata = json.loads(path.read_text())
    metadata["codecs"][0]["configuration"]["codecs"].append({"name": "zstd", "configuration": {"level": 1}})
    size = path.stat().st_size
    path.write_text(json.dumps(metadata))
    manifest = json.loads((store.path / "manifest.json").read_text())
    manifest["files"]["images/tokens/zarr.json"]["bytes"] = path.stat().st_size
    assert path.stat().st_size != size
    (store.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CacheError, match="another layout"):
        TokenCache.open(store.path)


def test_stores_that_cannot_be_opened(tmp_path: Path, maker: Callable[..., Any]) -> None:
    with pytest.raises(NotFoundError, match="no token cache at"):
        TokenCache.open(tmp_path)
    unfinished = maker(tmp_path / "cache" / "unfinished", [2, 3], 3, finish=False)
    with pytest.raises(CacheError, match=r"is unfinished \(0 of \d+ shards\)") as error:
        TokenCache.open(unfinished.path)
    assert error.value.hint.startswith("go on with: madkit extract --teacher test --task vcr")
    other = maker(tmp_path / "cache" / "other", [2, 3], 3)
    manifest = json.loads((other.path / "manifest.json").read_text())
    (other.path / "manifest.json").write_text(json.dumps({**manifest, "schema": 99}))
    with pytest.raises(CacheError, match="this version of madkit"):
        TokenCache.open(other.path)
    assert verify_cache(other.path).problems[0].kind == "manifest"
    (other.path / "manifest.json").write_text(
        json.dumps({**manifest, "identity": {**manifest["identity"], "teacher": "fake"}})
    )
    assert "key" in verify_cache(other.path).problems[0].detail


@pytest.mark.parametrize("name", ["files", "key", "identity", "bytes", "identity.teacher", "identity.source"])
def test_a_manifest_that_lacks_something_is_an_error_that_names_it(store: Any, name: str) -> None:
    path = store.path / "manifest.json"
    document = json.loads(path.read_text())
    *outer, last = name.split(".")
    del (document[outer[0]] if outer else document)[last]
    path.write_text(json.dumps(document))
    with pytest.raises(CacheError, match=f"is damaged: it has no '{name}'") as found:
        TokenCache.open(store.path)
    assert "madkit extract --teacher test --task vcr" in (found.value.hint or "")  # the plan still says of what it is
    assert [problem.kind for problem in verify_cache(store.path).problems] == ["manifest"]
    assert [row.state for row in list_stores(Workspace(store.path.parents[1]))] == ["unreadable"]


@pytest.mark.parametrize("name", ["../../thesis.tex", "/etc/passwd", "images/../../c/0"])
def test_a_manifest_that_names_files_elsewhere_is_refused(
    store: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its names say what is fetched into a mirror, and what is removed from there."""
    path = store.path / "manifest.json"
    document = json.loads(path.read_text())
    document["files"][name] = {"bytes": 1, "crc32": "00000000"}
    path.write_text(json.dumps(document))
    with pytest.raises(CacheError, match="names a file outside of its store"):
        TokenCache.open(store.path)
    monkeypatch.setenv("MADKIT_CACHE_DIR", str(tmp_path / "mirrors"))
    with pytest.raises(CacheError, match="names a file outside of its store"):
        TokenCache.open(f"file://{store.path}")
    assert not (tmp_path / "mirrors").exists()


def test_what_the_system_cannot_read_is_one_problem_of_many(store: Any) -> None:
    shard = store.path / "images/tokens/c/1/0/0"
    shard.unlink()
    shard.mkdir()
    (store.path / "texts/tokens/c/0/0").unlink()
    kinds = {problem.file: problem.kind for problem in verify_cache(store.path).problems}
    assert kinds == {"images/tokens/c/1/0/0": "unreadable", "texts/tokens/c/0/0": "missing"}


def test_a_damaged_plan_is_taken_from_the_manifest(store: Any, tmp_path: Path, maker: Callable[..., Any]) -> None:
    plan = store.path / "plan.json"
    before = json.loads(plan.read_text())
    plan.write_text("{")
    with StoreWriter(store.path, store.plan) as writer:
        assert writer.finished
    assert json.loads(plan.read_text()) == before
    unfinished = maker(tmp_path / "unfinished", [3, 4], images=4, finish=False)
    (unfinished.path / "plan.json").write_text("[]")
    with (
        pytest.raises(CacheError, match=r"plan\.json is not a JSON object") as found,
        StoreWriter(unfinished.path, unfinished.plan),
    ):
        pass
    assert "madkit cache prune --store unfinished --yes" in (found.value.hint or "")


@pytest.mark.parametrize("line", ["garbage", "{}"])
def test_a_damaged_journal_is_written_anew_from_the_manifest_or_refused(store: Any, line: str) -> None:
    journal = store.path / "journal.jsonl"
    before = sorted(journal.read_text().splitlines())
    journal.write_text(f"{line}\n" + "\n".join(before[1:]) + "\n")
    (store.path / "images/tokens/c/1/0/0").unlink()
    with StoreWriter(store.path, store.plan) as writer:
        assert writer.missing("images") == [1]
        assert not writer.missing("texts")
        store.fill(writer)
    lines = [json.loads(one) for one in journal.read_text().splitlines()]
    assert {(one["part"], one["unit"]) for one in lines} == {
        (one["part"], one["unit"]) for one in map(json.loads, before)
    }
    assert verify_cache(store.path).ok
    journal.write_text(f"{line}\n")
    (store.path / "manifest.json").unlink()
    with (
        pytest.raises(CacheError, match=r"journal\.jsonl, (line|entry) 1") as found,
        StoreWriter(store.path, store.plan),
    ):
        pass
    assert f"madkit cache prune --store {store.path.name} --yes" in (found.value.hint or "")
    assert journal.exists()


def test_a_torn_journal_and_leftovers_of_a_kill(tmp_path: Path, maker: Callable[..., Any]) -> None:
    """Whatever a kill leaves - a torn line, a temporary file, a shard without its line - is cleaned up on resume."""
    whole = maker(tmp_path / "whole", [3] * 20, 25)
    killed = maker(tmp_path / "killed", [3] * 20, 25)
    (killed.path / "manifest.json").unlink()
    journal = killed.path / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:2]) + lines[2][:10])
    leftover = killed.path / "images/tokens/c/2/0/.0.abc.tmp"
    leftover.write_bytes(b"half")
    shard = killed.path / "images/tokens/c/2/0/0"
    shard.write_bytes(b"old")
    again = maker(tmp_path / "killed", [3] * 20, 25)
    assert not leftover.exists()
    assert verify_cache(again.path).ok
    files = json.loads((whole.path / "manifest.json").read_text())["files"]
    assert json.loads((again.path / "manifest.json").read_text())["files"] == files
    assert all((whole.path / name).read_bytes() == (again.path / name).read_bytes() for name in files)


def test_two_writers_and_changed_items(tmp_path: Path, maker: Callable[..., Any]) -> None:
    written = maker(tmp_path / "cache" / "one", [3] * 4, 3)
    plan_of: list[StoreWriter] = []
    original = StoreWriter.__enter__

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoreWriter, "__enter__", lambda self: plan_of.append(self) or original(self))
        maker(tmp_path / "cache" / "one", [3] * 4, 3)
    plan = plan_of[0].plan
    with (
        StoreWriter(written.path, plan),
        pytest.raises(CacheError, match=r"The cache one is in use by process \d+"),
        StoreWriter(written.path, plan),
    ):
        pass
    with (
        StoreWriter(written.path, plan),
        pytest.raises(CacheError, match="in use"),
    ):
        remove_store(written.path)
    with pytest.raises(CacheError, match="begun with other images or texts"):
        maker(tmp_path / "cache" / "one", [3] * 5, 3)


def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, maker: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from madkit.cache import writer

    real, calls = writer.write_bytes_atomic, []

    def full(path: Path, data: bytes) -> None:
        if "/c/" in str(path):
            calls.append(path)
            if len(calls) == 5:
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, data)

    monkeypatch.setattr(writer, "write_bytes_atomic", full)
    with pytest.raises(OSError, match="No space left"):
        maker(tmp_path / "store", [3] * 20, 25)
    monkeypatch.undo()
    done = len((tmp_path / "store/journal.jsonl").read_text().splitlines())
    again = maker(tmp_path / "store", [3] * 20, 25)
    assert 1 <= done < 5
    assert verify_cache(again.path).ok


def test_list_and_prune(tmp_path: Path, maker: Callable[..., Any]) -> None:
    workspace = Workspace(tmp_path)
    assert list_stores(workspace) == []
    old, new = (maker(tmp_path / "cache" / name, [2], 2).path for name in ("old", "new"))
    manifest = json.loads((old / "manifest.json").read_text())
    manifest |= {"created": "2001-01-01T00:00:00+00:00", "identity": {**manifest["identity"], "revision": "before"}}
    (old / "manifest.json").write_text(json.dumps(manifest))
    half = maker(tmp_path / "cache" / "half", [2], 2, finish=False).path
    assert {row.path.name: row.state for row in list_stores(workspace)} == {
        "old": "complete",
        "new": "complete",
        "half": "unfinished",
    }
    assert {path.name for path in find_caches(workspace)} == {"old", "new"}
    reasons = {removal.row.path.name: removal.reason for removal in plan_prune(workspace)}
    assert reasons == {"old": "superseded by a later one", "half": "unfinished"}
    assert [removal.row.path for removal in plan_prune(workspace, "new")] == [new]
    for choice in (
        {"compute_dtype": "bfloat16"},
        {"vision": {"weights": "1" * 64}},
        {"text": {"weights": "1" * 64}},
        {"splits": ["dev"]},
        {"teacher": "another"},
        {"revision": "r"},  # a copy is somebody's choice, too
    ):
        (old / "manifest.json").write_text(json.dumps({**manifest, "identity": {**manifest["identity"], **choice}}))
        assert [removal.row.path.name for removal in plan_prune(workspace)] == ["half"], choice
    (old / "manifest.json").write_text(
        json.dumps({**manifest, "identity": {**manifest["identity"], "long_texts": "windows"}})
    )
    assert [removal.row.path.name for removal in plan_prune(workspace)] == ["half", "old"]  # its data had long texts
    with pytest.raises(NotFoundError, match="Did you mean 'half'"):
        plan_prune(workspace, "hallf")
    remove_store(half)
    assert not half.exists()


def theirs(folder: Path) -> dict[str, str]:
    """Write what other people and programs keep in a folder, and return it by name."""
    files = {
        "thesis/chapter.tex": "years of work",
        "vcr_images/1.jpg": "a picture",
        "app/manifest.json": '{"name": "app", "identity": {}, "images": {"n": 1}}',
        "trip/plan.json": "on monday we",
        "run-0123456789ab/manifest.json": '{"identity": {}, "bytes": 3}',
        "array-0123456789ab/zarr.json": '{"zarr_format": 3, "attributes": {}}',
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return files


def test_what_is_not_madkits_is_no_cache_and_is_never_removed(
    tmp_path: Path, maker: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    scratch = tmp_path / "scratch"
    files = theirs(scratch)
    half = maker(scratch / "half", [2], 2, finish=False).path
    place = Workspace(tmp_path, str(scratch))
    assert [row.path.name for row in list_stores(place)] == ["half"]
    assert [path.name for path in find_store(place, None)] == ["half"]
    assert main(["cache", "prune", "--cache", str(scratch), "--yes"]) == 0
    assert not half.exists()
    for name in ("thesis", "app", "trip", "run-0123456789ab", "array-0123456789ab", str(scratch / "app")):
        assert main(["cache", "prune", "--cache", str(scratch), "--store", name, "--yes"]) == 1
        assert "no token cache" in capsys.readouterr().err
        with pytest.raises(CacheError, match="is no token cache of madkit"):
            remove_store(scratch / name)
    assert {name: (scratch / name).read_text() for name in files} == files


def test_a_store_that_cannot_be_read_is_known_by_a_second_sign(tmp_path: Path, maker: Callable[..., Any]) -> None:
    cache = tmp_path / "cache"
    keyed, grouped, bare = (maker(cache / name, [2], 2).path for name in ("test-0123456789ab", "grouped", "bare"))
    for path in (keyed, grouped, bare):
        (path / "manifest.json").write_text("{")
        (path / "plan.json").unlink()
    (keyed / "zarr.json").unlink()
    (bare / "zarr.json").unlink()
    assert {row.path.name: row.state for row in list_stores(Workspace(tmp_path))} == {
        "test-0123456789ab": "unreadable",
        "grouped": "unreadable",
    }
    prune(plan_prune(Workspace(tmp_path)))
    assert [path.name for path in cache.iterdir()] == ["bare"]


def test_another_versions_store_is_not_removed_unasked(tmp_path: Path, maker: Callable[..., Any]) -> None:
    path = maker(tmp_path / "cache" / "later", [2], 2).path
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "schema": 99}))
    (row,) = list_stores(Workspace(tmp_path))
    assert row.state == "another version"
    assert plan_prune(Workspace(tmp_path)) == []
    assert [removal.reason for removal in plan_prune(Workspace(tmp_path), "later")] == ["asked for"]


def test_what_is_being_written_stays(
    tmp_path: Path, maker: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """By the first process of a job, or by another one whose first is gone; the others' are removed all the same."""
    going, orphan, left = (
        maker(tmp_path / "cache" / name, [2], 2, finish=False) for name in ("going", "orphan", "left")
    )
    with (
        StoreWriter(going.path, going.plan),
        FileLock(orphan.path / ".lock-1", error=CacheError),
    ):
        gone = prune(plan_prune(Workspace(tmp_path)))
        assert [removal.row.path.name for removal in gone] == ["left"]
        assert "The cache going is in use by process" in (told := capsys.readouterr().err)
        assert "The cache orphan is in use by process" in told
        assert (going.path / "plan.json").exists()
        assert (orphan.path / "plan.json").exists()
        with pytest.raises(CacheInUse, match="going is in use"):
            remove_store(going.path)
    assert not left.path.exists()


def test_removing_takes_what_is_the_stores_and_dies_halfway_as_an_unfinished_one(
    tmp_path: Path, maker: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = maker(tmp_path / "cache" / "one", [2], 2).path
    (path / "plan.json").unlink()  # as another program leaves it
    (path / "notes.txt").write_text("mine")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            remove_store(path)
    (row,) = list_stores(Workspace(tmp_path))
    assert row.state == "unfinished"
    remove_store(path)
    assert [file.name for file in path.iterdir()] == ["notes.txt"]
    assert "files that are no cache's" in capsys.readouterr().err
    elsewhere = maker(tmp_path / "shared" / "two", [2], 2).path
    link = tmp_path / "cache" / "two"
    link.symlink_to(elsewhere)
    remove_store(link)
    assert not link.exists()
    assert verify_cache(elsewhere).ok


def test_a_store_is_found_without_its_manifest_and_described_with_one_look(
    tmp_path: Path, maker: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manifest of a large store has megabytes, and a workspace may have hundreds of stores."""
    for name in ("one", "two"):
        maker(tmp_path / "cache" / name, [2], 2)
    read: list[str] = []
    for module in (manage, reader):
        real = module.read_document
        monkeypatch.setattr(
            module, "read_document", lambda *place, _real=real: (read.append(place[1]), _real(*place))[1]
        )
    assert [path.name for path in find_store(Workspace(tmp_path), "two")] == ["two"]
    assert read == []
    assert len(list_stores(Workspace(tmp_path))) == 2
    assert read == ["manifest.json"] * 2
    data = SimpleNamespace(spec=SimpleNamespace(name="vcr"), source="mini-vcr", revision="r")
    with pytest.raises(CacheError, match="has 2 caches"):
        choose_cache(Workspace(tmp_path), data, None)
    assert read == ["manifest.json"] * 4


def test_every_part_is_written_in_units(store: Any) -> None:
    rows = [json.loads(line) for line in (store.path / "journal.jsonl").read_text().splitlines()]
    assert {row["part"] for row in rows} == set(PARTS)
    assert len(rows) == len({(row["part"], row["unit"]) for row in rows}) > 4


def test_the_command_of_a_store_needs_nothing_of_its_encoders() -> None:
    """Another program may describe them as it likes, and no hint may keep its store from being read."""
    here = {"teacher": "t", "task": "vcr"}
    for vision in (None, "clip", {"preprocessing": "centre crop"}, {"preprocessing": {"decoder": 3}}, ["adapter"]):
        assert reader.extract_command({**here, "vision": vision}, same=True) == "madkit extract --teacher t --task vcr"
