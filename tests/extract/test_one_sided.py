"""Teachers of images alone and of texts alone: their stores have the one part, and whoever needs both is told."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from madkit.cache import TokenCache, choose_cache, verify_cache
from madkit.cli.main import main
from madkit.core.errors import CacheError
from madkit.core.workspace import Workspace
from madkit.extract.stage import extract
from madkit.tasks.data import open_task
from madkit.teachers.load import load_teacher

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Names of a DINOv2 of width 32 and a RoBERTa of width 24, with random weights."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model, RobertaConfig, RobertaModel

    spec = importlib.util.spec_from_file_location("hf_models", Path(__file__).parents[1] / "teachers" / "hf_models.py")
    assert spec is not None
    assert spec.loader is not None
    models: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(models)
    home = tmp_path_factory.mktemp("sides")
    vision = models.randomised(Dinov2Model(Dinov2Config(**models.SMALL, patch_size=14, image_size=42)))
    processor = BitImageProcessor(size={"shortest_edge": 42}, crop_size={"height": 42, "width": 42})
    tokenizer = models.byte_level()
    small = {**models.SMALL, "hidden_size": 24, "max_position_embeddings": 20, "pad_token_id": 1}
    text = models.randomised(RobertaModel(RobertaConfig(vocab_size=len(tokenizer), **small)))
    dino, roberta = models.save(home / "dino", vision, processor), models.save(home / "roberta", text, tokenizer)
    return f"hf:{dino}", f"hf:{roberta}"


@pytest.mark.parametrize(("side", "more"), [("images", ()), ("texts", ("--store-dtype", "int8"))])
def test_the_commands(
    side: str, more: tuple[str, ...], workspace: Path, sides: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = sides[0] if side == "images" else sides[1]
    other = "texts" if side == "images" else "images"
    if side == "texts":
        shutil.rmtree(workspace / "data/snli-ve/images")  # nobody looks at them

    def madkit(*arguments: object, code: int = 0) -> dict[str, Any]:
        assert main([*map(str, arguments), "--workspace", str(workspace), "--json"]) == code
        document: dict[str, Any] = json.loads(capsys.readouterr().out)
        return document

    this = ("extract", "--teacher", teacher, "--task", "snli-ve", "--device", "cpu", "--shard-mb", 0.002, *more)
    (plan,) = madkit(*this, "--dry-run")["stores"]
    assert (plan[side] > 0, plan[other], plan["pending"]) == (True, 0, plan["items"])
    (report,) = madkit(*this)["stores"]
    store = Path(report["path"])
    assert (report[side], report[other], report["computed"]) == (plan[side], 0, plan["items"])
    assert not (store / other).exists()
    assert other not in json.loads((store / "plan.json").read_text())
    assert madkit(*this)["stores"][0]["computed"] == 0
    (row,) = madkit("cache", "list")["stores"]
    assert (row["state"], row[side], row[other]) == ("complete", report[side], 0)
    assert madkit("cache", "info")["stores"][0]["identity"]["vision" if other == "images" else "text"] is None
    (verified,) = madkit("cache", "verify", "--sample", 4)["stores"]
    assert verified["ok"]
    assert verified["sample"][side]["n"] > 0
    assert verified["sample"][other]["n"] == 0
    shard = store / ("images/tokens/c/0/0/0" if side == "images" else "texts/tokens/c/0/0")
    before = shard.read_bytes()
    shard.write_bytes(before[:5] + bytes([before[5] ^ 1]) + before[6:])
    assert madkit("cache", "verify", code=3)["stores"][0]["problems"]
    assert madkit("cache", "repair", "--device", "cpu")["stores"][0]["changed"] == []
    assert shard.read_bytes() == before
    group = zarr.open_group(store, mode="r")
    assert (side in group, other in group) == (True, False)


def test_the_reader_and_who_needs_both(workspace: Path, sides: tuple[str, str]) -> None:
    place = Workspace(workspace)
    data = open_task(place, "snli-ve")
    for name, side in zip(sides, ("images", "texts"), strict=True):
        (report,) = extract(place, name, ["snli-ve"], device="cpu")
        teacher = load_teacher(name)
        with TokenCache.open(report.path, check=True) as cache:
            assert cache.parts == (side,)
            if side == "images":
                assert teacher.vision is not None
                path = workspace / "data/snli-ve/images/104.png"
                fresh = teacher.vision.encode(teacher.vision.load_image(path)[None])
                row = [image for image in cache.images.ids if "104" in image]
                kept = cache.images.tokens(cache.images.rows(row))[0]
                np.testing.assert_allclose(kept, fresh.tokens[0].half(), atol=2e-2)  # two decoders
            else:
                assert teacher.text is not None
                said = cache.texts.texts[3]
                output = teacher.text.encode([said])
                kept = cache.texts.tokens(cache.texts.rows([said])).tokens
                np.testing.assert_allclose(kept, output.tokens[0][output.mask[0]].half(), atol=2e-3)
        with choose_cache(place, data, name) as cache, pytest.raises(CacheError) as error:
            _ = (cache.texts if side == "images" else cache.images).absent  # as distillation does
        joined = f"{name}+TEXT" if side == "images" else f"VISION+{name}"
        other = "texts" if side == "images" else "images"
        assert f"its teacher '{name}' reads no {other}" in error.value.message
        assert joined in error.value.message
        assert "madkit extract --teacher " in str(error.value.hint)
    with pytest.raises(CacheError, match="caches of one side alone for snli-ve") as alone:
        choose_cache(place, data, None)
    assert f"--teacher {sides[0]} --teacher {sides[1]}" in alone.value.hint
    assert alone.value.hint.endswith(f"madkit extract --teacher {'+'.join(sides)} --task snli-ve")
    (both,) = extract(place, "+".join(sides), ["snli-ve"], device="cpu")
    with choose_cache(place, data, None) as cache:  # of the three, the one that has all
        assert cache.path == both.path
    assert verify_cache(both.path).ok
