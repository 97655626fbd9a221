"""The part of an image that a teacher sees: said rightly, kept in the cache, and used by distillation and pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from madkit.cache import TokenCache
from madkit.cache.token_regions import TokenRegions
from madkit.core.workspace import Workspace
from madkit.distill.teacher.bank import image_bank
from madkit.extract import planning
from madkit.extract.stage import extract
from madkit.look.relevance import relevance_of
from madkit.mad.align import box_patch_weights
from madkit.teachers.preprocess import WHOLE, Preprocessing

torch.set_num_threads(1)
PLAIN = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def ramp(width: int, height: int) -> Image.Image:
    """Red tells how far right a pixel is, green how far down."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.round((np.arange(width) + 0.5) / width * 255)[None, :]
    pixels[..., 1] = np.round((np.arange(height) + 0.5) / height * 255)[:, None]
    return Image.fromarray(pixels)


@given(
    st.integers(20, 90),
    st.integers(20, 90),
    st.sampled_from(["shortest", "squash"]),
    st.sampled_from([(24, 24), (16, 24), (24, 16)]),
    st.sampled_from([None, 32]),
    st.sampled_from(["round", "floor"]),
)
@settings(max_examples=60)
def test_a_view_is_where_the_pixels_come_from(width, height, mode, size, edge, crop):
    edge = edge if mode == "shortest" or size == (24, 24) else None
    how = Preprocessing(size, resize_mode=mode, resize_edge=edge, crop=crop, **PLAIN)
    x1, y1, x2, y2 = how.view(width, height)
    seen = np.asarray(how.fit(ramp(width, height)), dtype=float) / 255
    across = x1 + (x2 - x1) * (np.arange(size[1]) + 0.5) / size[1]
    down = y1 + (y2 - y1) * (np.arange(size[0]) + 0.5) / size[0]
    np.testing.assert_allclose(seen[:, 4:-4, 0].mean(0), across[4:-4], atol=0.02)
    np.testing.assert_allclose(seen[4:-4, :, 1].mean(1), down[4:-4], atol=0.02)
    if not how.cuts:
        assert (x1, y1, x2, y2) == WHOLE


@pytest.mark.parametrize("decoder", ["pillow", "torchvision"])
def test_both_decoders_say_the_same(tmp_path, decoder):
    ramp(60, 40).save(tmp_path / "x.png")
    pixels, view = Preprocessing((24, 24), decoder=decoder, **PLAIN).look(tmp_path / "x.png")
    assert view == pytest.approx((6 / 36, 0, 30 / 36, 1))
    assert float(pixels[0, :, 0].float().mean()) / 255 == pytest.approx(view[0] + 1 / 72, abs=0.02)


@pytest.fixture
def store(workspace: Path, tiny_teacher: Path) -> Path:
    return extract(Workspace.at(workspace), f"local:{tiny_teacher}", ["snli-ve"])[0].path


def test_a_cache_keeps_the_views_and_any_zarr_tool_reads_them(workspace, store):
    import zarr

    with TokenCache.open(store) as cache:
        rows = np.arange(len(cache.images.ids))
        views = cache.images.views(rows)
        # pictures of 28 + 3n x 40 pixels, seen as their central square of 32
        expected = []
        for number in range(10):
            with Image.open(workspace / "data" / "snli-ve" / "images" / f"{100 + number}.png") as image:
                expected.append(Preprocessing((32, 32), **PLAIN).view(*image.size))
        order = [int(name.split(".")[0]) - 100 for name in cache.images.ids]
        np.testing.assert_allclose(views, np.array(expected)[order], atol=1e-6)
        assert len({tuple(view) for view in views.tolist()}) > 3
    found = zarr.open_group(str(store), mode="r")["images/views"][:]
    np.testing.assert_array_equal(found, views)


def test_boxes_are_pooled_from_the_patches_that_lie_in_them(store):
    with TokenCache.open(store) as cache:
        ids = cache.images.ids
        views = cache.images.views(np.arange(10))
        low, size = torch.from_numpy(views[:, :2]), torch.from_numpy(views[:, 2:] - views[:, :2])
        inner = torch.cat([low + size * 0.25, low + size * 0.5], 1)  # cell (1, 1) of the grid that was seen
        cut = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(10, 1)
        away = torch.stack([torch.zeros(10), torch.zeros(10), low.amax(1).clamp_min(1e-3) * 0.2, torch.ones(10)], 1)
        bank = image_bank(cache, ids, torch.stack([inner, cut, away], 1))
        patches = torch.from_numpy(cache.images.tokens(np.arange(10)).astype(np.float32))
    torch.testing.assert_close(bank.regions[:, 0].float(), patches[:, 5], atol=2e-3, rtol=2e-3)
    assert bank.covered is not None
    assert bank.covered[:, :2].all()
    wide = low[:, 0] > 0.02
    assert wide.any()
    assert not bank.covered[wide, 2].any()  # a strip at the border that was cut off
    without = torch.matmul(box_patch_weights(inner[:, None], (4, 4)), patches)[:, 0]
    assert not torch.allclose(without[wide], patches[wide, 5], atol=1e-2)  # what was compared before views were kept


def test_pictures_and_tokens_as_regions_follow(store):
    with TokenCache.open(store) as cache:
        text = next(text for text in cache.texts.texts if text.strip())
        row = int(np.argmax(cache.images.views(np.arange(10))[:, 0]))
        name = cache.images.ids[row]
        view = cache.images.views([row])[0]
        assert relevance_of(cache, name, text).view == pytest.approx(tuple(view.tolist()))
        boxes = TokenRegions(cache).get(name).boxes
        assert boxes[0, 0] == pytest.approx(view[0])
        assert boxes[-1, 2] == pytest.approx(view[2])


def test_a_store_begun_without_views_is_finished_without(workspace, tiny_teacher, monkeypatch):
    real = planning.keeps_views
    monkeypatch.setattr(planning, "keeps_views", lambda teacher: False)
    path = extract(Workspace.at(workspace), f"local:{tiny_teacher}", ["snli-ve"], shard_mb=0.002)[0].path
    whole = {file: (path / file).read_bytes() for file in json.loads((path / "manifest.json").read_text())["files"]}
    (path / "manifest.json").unlink()
    journal = (path / "journal.jsonl").read_text().splitlines(keepends=True)
    (path / "journal.jsonl").write_text("".join(journal[:2]))
    monkeypatch.setattr(planning, "keeps_views", real)
    extract(Workspace.at(workspace), f"local:{tiny_teacher}", ["snli-ve"])
    with TokenCache.open(path) as cache:
        assert not cache.images.has_views
        assert cache.images.views([0]) is None
        bank = image_bank(cache, cache.images.ids, torch.rand(10, 2, 4))
        assert bank.covered is None
    assert {file: (path / file).read_bytes() for file in whole} == whole


def test_whole_images_can_be_asked_for(workspace, tiny_teacher, store, capsys):
    from madkit.cli.main import main

    capsys.readouterr()
    command = ["extract", "--teacher", f"local:{tiny_teacher}", "--task", "snli-ve", "--workspace", str(workspace)]
    assert main([*command, "--view", "whole", "--json"]) == 0
    told = capsys.readouterr()
    found = json.loads(told.out)["stores"][0]
    assert found["path"] != str(store)
    assert "nothing is cut" in told.err
    with TokenCache.open(found["path"]) as cache, TokenCache.open(store) as cut:
        assert not cache.images.has_views
        assert cache.identity["vision"]["preprocessing"]["resize_mode"] == "squash"
        assert (cache.images.globals([0]) != cut.images.globals([0])).any()
    assert main([*command, "--view", "whole"]) == 0  # found again
    assert "nothing to do" in capsys.readouterr().err
    name = Path(found["path"]).name
    assert main(["cache", "verify", name, "--sample", "2", "--workspace", str(workspace)]) == 0
    assert main([*command, "--view", "hole"]) == 2
    assert "Did you mean 'whole'?" in capsys.readouterr().err
