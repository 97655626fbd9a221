"""Runs on a GPU that is not there: every tensor of a step is on it, and no step waits for a value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from madkit.core.files import read_jsonl
from madkit.distill import stage
from madkit.distill.batches import page_locked, region_features
from madkit.distill.loop.loop import make_accelerator
from madkit.distill.loop.training_state import TrainingState
from madkit.distill.pool import pre_phase
from madkit.students.load import load_student, save_student
from madkit.students.student import Student
from tests.pretended_training import cuda_accelerator, training_on_pretended_cuda

torch.set_num_threads(1)
SETTING_UP = {
    "madkit/distill/teacher/choices.py _Best.fill",  # the teacher's choices, made once
    "madkit/mad/targets.py TeacherTargets.to",  # the cosines that an absolute affinity is set by
}
LOOKING = {
    "madkit/distill/loop/journal.py together",  # every sixteen steps, and after the last
    "madkit/distill/loop/development.py Development.predict",  # the answers to held-out questions
    "madkit/distill/pool/pre_phase.py _train.<locals>.look",
}
BRIEF = {"pre_phase.steps": 2, "pre_phase.batch_size": 8, "pre_phase.eval_every": 1}


def train(
    monkeypatch: pytest.MonkeyPatch, workspace: Any, student: Path | str, precision: str = "bf16", **asked: Any
) -> tuple[list[dict[str, Any]], set[str]]:
    """The journal of two steps, and who has read from the GPU."""

    def start(of: Student, folder: Path, *, with_head: bool = False) -> None:
        """Of a pre-phase: weights that are nowhere cannot be written."""
        save_student(load_student(student, head=of.head_spec), folder, with_head=with_head)

    reads: set[str] = set()
    monkeypatch.setattr(stage, "make_accelerator", lambda _: cuda_accelerator(precision))
    monkeypatch.setattr(TrainingState, "save", lambda self: None)
    monkeypatch.setattr(TrainingState, "_write_best", lambda self: None)
    monkeypatch.setattr(TrainingState, "finish", lambda self: self.result)
    monkeypatch.setattr(pre_phase, "save_student", start)
    monkeypatch.setattr(Student, "cpu", lambda self: self)
    monkeypatch.setattr(stage._Run, "_export", lambda *_: {})
    overrides = {"optim.steps": 2, "optim.batch_size": 4, "eval.limit": 8, **asked.pop("overrides", {})}
    with training_on_pretended_cuda(reads):
        result = stage.distill(
            workspace, student=student, seed=1, config_overrides=overrides, threads=1, **{"shots": "10pct", **asked}
        )
    return [row for row in read_jsonl(result.path / "metrics.jsonl") if "loss" in row], reads


@pytest.mark.parametrize(
    ("arm", "overrides"),
    [
        ("mad", {}),
        ("affinity-absolute", BRIEF),
        pytest.param("mad", {"optim.micro_tokens": 100, "teacher_bank": "stream"}, marks=pytest.mark.slow),
        pytest.param("mad", {"adversarial.steps": 2}, marks=pytest.mark.slow),
        pytest.param("mad", {"pool.weight": 1.0}, marks=pytest.mark.slow),
        pytest.param("mad-affinity", BRIEF, marks=pytest.mark.slow),
        pytest.param("soft-labels", BRIEF, marks=pytest.mark.slow),
    ],
)
def test_steps_there(
    monkeypatch: pytest.MonkeyPatch, workspace: Any, student: Path, arm: str, overrides: dict[str, Any]
) -> None:
    """In bfloat16, where autocast refuses what would be inexact; region features come from page-locked memory."""
    locked: list[Any] = []
    gathered = region_features.gathered

    def watched(table: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        locked.append(page_locked._FOR_A_GPU.get())
        return gathered(table, places)

    monkeypatch.setattr(region_features, "gathered", watched)
    rows, reads = train(monkeypatch, workspace, student, task="vcr", arm=arm, overrides=overrides)
    assert len(rows) == 2
    assert reads <= SETTING_UP | LOOKING
    assert any(locked), "all but those of a step that nobody announced: the first, and of held-out data"
    assert not all(locked)
    assert make_accelerator("fp32").device.type == "cpu"  # nothing of it stays for what comes after


@pytest.mark.slow
@pytest.mark.parametrize("name", ["villa", "vl-bert", "visualbert", "lxmert", "vilt", "clip-vil"])
def test_every_student_there(monkeypatch: pytest.MonkeyPatch, workspace: Any, name: str) -> None:
    rows, reads = train(monkeypatch, workspace, f"mini-{name}", task="vcr", arm="mad", init="random")
    assert len(rows) == 2
    assert reads <= SETTING_UP | LOOKING
