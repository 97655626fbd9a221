"""Runs whose global embeddings go into a token of their own: what it is at first, and what is left of it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from safetensors import safe_open

from madkit.core.files import read_jsonl
from madkit.distill.stage import distill

torch.set_num_threads(1)
QUICK: dict[str, Any] = {
    "optim.steps": 3, "optim.batch_size": 4, "eval.limit": 8, "confidence.folds": 2, "optim.dropout": 0.0,
}  # fmt: skip
PHASE = {"pre_phase.steps": 2, "pre_phase.batch_size": 8, "pre_phase.eval_every": 1}


def train(workspace, student, *, arm="mad", task="snli-ve", teacher=None, **settings):
    return distill(
        workspace, task=task, shots="10pct", arm=arm, student=student, seed=1, threads=1, teacher=teacher,
        config_overrides={**QUICK, **settings}, part="auto",
    )  # fmt: skip


def losses(result) -> list[dict[str, Any]]:
    return [row for row in read_jsonl(result.path / "metrics.jsonl") if "loss" in row]


@pytest.mark.parametrize("task", ["snli-ve", "vcr", "vqa"])
def test_it_begins_as_cls_and_goes_its_own_way(workspace, student, task):
    token = train(workspace, student, task=task, **{"mad.global_source": "token"})
    plain = train(workspace, student, task=task)
    ours, theirs = losses(token), losses(plain)
    assert set(ours[0]["terms"]) == set(theirs[0]["terms"])
    for name, value in theirs[0]["terms"].items():  # without dropout the first step sees the same student
        assert ours[0]["terms"][name] == pytest.approx(value, abs=1e-5), name
    assert ours[-1]["terms"]["global_text"] != theirs[-1]["terms"]["global_text"]
    with safe_open(token.path / "student" / "model.safetensors", "pt") as file:
        kept = set(file.keys())
    with safe_open(plain.path / "student" / "model.safetensors", "pt") as file:
        assert kept == set(file.keys())


@pytest.mark.parametrize(
    "settings",
    [
        {"optim.micro_tokens": 60},
        {"pool.weight": 1.0, "mad.weighting": "uniform"},
        {"adversarial.steps": 2},
        {"optim.ema": 0.9},
        {"mad.affinity_weight": 0.5, "mad.layer": [0, 2], "mad.head": "mlp"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_with_everything_else(workspace, student, settings):
    result = train(workspace, student, **{"mad.global_source": "token", **settings})
    rows = losses(result)
    assert len(rows) == 3
    assert all(math.isfinite(row["loss"]) for row in rows)


def test_before_the_labels(workspace, student):
    objective = {"weight": 1.0, "affinity_weight": 0.0, "weighting": "uniform", "global_source": "token"}
    settings = {f"pre_phase.objective.{name}": value for name, value in objective.items()}
    result = train(workspace, student, arm="affinity", **PHASE, **settings)
    rows = losses(result)
    phase = [
        row for row in read_jsonl(result.path.parent / result.manifest["pre_phase"] / "metrics.jsonl") if "loss" in row
    ]
    assert len(rows) == 3
    assert {"global_image", "global_text"} <= set(phase[0]["terms"])
