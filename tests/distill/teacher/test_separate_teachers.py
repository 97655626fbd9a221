"""Two encoders that know nothing of each other, VISION+TEXT, from extraction to trained students."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from madkit.cache import TokenCache
from madkit.core.errors import CacheError, ConfigError, NotFoundError, UsageProblem
from madkit.core.files import read_jsonl
from madkit.core.workspace import Workspace
from madkit.distill.settings.arms import arm_names
from madkit.distill.stage import distill
from madkit.extract.frozen import with_decoder
from madkit.extract.recheck import recheck
from madkit.extract.stage import extract
from madkit.teachers.load import load_teacher

QUICK = {"optim.steps": 2, "optim.extra_steps": 0, "optim.batch_size": 4, "eval.limit": 8, "confidence.folds": 2}
PHASE = {"pre_phase.steps": 2, "pre_phase.batch_size": 8, "pre_phase.eval_every": 1}


def tiny_models():
    source = Path(__file__).parents[2] / "teachers" / "hf_models.py"
    spec = importlib.util.spec_from_file_location("hf_models", source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    """Folders of a DINOv2 of width 32 and a RoBERTa of width 24 that reads 18 tokens at a time."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model, RobertaConfig, RobertaModel

    torch.set_num_threads(1)
    home, models = tmp_path_factory.mktemp("sides"), tiny_models()
    vision = models.randomised(Dinov2Model(Dinov2Config(**models.SMALL, patch_size=14, image_size=42)))
    processor = BitImageProcessor(size={"shortest_edge": 42}, crop_size={"height": 42, "width": 42})
    tokenizer = models.byte_level()
    small = {**models.SMALL, "hidden_size": 24, "max_position_embeddings": 20, "pad_token_id": 1}
    text = models.randomised(RobertaModel(RobertaConfig(vocab_size=len(tokenizer), **small)))
    return models.save(home / "dino", vision, processor), models.save(home / "roberta", text, tokenizer)


@pytest.fixture(scope="module")
def ready(benchmark, sides, tmp_path_factory):
    """(workspace whose only cache is that of the two, the teacher's name)."""
    shared, _ = benchmark
    root = tmp_path_factory.mktemp("separate")
    (root / "data").symlink_to(shared.data)
    workspace, name = Workspace.at(root), f"hf:{sides[0]}+hf:{sides[1]}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        (report,) = extract(workspace, name, ["snli-ve"], part="tiny", device="cpu")
    return workspace, name, report


def test_the_cache_holds_both_sides_and_says_that_they_are_separate(ready):
    workspace, name, report = ready
    teacher, _ = with_decoder(load_teacher(name), "auto")
    assert report.windowed > 0
    with TokenCache.open(report.path, check=True) as cache:
        assert (cache.teacher, cache.shared_space, cache.logit_scale) == (name, False, 1.0)
        assert (cache.images.dim, cache.images.grid, cache.texts.dim) == (32, (3, 3), 24)
        assert cache.identity["vision"] == teacher.vision.identity
        assert cache.identity["text"] == teacher.text.identity
        assert cache.manifest["facts"]["windowed_texts"] == report.windowed
        longest = max(cache.texts.texts, key=len)
        kept, fresh = cache.texts.tokens(cache.texts.rows([longest])), teacher.text.encode([longest])
        assert len(kept.tokens) > teacher.text.limit == 16
        np.testing.assert_allclose(kept.tokens, fresh.tokens[0][fresh.mask[0]].half(), atol=2e-3)
    assert recheck(workspace, report.path, 3).ok


@pytest.mark.parametrize("arm", arm_names())
def test_arms_that_need_no_common_space_train_and_the_others_say_so(ready, student, arm, tmp_path):
    workspace = Workspace.at(tmp_path)
    for part in ("data", "cache"):
        (tmp_path / part).symlink_to(getattr(ready[0], part))
    overrides = {**QUICK, **(PHASE if "affinity" in arm else {})}

    def train(**more):
        return distill(
            workspace, task="snli-ve", shots="10pct", arm=arm, student=student, seed=1, threads=1,
            config_overrides={**overrides, **more},
        )  # fmt: skip

    if "affinity" in arm:
        with pytest.raises(ConfigError, match="do not share a space") as found:
            train()
        assert found.value.hint is not None
        return
    steps = [row for row in read_jsonl(train().path / "metrics.jsonl") if "loss" in row]
    assert len(steps) == 2
    assert all(math.isfinite(row["loss"]) for row in steps)
    distilled = set(steps[0]["terms"]) - {"task"}
    if arm in ("kd-all", "mad"):
        assert {"token_text", "token_region", "global_image", "global_text"} <= distilled
    if arm == "mad":
        with pytest.raises(ConfigError, match="do not share a space"):
            train(**{"mad.relevance": "shared"})
        with pytest.raises(ConfigError, match="one space for images and texts"):
            train(**{"confidence.source": "zero-shot"})


def test_sides_that_are_missing_or_swapped(sides, ready, student, tmp_path):
    dino, roberta = (f"hf:{folder}" for folder in sides)
    with pytest.raises(UsageProblem, match=r"reads texts only, and in .* it is to read images"):
        load_teacher(f"{roberta}+{dino}")
    (tmp_path / "data").symlink_to(ready[0].data)
    for name, lacks in ((dino, "texts"), (roberta, "images")):
        report = extract(Workspace.at(tmp_path), name, ["snli-ve"], part="tiny", device="cpu")[0]
        assert getattr(report, lacks) == 0
        asked = {"task": "snli-ve", "shots": "10pct", "teacher": name, "config_overrides": QUICK, "part": "tiny"}
        if lacks == "images":  # a student that sees with a teacher's tokens needs some
            with pytest.raises(CacheError, match="no images") as found:
                distill(Workspace.at(tmp_path), arm="clip-vil", **asked)
            assert "+" in found.value.hint
        result = distill(Workspace.at(tmp_path), arm="mad", student=student, **asked)  # it teaches what it reads
        terms = {term for row in read_jsonl(result.path / "metrics.jsonl") for term in row.get("terms", ())} - {"task"}
        assert terms
        assert not any(lacks.removesuffix("s") in term for term in terms)


def test_weights_of_both_sides_from_one_folder(sides, tmp_path):
    (tmp_path / "vision").symlink_to(sides[0])
    (tmp_path / "text").symlink_to(sides[1])
    named = load_teacher(f"hf:{sides[0]}+hf:{sides[1]}")
    other = load_teacher("dinov2-vit-b14+roberta-base", weights=tmp_path)
    assert other.vision.identity == named.vision.identity
    assert other.text.identity == named.text.identity
    (tmp_path / "text").unlink()
    with pytest.raises(NotFoundError, match="'roberta-base'"):
        load_teacher("dinov2-vit-b14+roberta-base", weights=tmp_path)
    (tmp_path / "vision").unlink()
    with pytest.raises(NotFoundError, match="neither 'vision' nor 'text'"):
        load_teacher("dinov2-vit-b14+roberta-base", weights=tmp_path)


def test_half_of_a_pair_with_another(sides, tiny_teacher):
    teacher = load_teacher(f"local:{tiny_teacher}+hf:{sides[1]}")
    assert (teacher.vision.dim, teacher.text.dim, teacher.shared_space) == (16, 24, False)
    assert teacher.vision.identity == load_teacher(f"local:{tiny_teacher}").vision.identity


def test_the_embedded_teacher_with_two_of_one_side(sides, ready, student, tmp_path, capsys):
    """The teacher `mini`, an image encoder of transformers and a text encoder of it, each with a cache of its own."""
    workspace = Workspace.at(tmp_path)
    (tmp_path / "data").symlink_to(ready[0].data)
    dino, roberta = (f"hf:{folder}" for folder in sides)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        for name in ("mini", dino, roberta):
            extract(workspace, name, ["snli-ve"], part="tiny", device="cpu")
    result = distill(
        workspace, task="snli-ve", shots="10pct", arm="mad", student=student, seed=1, threads=1,
        teacher=["mini", dino, roberta],
        config_overrides={**QUICK, "teachers": {dino: {"weight": 0.5, "mad": {"tokens": "all"}}}},
    )  # fmt: skip
    first = next(row for row in read_jsonl(result.path / "metrics.jsonl") if "loss" in row)
    assert math.isfinite(first["loss"])
    by_teacher = {name: {term.rpartition("/")[2] for term in first["terms"] if term.startswith(f"{name}/")}
                  for name in ("mini", dino, roberta)}  # fmt: skip
    assert by_teacher["mini"] >= {"token_text", "token_region", "global_image", "global_text"}
    assert by_teacher[dino] >= {"token_region", "global_image"}
    assert by_teacher[roberta] == {"token_text", "global_text"}
    assert not {"token_text", "global_text"} & by_teacher[dino]
    said = capsys.readouterr().err
    assert f"{dino} teaches no global_text or token_text: it reads images alone." in said
    assert sorted(result.manifest["teacher"].split(", ")) == sorted(["mini", dino, roberta])
