"""Which tokens are kept and in what dtype: the store holds just these, says which, and the default is what it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st

from madkit.cache import TokenCache, verify_cache
from madkit.cache.pruning import plan_prune
from madkit.cli.main import main
from madkit.core.errors import CacheError, UsageProblem
from madkit.core.workspace import Workspace
from madkit.distill.teacher.bank import image_bank
from madkit.extract.options import decode_threads
from madkit.extract.repair import repair
from madkit.extract.selection import coverage_cells, select_patches
from madkit.extract.stage import extract
from madkit.mad.align import box_patch_weights, boxes_in_view, pool_regions, pool_selected

torch.set_num_threads(1)


def run(workspace: Path, teacher: Path, **more: Any) -> Path:
    more = {"device": "cpu", "shard_mb": 0.002, **more}
    return extract(Workspace(workspace), f"local:{teacher}", ["snli-ve"], **more)[0].path


def test_a_default_store_is_what_it_was(workspace: Path, tiny_teacher: Path) -> None:
    """Neither the identity nor the sizes nor the metadata of a default store name the new choices."""
    path = run(workspace, tiny_teacher)
    plan = json.loads((path / "plan.json").read_text())
    assert (plan["identity"]["selection"], plan["identity"]["dtype"]) == ("all", "float16")
    assert set(plan["images"]) == {"n", "unit", "tokens", "dim", "grid", "views"}
    assert set(plan["texts"]) == {"n", "unit", "capacity", "rows", "dim"}
    arrays = {f"{found.parent.parent.name}/{found.parent.name}" for found in path.glob("*/*/zarr.json")}
    common = {"tokens", "globals", "statistics", "unit_statistics"}
    images = {f"images/{name}" for name in common | {"views"}}
    assert arrays == images | {f"texts/{name}" for name in common | {"spans", "extents"}}
    assert "rounding" not in json.loads((path / "manifest.json").read_text())
    codecs = json.loads((path / "images/tokens/zarr.json").read_text())["codecs"][0]["configuration"]
    assert codecs["codecs"][0] == {"name": "bytes", "configuration": {"endian": "little"}}


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_selection(workspace: Path, tiny_teacher: Path, dtype: str) -> None:
    whole = TokenCache.open(run(workspace, tiny_teacher))
    path = run(workspace, tiny_teacher, tokens="selected:6", store_dtype=dtype)
    assert path != whole.path
    assert verify_cache(path).ok
    with TokenCache.open(path, check=True) as cache:
        rows = np.random.default_rng(0).integers(0, 10, 17)
        tokens, places = cache.images.tokens(rows), cache.images.positions(rows)
        assert (tokens.shape, cache.images.selected) == ((17, 6, 16), 6)
        assert (np.diff(places, axis=1) > 0).all()
        every = whole.images.tokens(rows)
        expected = select_patches(
            torch.from_numpy(every), torch.from_numpy(whole.images.globals(rows)), cache.images.grid, 6
        ).numpy()
        assert (places == expected).mean() > 0.95  # chosen before rounding to float16
        at = np.take_along_axis(every, places[..., None].astype(np.int64), 1)
        np.testing.assert_allclose(tokens.astype(np.float32), at, atol=0 if dtype == "float16" else 0.05)
        group = zarr.open_group(path, mode="r")
        np.testing.assert_array_equal(group["images/positions"][:][rows], places)
        assert whole.images.selected is None
        np.testing.assert_array_equal(whole.images.positions([3]), [np.arange(16)])
        np.testing.assert_array_equal(cache.texts.globals([0, 1]), whole.texts.globals([0, 1]))
    whole.close()
    (path / "images/positions/c/0/0").unlink()
    report = repair(Workspace(workspace), path, device="cpu")
    assert (report.changed, verify_cache(path).ok) == ((), True)


def test_int8_is_close_and_says_how_close(
    workspace: Path, tiny_teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = TokenCache.open(run(workspace, tiny_teacher))
    capsys.readouterr()
    path = run(workspace, tiny_teacher, store_dtype="int8")
    assert "int8 images: cosine to the values before rounding 0.99" in capsys.readouterr().err
    manifest = json.loads((path / "manifest.json").read_text())
    with TokenCache.open(path, check=True) as cache:
        assert (cache.images.dtype, whole.images.dtype) == ("int8", "float16")
        images, texts = np.arange(10), np.arange(len(cache.texts.texts))[::-1]
        for part, got, had in (
            ("images", cache.images.tokens(images), whole.images.tokens(images)),
            ("texts", cache.texts.tokens(texts).tokens, whole.texts.tokens(texts).tokens),
        ):
            assert got.dtype == np.float16
            a, b = (values.reshape(-1, 16).astype(np.float64) for values in (got, had))
            cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
            facts = manifest["rounding"][part]
            assert facts["tokens"] == len(cosines)
            assert facts["worst_cosine"] == pytest.approx(cosines.min(), abs=1e-9)
            assert facts["mean_cosine"] == pytest.approx(cosines.mean(), abs=1e-9)
            assert cosines.min() > 0.995
        # statistics are those of the values before rounding
        np.testing.assert_array_equal(cache.images.mean, whole.images.mean)
        group = zarr.open_group(path, mode="r")
        values, scales = group["images/tokens"][:], group["images/scales"][:].astype(np.float32)
        units = np.arange(10) // manifest["images"]["unit"]
        channels = group["images/channel_scales"][:][units][:, None]
        np.testing.assert_array_equal(
            (values.astype(np.float32) * scales[..., None] * channels).astype(np.float16), cache.images.tokens(images)
        )
        raw, _, _ = cache.images.rounded_tokens([4])
        np.testing.assert_array_equal(raw[0], values[4])
    whole.close()
    assert plan_prune(Workspace(workspace)) == []  # neither supersedes the other
    place = ["--workspace", str(workspace)]
    assert main(["cache", "verify", path.name, "--sample", "4", *place]) == 0

    def size(store: Path) -> int:
        return sum(file.stat().st_size for file in (store / "images/tokens").rglob("c/**/0"))

    assert size(path) < 0.6 * size(whole.path)


def test_global_vectors_alone(workspace: Path, tiny_teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = TokenCache.open(run(workspace, tiny_teacher))
    path = run(workspace, tiny_teacher, tokens="global")
    assert verify_cache(path).ok
    with TokenCache.open(path) as cache:
        rows = np.arange(10)
        np.testing.assert_array_equal(cache.images.globals(rows), whole.images.globals(rows))
        np.testing.assert_array_equal(cache.texts.global_var, whole.texts.global_var)
        assert not cache.images.has_tokens
        for read in (cache.images.tokens, cache.texts.tokens, cache.images.positions):
            with pytest.raises(CacheError, match="global vectors only"):
                read([0])
        assert cache.texts.lengths([0]).tolist() == [0]
    assert not (path / "images/tokens").exists()
    whole.close()
    assert main(["cache", "verify", path.name, "--sample", "3", "--workspace", str(workspace)]) == 0
    capsys.readouterr()
    assert main(["cache", "list", "--workspace", str(workspace), "--json"]) == 0
    rows_ = json.loads(capsys.readouterr().out)["stores"]
    assert {(row["selection"], row["dtype"]) for row in rows_} == {("all", "float16"), ("global", "float16")}


def test_distillation_reads_what_is_there(workspace: Path, tiny_teacher: Path) -> None:
    boxes = torch.tensor([[[0.0, 0.0, 1.0, 1.0], [0.3, 0.3, 0.32, 0.32]]] * 10)
    with TokenCache.open(run(workspace, tiny_teacher, tokens="selected:3")) as cache:
        ids = cache.images.ids
        bank = image_bank(cache, ids, boxes)
        places = cache.images.positions(np.arange(10))
        assert bank.covered is not None
        assert bank.covered[:, 0].all()
        inside, seen = boxes_in_view(boxes, torch.from_numpy(cache.images.views(np.arange(10))))
        cells = [set(np.flatnonzero(weights)) for weights in box_patch_weights(inside, cache.images.grid)[:, 1].numpy()]
        known = [bool(cell & set(row)) for cell, row in zip(cells, places.tolist(), strict=True)]
        assert seen[:, 1].all()
        assert bank.covered[:, 1].tolist() == known  # whether a patch that the small box touches was selected
        assert len(set(known)) == 2
        assert not bank.regions[~bank.covered].any()
    with TokenCache.open(run(workspace, tiny_teacher, tokens="global")) as cache:
        bank = image_bank(cache, ids, boxes, tokens=False)
        assert bank.globals.any()
        with pytest.raises(CacheError, match="global vectors only") as error:
            image_bank(cache, ids, boxes)
        assert "--tokens" not in str(error.value.hint)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tokens": "selected"}, "has no number of tokens"),
        ({"tokens": "selectd:4"}, "Did you mean 'selected:K'"),
        ({"tokens": "selected:0"}, "has no number of tokens"),
        ({"decoder": "pilow"}, "Did you mean 'pillow'"),
        ({"device": "cuad"}, "Did you mean 'cuda'"),
        ({"shard_mb": float("nan")}, "nan MB is impossible"),
        ({"shard_mb": float("inf")}, "inf MB is impossible"),
        ({"tokens": "selected:16"}, "gives 16 tokens an image, so 16 cannot be selected"),
        ({"store_dtype": "int9"}, "Did you mean 'int8'"),
        ({"tokens": "global", "store_dtype": "int8"}, "always stored as float16"),
    ],
)
def test_what_cannot_be_meant(workspace: Path, tiny_teacher: Path, options: dict[str, str], words: str) -> None:
    with pytest.raises(UsageProblem, match=words):
        run(workspace, tiny_teacher, **options)


def test_the_dry_run_knows_the_size(workspace: Path, tiny_teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["extract", "--teacher", f"local:{tiny_teacher}", "--task", "snli-ve", "--workspace", str(workspace)]
    sizes = []
    for more in ([], ["--store-dtype", "int8"], ["--tokens", "selected:4"], ["--tokens", "global"]):
        capsys.readouterr()
        assert main([*common, *more, "--dry-run", "--json"]) == 0
        sizes.append(json.loads(capsys.readouterr().out)["stores"][0]["bytes"])
    assert sizes[0] > sizes[1] > sizes[3]
    assert sizes[0] > sizes[2] > sizes[3]


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 40), st.integers(0, 5))
def test_selection_covers_the_picture_and_prefers_the_relevant(rows: int, columns: int, count: int, seed: int) -> None:
    count = min(count, rows * columns)
    rng = torch.Generator().manual_seed(seed)
    tokens, global_ = torch.randn(3, rows * columns, 5, generator=rng), torch.randn(3, 5, generator=rng)
    places = select_patches(tokens, global_, (rows, columns), count)
    assert places.shape == (3, count)
    assert (places.diff(dim=1) > 0).all()
    down, across = coverage_cells((rows, columns), count // 2)
    assert down * across <= count // 2
    cosine = torch.cosine_similarity(tokens, global_[:, None], dim=-1)
    for image in range(3):
        kept = places[image].tolist()
        cells = {(place // columns * down // rows, place % columns * across // columns) for place in kept if down}
        assert len(cells) == down * across
        assert int(cosine[image].argmax()) in kept


def test_pooling_of_a_selection_is_exact() -> None:
    rng = torch.Generator().manual_seed(0)
    tokens, global_ = torch.randn(2, 12, 4, generator=rng), torch.randn(2, 4, generator=rng)
    boxes = torch.tensor([[[0.0, 0.0, 0.5, 0.5], [0.1, 0.2, 0.9, 0.95], [0.0, 0.0, 1.0, 1.0]]] * 2)
    whole = torch.tensor([[False, False, True]] * 2)
    every = torch.arange(12).expand(2, -1)
    pooled, has = pool_selected(tokens, every, boxes, (3, 4), image_global=global_, whole_image=whole)
    expected = pool_regions(tokens, boxes, (3, 4), image_global=global_, whole_image=whole)
    torch.testing.assert_close(pooled, expected)
    assert has.all()
    some = torch.tensor([[11], [0]])  # the last patch lies outside the first box, the first one inside
    pooled, has = pool_selected(
        tokens.gather(1, some[..., None].expand(-1, -1, 4)),
        some,
        boxes,
        (3, 4),
        image_global=global_,
        whole_image=whole,
    )
    assert has.tolist() == [[False, True, True], [True, True, True]]
    torch.testing.assert_close(pooled[0, 1], tokens[0, 11])
    torch.testing.assert_close(pooled[1, 0], tokens[1, 0])


def test_processes_of_one_machine_share_its_cores_for_decoding(monkeypatch):
    monkeypatch.setattr("madkit.extract.options.usable_cpus", lambda: 24)
    for processes, threads in ((1, 16), (2, 12), (8, 3), (64, 1)):
        monkeypatch.setattr("madkit.extract.options.local_world_size", lambda count=processes: count)
        assert decode_threads(0) == threads
        assert decode_threads(5) == 5
