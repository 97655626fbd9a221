from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from madkit.cache import TokenCache, choose_cache
from madkit.core.errors import CacheError, DataError, NotFoundError, UsageProblem
from madkit.core.workspace import Workspace
from madkit.extract.frozen import with_decoder
from madkit.extract.options import ExtractOptions
from madkit.extract.stage import extract, extract_task
from madkit.extract.text_encoding import length_batches
from madkit.tasks.data import open_task
from madkit.teachers.load import load_teacher

torch.set_num_threads(1)


def run(workspace: Path, teacher: Path, **more: object) -> TokenCache:
    reports = extract(Workspace.at(workspace), f"local:{teacher}", ["snli-ve"], device="cpu", **more)
    return TokenCache.open(reports[0].path, check=True)


def test_store_holds_what_the_teacher_says(workspace: Path, tiny_teacher: Path) -> None:
    cache = run(workspace, tiny_teacher, shard_mb=0.002)
    teacher, _ = with_decoder(load_teacher(f"local:{tiny_teacher}"), "auto")
    assert teacher.vision is not None
    assert teacher.text is not None
    data = open_task(Workspace.at(workspace), "snli-ve")
    examples = [example for split in ("train", "dev") for example in data.examples(split)]
    assert len(cache.images.ids) == 10
    for example in examples:
        expected = teacher.vision.encode(teacher.vision.load_image(example.image.path)[None])
        row = cache.images.rows([example.image.id])
        np.testing.assert_allclose(cache.images.tokens(row)[0], expected.tokens[0].half(), atol=2e-3)
        np.testing.assert_allclose(cache.images.globals(row)[0], expected.global_[0].half(), atol=2e-3)
    texts = list(dict.fromkeys(text for example in examples for text in example.texts()))
    got = cache.texts.tokens(cache.texts.rows(texts))
    globals_ = cache.texts.globals(cache.texts.rows(texts))
    for number, text in enumerate(texts):
        expected_text = teacher.text.encode([text])
        mask = expected_text.mask[0]
        rows = slice(got.offsets[number], got.offsets[number + 1])
        np.testing.assert_allclose(got.tokens[rows], expected_text.tokens[0][mask].half(), atol=2e-3)
        np.testing.assert_array_equal(got.spans[rows], expected_text.spans[0][mask])
        np.testing.assert_allclose(globals_[number], expected_text.global_[0].half(), atol=2e-3)
    cache.close()


def test_zarr_python_reads_every_array_with_equal_values(workspace: Path, tiny_teacher: Path) -> None:
    cache = run(workspace, tiny_teacher, shard_mb=0.002)
    store = zarr.open_group(cache.path, mode="r")
    images, texts = np.arange(10), np.arange(len(cache.texts.texts))
    np.testing.assert_array_equal(store["images/tokens"][:], cache.images.tokens(images))
    np.testing.assert_array_equal(store["images/globals"][:], cache.images.globals(images))
    np.testing.assert_array_equal(store["texts/globals"][:], cache.texts.globals(texts))
    extents, tokens, spans = (store[f"texts/{name}"][:] for name in ("extents", "tokens", "spans"))
    got = cache.texts.tokens(texts)
    np.testing.assert_array_equal(np.concatenate([tokens[a:b] for a, b in extents]), got.tokens)
    np.testing.assert_array_equal(np.concatenate([spans[a:b] for a, b in extents]), got.spans)
    every = cache.images.tokens(images).reshape(-1, cache.images.dim).astype(np.float64)
    np.testing.assert_allclose(store["images/statistics"][:][:2], [every.mean(0), every.var(0)], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(cache.texts.mean, got.tokens.astype(np.float64).mean(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(cache.texts.var, got.tokens.astype(np.float64).var(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(cache.texts.global_var, cache.texts.globals(texts).astype(float).var(0), rtol=1e-5)
    assert store.attrs["madkit"]["identity"] == cache.identity
    assert store["images/tokens"].shape == (10, 16, 16)
    cache.close()


def test_a_second_run_computes_nothing(workspace: Path, tiny_teacher: Path) -> None:
    place, name = Workspace.at(workspace), f"local:{tiny_teacher}"
    (first,) = extract(place, name, ["snli-ve"], device="cpu")
    (second,) = extract(place, name, ["snli-ve"], device="cpu")
    assert (first.computed, first.skipped) == (first.items, 0)
    assert (second.computed, second.skipped, second.path, second.bytes) == (0, first.items, first.path, first.bytes)


def test_a_lost_shard_is_an_error_and_is_redone_alone(workspace: Path, tiny_teacher: Path) -> None:
    place, name = Workspace.at(workspace), f"local:{tiny_teacher}"
    (report,) = extract(place, name, ["snli-ve"], device="cpu", shard_mb=0.002)
    shard = report.path / "images/tokens/c/1/0/0"
    before = shard.read_bytes()
    shard.unlink()
    with pytest.raises(CacheError, match=r"images/tokens/c/1/0/0 is missing"):
        TokenCache.open(report.path)
    (again,) = extract(place, name, ["snli-ve"], device="cpu")  # another shard size: the store keeps its own
    assert 0 < again.computed < again.items / 2
    assert shard.read_bytes() == before


def test_identity_follows_weights_preprocessing_and_data(workspace: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    import json
    import shutil

    place = Workspace.at(workspace)
    paths = [extract(place, f"local:{tiny_teacher}", ["snli-ve"], device="cpu")[0].path]
    other = tmp_path / tiny_teacher.name
    shutil.copytree(tiny_teacher, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "mean": [0.4, 0.5, 0.5]}))
    paths.append(extract(place, f"local:{other}", ["snli-ve"], device="cpu")[0].path)
    paths.append(extract(place, f"local:{other}", ["snli-ve"], device="cpu", splits=["dev"])[0].path)
    manifest = workspace / "data/snli-ve/manifest.json"
    manifest.write_text(manifest.read_text().replace("0123456789abcdef", "fedcba9876543210"))
    paths.append(extract(place, f"local:{other}", ["snli-ve"], device="cpu")[0].path)
    assert len(set(paths)) == 4


def test_unreadable_images_are_listed_and_the_rest_is_kept(workspace: Path, tiny_teacher: Path) -> None:
    place, name = Workspace.at(workspace), f"local:{tiny_teacher}"
    bad = workspace / "data/snli-ve/images/103.png"
    good = bad.read_bytes()
    bad.write_bytes(good[:60])
    with pytest.raises(DataError, match=r"1 of 10 images cannot be read: .*103\.png"):
        extract(place, name, ["snli-ve"], device="cpu", shard_mb=0.002)
    bad.write_bytes(good)
    (report,) = extract(place, name, ["snli-ve"], device="cpu", shard_mb=0.002)
    assert 0 < report.computed <= 3


def test_texts_that_are_too_long_are_read_in_windows_and_counted(
    workspace: Path, tiny_teacher: Path, reindex: Callable[[Path], None]
) -> None:
    file = workspace / "data/snli-ve/test.jsonl"
    line = file.read_text().splitlines()[0]
    long = "cat " * 20
    import json

    file.write_text(json.dumps({**json.loads(line), "sentence2": long.strip()}) + "\n")
    reindex(workspace / "data/snli-ve")
    cache = run(workspace, tiny_teacher)
    assert cache.manifest["facts"]["windowed_texts"] == 1
    assert "long_texts" in cache.identity  # the way of reading them is part of what the store is of
    assert cache.texts.lengths(cache.texts.rows([long.strip()]))[0] == 20
    spans = cache.texts.tokens(cache.texts.rows([long.strip()])).spans
    assert [long[start:end] for start, end in spans] == ["cat"] * 20


def test_choose_cache(workspace: Path, tiny_teacher: Path) -> None:
    place = Workspace.at(workspace)
    data = open_task(place, "snli-ve")
    with pytest.raises(NotFoundError, match=r"has no token cache for snli-ve") as none:
        choose_cache(place, data, None)
    assert none.value.hint == "make one: madkit extract --teacher mini --task snli-ve"
    name = f"local:{tiny_teacher}"
    teacher = load_teacher(name)
    extract_task(place, teacher, data)
    with choose_cache(place, data, None) as cache, choose_cache(place, data, name) as same:
        assert cache.path == same.path
        assert cache.shared_space
        assert cache.logit_scale == pytest.approx(1 / 0.07, rel=1e-5)
    with pytest.raises(NotFoundError, match=r"no token cache of 'mini' for snli-ve, only of local:"):
        choose_cache(place, data, "mini")
    extract_task(place, teacher, data, splits=["dev"])
    with pytest.raises(CacheError, match=r"has 2 caches for snli-ve"):
        choose_cache(place, data, None)
    with choose_cache(place, data, cache.key) as chosen:
        assert chosen.path == cache.path
    manifest = workspace / "data/snli-ve/manifest.json"
    manifest.write_text(manifest.read_text().replace("0123456789abcdef", "fedcba9876543210"))
    with pytest.raises(NotFoundError, match=r"another revision"):
        choose_cache(place, open_task(place, "snli-ve"), None)


def test_missing_items_are_named_with_the_command(workspace: Path, tiny_teacher: Path) -> None:
    cache = run(workspace, tiny_teacher)
    with pytest.raises(CacheError, match=r"2 of the images asked for are not in the cache .*'nope', 'no'") as error:
        cache.images.rows([cache.images.ids[0], "nope", "no", "nope"])
    assert "madkit extract --teacher local:" in str(error.value.hint)
    with pytest.raises(CacheError, match=r"1 of the texts"):
        cache.texts.rows(["never said"])
    with pytest.raises(IndexError, match=r"10 rows"):
        cache.images.tokens([10])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["vcrr"]}, "named 'vcrr'"),
        ({"device": "gpu9"}, "no device named 'gpu9'"),
        ({"splits": ["trian"]}, "Did you mean 'train'"),
        ({"teacher_name": "minni"}, "Did you mean 'mini'"),
        ({"shard_mb": -1.0}, "impossible"),
    ],
)
def test_bad_arguments(workspace: Path, tiny_teacher: Path, options: dict[str, object], message: str) -> None:
    arguments = {"teacher_name": f"local:{tiny_teacher}", "tasks": ["snli-ve"], "device": "cpu", **options}
    with pytest.raises(UsageProblem, match=message):
        extract(Workspace.at(workspace), **arguments)


def test_length_batches_hold_every_text_once_within_the_budget() -> None:
    lengths = np.random.default_rng(0).integers(0, 30, 200)
    batches = length_batches(lengths, 128)
    assert sorted(row for batch in batches for row in batch) == list(range(200))
    assert all(len(batch) * (int(lengths[batch].max()) + 2) <= 128 for batch in batches)
    padded = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
    assert padded < 1.1 * lengths.sum()
    assert length_batches(np.array([500]), 128) == [[0]]  # one text may be longer than the budget


def test_options_refuse_nonsense() -> None:
    with pytest.raises(UsageProblem, match="negative"):
        ExtractOptions(workers=-1)
