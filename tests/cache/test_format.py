"""The format is what its page says: zarr-python and json alone write a store that madkit reads, and read madkit's."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec

from madkit.cache import TokenCache, verify_cache
from madkit.cache import plan as plan_module
from madkit.cache.layout import image_layout, text_layout
from madkit.cache.plan import StorePlan
from madkit.cli.main import main
from madkit.core.errors import CacheError

IDENTITY = {  # what the page says that a reader needs, and an encoder described in words
    "vision": "theirs, images squeezed",
    "teacher": "another program's",
    "task": "snli-ve",
    "source": "snli-ve",
    "revision": "r",
}
DIM, GRID, UNIT, LENGTHS = 6, (2, 3), 4, [3, 0, 5, 200, 1, 2, 7, 90, 4]


def write_by_the_page(folder: Path, images: npt.NDArray[Any], globals_: npt.NDArray[Any], words: Any) -> None:
    """Follow docs/cache.md with zarr-python; nothing of madkit is called."""

    def array(name: str, shape: tuple[int, ...], dtype: str, shard: int, inner: int, values: Any) -> None:
        sharded = {"shards": (shard, *shape[1:])} if inner else {}
        made = zarr.create_array(
            folder / name,
            shape=shape,
            dtype=dtype,
            chunks=(inner or shard, *shape[1:]),
            **sharded,
            serializer=BytesCodec(endian="little"),
            compressors=Crc32cCodec(),
            fill_value=0,
            config={"write_empty_chunks": True},
        )
        for start, rows in values:
            made[start : start + len(rows)] = rows

    def statistics(part: str, tokens: list[Any], vectors: list[Any]) -> None:
        both = [
            [rows.astype(np.float64).mean(0) if len(rows) else np.zeros(DIM), rows.astype(np.float64).var(0)]
            for rows in (np.concatenate(tokens).reshape(-1, DIM), np.concatenate(vectors))
        ]
        array(f"{part}/statistics", (4, DIM), "float32", 4, 0, [(0, np.array(both, np.float32).reshape(4, DIM))])

    n, m = len(images), len(LENGTHS)
    zarr.create_group(folder)
    array("images/tokens", (n, GRID[0] * GRID[1], DIM), "float16", UNIT, 1, [(0, images)])
    array("images/globals", (n, DIM), "float16", UNIT, 4, [(0, globals_)])
    statistics("images", [images], [globals_])
    units = [LENGTHS[start : start + UNIT] for start in range(0, m, UNIT)]
    capacity = -(-max(sum(unit) for unit in units) // 128) * 128
    rows = (len(units) - 1) * capacity + sum(units[-1])
    starts = [number * capacity + sum(unit[:place]) for number, unit in enumerate(units) for place in range(len(unit))]
    extents = np.array([[start, start + length] for start, length in zip(starts, LENGTHS, strict=True)])
    array("texts/tokens", (rows, DIM), "float16", capacity, 128, zip(starts, words["tokens"], strict=True))
    array("texts/spans", (rows, 2), "int32", capacity, 128, zip(starts, words["spans"], strict=True))
    array("texts/extents", (m, 2), "int64", m, 0, [(0, extents)])
    array("texts/globals", (m, DIM), "float16", UNIT, 4, [(0, words["globals"])])
    statistics("texts", words["tokens"], [words["globals"]])
    for part in ("images", "texts"):
        zarr.create_group(folder / part)
    (folder / "images/ids.json").write_text(json.dumps({"ids": [f"i{row}" for row in range(n)], "aliases": {"x": 2}}))
    (folder / "texts/texts.json").write_text(json.dumps([f"t{row}" for row in range(m)]))
    document = {"schema": 1, "format": "madkit-token-store", "identity": IDENTITY}
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    manifest = {
        **document,
        "key": hashlib.sha256(canonical.encode()).hexdigest()[:12],
        "images": {"n": n, "unit": UNIT, "tokens": GRID[0] * GRID[1], "dim": DIM, "grid": list(GRID)},
        "texts": {"n": m, "unit": UNIT, "capacity": capacity, "rows": rows, "dim": DIM},
        "bytes": sum(map(len, files.values())),
        "files": {name: {"bytes": len(data), "crc32": f"{zlib.crc32(data):08x}"} for name, data in files.items()},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("texts", [0, 1, 3, 4, 9])
def test_the_digest_of_items_is_that_of_their_json(texts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "_PIECE", 4)
    said = [f'text {number} "é\n😀"' for number in range(texts)]
    lengths = np.arange(texts, dtype=np.int64)
    ids, aliases = [f"image {number}" for number in range(5)], {"other": 1}
    layouts = image_layout(5, (2, 2), 6, 1.0), text_layout(lengths, 6, 1.0)
    plan = StorePlan({}, ids, aliases, said, lengths, *layouts, {})
    whole = json.dumps([ids, aliases, said, lengths.tolist()], separators=(",", ":")) + "\n"
    assert plan.document()["items"] == hashlib.sha256(whole.encode()).hexdigest()[:16]


def test_a_store_that_another_program_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chance = np.random.default_rng(0)
    images = chance.standard_normal((10, 6, DIM)).astype(np.float16)
    images[3] = 0  # zeros are values, too
    globals_ = chance.standard_normal((10, DIM)).astype(np.float16)
    words = {
        "tokens": [chance.standard_normal((length, DIM)).astype(np.float16) for length in LENGTHS],
        "spans": [chance.integers(0, 99, (length, 2)).astype(np.int32) for length in LENGTHS],
        "globals": chance.standard_normal((len(LENGTHS), DIM)).astype(np.float16),
    }
    store = tmp_path / "workspace/cache/theirs"
    store.mkdir(parents=True)
    write_by_the_page(store, images, globals_, words)
    with TokenCache.open(store, check=True) as cache:
        rows = cache.images.rows(["i7", "x", "i3", "i9"])
        assert rows.tolist() == [7, 2, 3, 9]
        np.testing.assert_array_equal(cache.images.tokens(rows), images[rows])
        np.testing.assert_array_equal(cache.images.globals(rows), globals_[rows])
        assert cache.images.grid == GRID
        order = [8, 3, 1, 0, 7]
        got = cache.texts.tokens(cache.texts.rows([f"t{row}" for row in order]))
        for number, row in enumerate(order):
            part = slice(got.offsets[number], got.offsets[number + 1])
            np.testing.assert_array_equal(got.tokens[part], words["tokens"][row])
            np.testing.assert_array_equal(got.spans[part], words["spans"][row])
        np.testing.assert_array_equal(cache.texts.globals(order), words["globals"][order])
        np.testing.assert_allclose(cache.images.var, images.reshape(-1, DIM).astype(float).var(0), rtol=1e-3)
    assert verify_cache(store).problems == ()
    assert main(["cache", "list", "--workspace", str(tmp_path / "workspace"), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["stores"]
    assert (row["teacher"], row["state"], row["images"], row["texts"]) == ("another program's", "complete", 10, 9)
    for command in (["info", "theirs"], ["verify", "theirs", "--sample", "2"], ["show", "theirs"], ["list"]):
        main(["cache", *command, "--workspace", str(tmp_path / "workspace")])
        assert "Unexpected" not in capsys.readouterr().err, command
    shard = store / "images/tokens/c/1/0/0"
    shard.write_bytes(shard.read_bytes()[:40] + b"\xff" + shard.read_bytes()[41:])
    with TokenCache.open(store, check=True) as cache, pytest.raises(CacheError, match="checksum"):
        cache.images.tokens([4])
    main(["cache", "repair", "theirs", "--workspace", str(tmp_path / "workspace")])
    assert "Unexpected" not in capsys.readouterr().err
    assert shard.exists()  # nobody here can compute it again


def test_groups_say_what_they_are_of(store: Any) -> None:
    group = zarr.open_group(store.path, mode="r")
    plan = json.loads((store.path / "plan.json").read_text())
    assert group.attrs["madkit"] == plan
    for part, values in (("images", store.images.reshape(-1, 6)), ("texts", np.concatenate(store.tokens))):
        told = dict(group[part].attrs["madkit"])
        assert (told["schema"], told["teacher"], told["absent"]) == (1, "test", 0)
        assert told["data"] == {"task": "vcr", "source": "mini-vcr", "revision": "r", "splits": None}
        np.testing.assert_allclose(told["token_mean"], values.astype(float).mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(told["token_variance"], values.astype(float).var(0), rtol=1e-5)
        names = ("token_mean", "token_variance", "global_mean", "global_variance")
        np.testing.assert_array_equal([told[name] for name in names], group[part]["statistics"][:].astype(float))


def test_a_group_or_statistics_that_are_lost_are_written_again(tmp_path: Path, maker: Callable[..., Any]) -> None:
    written = maker(tmp_path / "store", [3] * 5, 9)
    files = json.loads((written.path / "manifest.json").read_text())["files"]
    lost = ("images/zarr.json", "texts/statistics/c/0/0", "images/tokens/zarr.json")
    before = {name: (written.path / name).read_bytes() for name in files}
    for name in lost:
        (written.path / name).unlink()
        maker(tmp_path / "store", [3] * 5, 9)
        assert {known: (written.path / known).read_bytes() for known in files} == before
        assert verify_cache(written.path).ok


def test_a_store_without_attributes_is_left_as_it_is(tmp_path: Path, maker: Callable[..., Any]) -> None:
    """Stores of before: their manifests know other groups, and must not be found damaged after another extraction."""
    path = maker(tmp_path / "store", [3] * 5, 9).path
    bare = (
        json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}}, separators=(",", ":")).encode() + b"\n"
    )
    manifest = json.loads((path / "manifest.json").read_text())
    for part in ("images", "texts"):
        (path / part / "zarr.json").write_bytes(bare)
        manifest["files"][f"{part}/zarr.json"] = {"bytes": len(bare), "crc32": f"{zlib.crc32(bare):08x}"}
    (path / "manifest.json").write_text(json.dumps(manifest))
    before = (path / "manifest.json").read_bytes()
    from madkit.cache.writer import StoreWriter

    seen: list[StoreWriter] = []
    original = StoreWriter.__enter__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoreWriter, "__enter__", lambda self: seen.append(self) or original(self))
        patch.setattr(StoreWriter, "finish", lambda self, **_: {})
        maker(tmp_path / "store", [3] * 5, 9)
    assert (path / "manifest.json").read_bytes() == before
    assert (path / "images/zarr.json").read_bytes() == bare
    assert verify_cache(path).ok
