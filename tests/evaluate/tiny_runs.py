"""A run folder whose student is small and has random weights, on a tiny part of the embedded benchmark."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from madkit.core.workspace import Workspace
from madkit.students.heads import HeadSpec, TaskHead
from madkit.students.load import save_student
from madkit.students.student import Student, StudentIdentity
from madkit.students.tokenizer import SPECIALS, StudentTokenizer
from madkit.students.uniter import UniterConfig, UniterModel
from madkit.tasks.data import TaskData, open_task

HEADS = {
    "vcr": HeadSpec("multiple-choice"),
    "snli-ve": HeadSpec("classification", ("neutral", "contradiction", "entailment")),  # not the task's own order
    "vqa": HeadSpec("vqa", ("yes", "no", "red", "2")),
}


@dataclass(frozen=True)
class TinyRun:
    """A workspace with one complete run."""

    workspace: Workspace
    data: TaskData
    run: Path
    task: str


def make_tiny_run(base: Path, task: str) -> TinyRun:
    torch.set_num_threads(1)
    workspace = Workspace.at(base / "workspace")
    data = open_task(workspace, task, part="tiny")
    run = workspace.runs / data.source / "tiny-finetune-1pct-s0-01234567"
    examples = data.examples("test")[:24]
    words = sorted(
        {word for one in examples for text in one.texts() for word in re.findall(r"\w+|[^\w\s]", text.lower())}
    )
    (base / "vocab.txt").write_text("\n".join([*SPECIALS, *words]) + "\n")
    tokenizer = StudentTokenizer(base / "vocab.txt", lowercase=True)
    regions = data.regions()
    assert regions is not None
    config = UniterConfig(
        vocab_size=len(tokenizer), hidden_size=16, layers=2, heads=2, intermediate_size=32, max_positions=64,
        region_dim=regions.dim, tag_gain=1.0,
    )  # fmt: skip
    torch.manual_seed(1)
    student = Student(UniterModel(config), TaskHead(16, HEADS[task]), tokenizer, StudentIdentity("tiny", "uniter", "-"))
    with torch.no_grad():  # so that answers differ from question to question
        for parameter in student.head.parameters():
            parameter.mul_(20)
    save_student(student, run / "student")
    manifest = {
        "schema": 1,
        "kind": "run",
        "task": data.spec.name,
        "source": data.source,
        "data_revision": data.revision,
        "is_mini": data.is_mini,
        "student": "tiny",
        "arm": "finetune",
        "shots": "1pct",
        "seed": 0,
        "teacher": None,
        "config": {"arm": "finetune"},
        "status": "complete",
    }
    (run / "manifest.json").write_text(json.dumps(manifest))
    return TinyRun(workspace, data, run, task)
