"""Adaptation on a GPU that is not there: every tensor of a step is on it, and what it is waited for is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from madkit.adapt import stage
from madkit.core.files import read_jsonl
from tests.pretended_training import cuda_accelerator, training_on_pretended_cuda

torch.set_num_threads(1)
QUICK = {"optim.batch_size": 8, "optim.steps": 4, "eval.every": 2, "checkpoint_every": 2}


WAITING = {
    "madkit/adapt/loop.py Training._step",  # the loss of a step, which is written down
    "madkit/adapt/objective.py contrast",  # which items have something to decide
    "madkit/adapt/objective.py _cross_entropy",
    "madkit/adapt/trained_pair.py TrainedPair.scale",
    "madkit/adapt/development.py match",
    "madkit/adapt/checkpoint.py write_tensors",
}


@pytest.mark.parametrize(
    ("what", "precision"),
    [
        ("lora", "bf16"),
        pytest.param("all", "bf16", marks=pytest.mark.slow),
        pytest.param("heads", "bf16", marks=pytest.mark.slow),
        pytest.param("all", "fp32", marks=pytest.mark.slow),
    ],
)
def test_steps_there(
    workspace: Any, tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch, what: str, precision: str
) -> None:
    reads: set[str] = set()
    monkeypatch.setattr(stage, "_accelerator", lambda *_: cuda_accelerator(precision))
    with training_on_pretended_cuda(reads):
        result = stage.adapt(
            workspace, teacher=f"local:{tiny_teacher}", task="snli-ve", shots="full",
            overrides={**QUICK, "train": what},
        )  # fmt: skip
    rows = [row for row in read_jsonl(result.path / "metrics.jsonl") if "loss" in row]
    assert len(rows) == 4
    assert reads == WAITING
    assert result.manifest["steps"] == 4
