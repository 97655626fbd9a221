"""The three stages and an adaptation on a real GPU, against the CPU; skipped where there is none.

``MADKIT_TEST_DEVICE=cpu`` runs them on the CPU, where bfloat16 is left out: it shows that the tests work, and no more.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from madkit.adapt.stage import adapt
from madkit.cache import TokenCache
from madkit.core.files import read_jsonl
from madkit.core.workspace import Workspace
from madkit.distill import stage
from madkit.distill.batches.region_features import RegionFeatures
from madkit.distill.loop.ahead import Ahead
from madkit.evaluate.scorer import StudentScorer
from madkit.extract.stage import extract
from madkit.regions import RegionReader, Regions
from madkit.tasks.data import open_task

DEVICE = os.environ.get("MADKIT_TEST_DEVICE", "cuda")
GPU = DEVICE == "cuda"
pytestmark = pytest.mark.skipif(GPU and not torch.cuda.is_available(), reason="needs a GPU")
TASKS = ("vcr", "snli-ve", "vqa")
EXACT = {"optim.dropout": 0.0, "optim.steps": 6, "optim.batch_size": 8, "eval.limit": 16}
PHASE = {"pre_phase.steps": 6, "pre_phase.batch_size": 16, "pre_phase.eval_every": 3}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with the tiny part of the embedded benchmark, read by its teacher on the device."""
    workspace = Workspace.at(tmp_path_factory.mktemp("gpu"))
    for task in TASKS:
        open_task(workspace, task, part="tiny")
    extract(workspace, "mini", TASKS, device=DEVICE, part="tiny")
    return workspace


@dataclass(frozen=True)
class Seen:
    """A batch of features alone."""

    features: torch.Tensor

    def to(self, device: torch.device | str) -> Seen:
        return Seen(self.features.to(device, non_blocking=True))


class Pictures:
    """Regions of images, all of whose numbers are the image's."""

    dim = 2048

    def get(self, name: str) -> Regions:
        return Regions(
            np.tile(np.asarray([0, 0, 1, 1], np.float32), (36, 1)), np.full((36, self.dim), int(name), np.float32)
        )


@pytest.mark.skipif(not GPU, reason="copies of a GPU")
def test_features_are_not_overwritten_before_they_are_copied() -> None:
    """The GPU has other things to do while batch after batch is gathered and queued."""
    held = RegionFeatures(cast(RegionReader, Pictures()), [str(number) for number in range(32)])
    pieces = [np.roll(np.arange(32), step) for step in range(8)]

    def make(piece: Any, step: int) -> Seen:
        return Seen(held.features(torch.from_numpy(piece), 36))

    with Ahead(make, on=True, device=DEVICE) as batches:
        assert batches._stream is not None
        with torch.cuda.stream(batches._stream):
            torch.cuda._sleep(2_000_000_000)  # cycles
        found = []
        for step, piece in enumerate(pieces):
            batches.announce([piece], step)
            found.append(batches(piece, step).to(DEVICE))
        for piece, seen in zip(pieces, found, strict=True):
            assert seen.features[:, 0, 0].tolist() == piece.tolist()
            assert bool((seen.features == seen.features[:, :1, :1]).all())


def elsewhere(place: Workspace, folder: Path, *parts: str) -> Workspace:
    """A workspace with the same data and, if asked for, caches."""
    for part in parts:
        (folder / part).symlink_to(getattr(place, part))
    return Workspace.at(folder)


def train(workspace: Workspace, precision: str, *, cpu: bool = False, **asked: Any) -> Any:
    overrides = {**EXACT, "precision": precision, **asked.pop("overrides", {})}
    with pytest.MonkeyPatch.context() as patch:
        if cpu:
            AcceleratorState._reset_state(reset_partial_state=True)
            patch.setattr(stage, "make_accelerator", lambda _: Accelerator(cpu=True))
        result = stage.distill(workspace, part="tiny", threads=1, config_overrides=overrides, **asked)
    AcceleratorState._reset_state(reset_partial_state=True)
    return result


def losses(result: Any) -> list[float]:
    return [row["loss"] for row in read_jsonl(result.path / "metrics.jsonl") if "loss" in row]


@pytest.mark.parametrize("options", [{}, {"tokens": "selected:8", "store_dtype": "int8"}], ids=["all", "selected"])
def test_tokens_are_those_of_the_cpu(place: Workspace, tmp_path: Path, options: dict[str, Any]) -> None:
    there, here = (elsewhere(place, _made(tmp_path / name), "data") for name in ("there", "here"))
    asked: dict[str, Any] = {"part": "tiny", **options}
    (first,) = extract(there, "mini", ["snli-ve"], device=DEVICE, **asked)
    (second,) = extract(here, "mini", ["snli-ve"], device="cpu", compute_dtype="float32", **asked)
    with TokenCache.open(first.path) as one, TokenCache.open(second.path) as other:
        for part in ("images", "texts"):
            mine, theirs = getattr(one, part), getattr(other, part)
            rows = np.arange(200)
            assert _cosines(mine.globals(rows), theirs.globals(rows)).min() > 0.999
        texts = np.arange(200)
        assert _cosines(one.texts.tokens(texts).tokens, other.texts.tokens(texts).tokens).min() > 0.995
        if not options:
            assert _cosines(one.images.tokens(texts), other.images.tokens(texts)).min() > 0.995


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("arm", ["finetune", "mad", "mad-affinity"])
def test_first_losses_are_those_of_the_cpu(place: Workspace, tmp_path: Path, arm: str, task: str) -> None:
    overrides = PHASE if "affinity" in arm else {}
    there, here = (elsewhere(place, _made(tmp_path / name), "data", "cache") for name in ("there", "here"))
    asked = {"task": task, "arm": arm, "shots": "50", "overrides": overrides}
    expected = losses(train(here, "fp32", cpu=True, **asked))
    found = losses(train(there, "fp32", **asked))
    assert found == pytest.approx(expected, rel=0.02)
    assert found[0] == pytest.approx(expected[0], rel=2e-3)
    if GPU:
        halves = losses(train(there, "bf16", **asked))
        assert halves == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("task", TASKS)
def test_answers_are_those_of_the_cpu(place: Workspace, tmp_path: Path, task: str) -> None:
    workspace = elsewhere(place, tmp_path, "data", "cache")
    run = train(workspace, "fp32", task=task, arm="finetune", shots="50", overrides={"optim.learning_rate": 1e-3})
    data = open_task(workspace, task, part="tiny")
    asked = (run.path / "student", data.examples("test"), data.regions(), data.spec)
    here = StudentScorer("cpu", "fp32")(*asked)
    for precision in ("fp32", "bf16") if GPU else ("fp32",):
        there = StudentScorer(DEVICE, precision)(*asked)
        near = 1e-3 if precision == "fp32" else 0.1
        for one, other in zip(there, here, strict=True):
            assert one["id"] == other["id"]
            if task != "vqa":  # whose rows hold the best answers alone
                assert one["logits"] == pytest.approx(other["logits"], abs=near, rel=near)
        same = [one["prediction"] == other["prediction"] for one, other in zip(there, here, strict=True)]
        assert np.mean(same) > (0.999 if precision == "fp32" else 0.97)


@pytest.mark.parametrize("what", ["lora", "all"])
def test_an_adaptation_there(place: Workspace, tmp_path: Path, what: str) -> None:
    workspace = elsewhere(place, tmp_path, "data")
    overrides = {"train": what, "optim.steps": 4, "optim.batch_size": 8, "eval.every": 2, "eval.limit": 16}
    made = adapt(workspace, teacher="mini", task="snli-ve", shots="50", overrides=overrides, device=DEVICE, part="tiny")
    rows = [row["loss"] for row in read_jsonl(made.path / "metrics.jsonl") if "loss" in row]
    assert len(rows) == 4
    assert all(math.isfinite(loss) for loss in rows)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _cosines(one: Any, other: Any) -> Any:
    a, b = (np.asarray(values, dtype=np.float32).reshape(-1, np.shape(values)[-1]) for values in (one, other))
    return (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-6)
