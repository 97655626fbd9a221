"""A complete run with a small student of random weights, evaluated on a made-up table."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from madkit.core.files import append_jsonl, read_json, write_json_atomic
from madkit.core.workspace import Workspace
from madkit.evaluate.stage import student_digest
from madkit.students.heads import HeadSpec, TaskHead
from madkit.students.load import save_student
from madkit.students.student import Student, StudentIdentity
from madkit.students.tokenizer import SPECIALS, StudentTokenizer
from madkit.students.uniter import UniterConfig, UniterModel
from madkit.tasks.data import open_task
from madkit.tasks.spec import TASKS

CLASSES = ("neutral", "contradiction", "entailment")  # not the task's own order
OPTIM = {"learning_rate": 1e-4, "schedule": "linear", "warmup": 0.1, "optimizer": "adamw", "batch_size": 32}


class SharedRun:
    """A workspace with data and one run."""

    def __init__(self, base: Path) -> None:
        torch.set_num_threads(1)
        self.workspace = Workspace.at(base / "workspace")
        self.data = open_task(self.workspace, "snli-ve", part="tiny")
        self.path = self.workspace.runs / self.data.source / "tiny-mad-1pct-s1-01234567"
        regions = self.data.regions()
        assert regions is not None
        (base / "vocab.txt").write_text(
            "\n".join([*SPECIALS, "the", "a", "of", "red", "dog", "cat", "on", "is"]) + "\n"
        )
        tokenizer = StudentTokenizer(base / "vocab.txt", lowercase=True)
        config = UniterConfig(
            vocab_size=len(tokenizer), hidden_size=16, layers=2, heads=2, intermediate_size=32, max_positions=64,
            region_dim=regions.dim, tag_gain=1.0,
        )  # fmt: skip
        torch.manual_seed(1)
        head = TaskHead(16, HeadSpec("classification", CLASSES))
        student = Student(UniterModel(config), head, tokenizer, StudentIdentity("tiny", "uniter", "-"))
        with torch.no_grad():  # so that answers differ from question to question
            for parameter in student.head.parameters():
                parameter.mul_(20)
        save_student(student, self.path / "student")
        write_json_atomic(self.path / "student" / "labels.json", list(CLASSES))
        write_json_atomic(self.path / "manifest.json", self.manifest())

    def manifest(self, **other: Any) -> dict[str, Any]:
        return {
            "schema": 1, "kind": "run", "task": "snli-ve", "source": self.data.source, "is_mini": True,
            "data_revision": self.data.revision, "student": "tiny", "student_digest": "00ff", "arm": "mad",
            "shots": "1pct", "seed": 1, "teacher": "mini", "cache_key": "mini-mini-snli-ve-0123456789ab",
            "examples": "aa", "regions": None, "spec": TASKS["snli-ve"].to_dict(), "digest": "bb",
            "config": {"arm": "mad", "description": "chosen | tokens", "optim": OPTIM, "mad": {"tokens": "adaptive"},
                       "answers": "/home/somebody/answers.txt", "precision": "fp32"},
            "environment": {"madkit": "0.1.0", "torch": "2.15.0", "platform": "Linux-of-somebody", "cpus": 2},
            "status": "complete", "steps": 400, "kept_step": 400, "examples_labelled": 20, "questions_labelled": 20,
            "seconds": 12.5, "device": "cpu", "processes": 1, **other,
        }  # fmt: skip

    def score(self, suite: str = "test", percent: float = 41.25, **other: Any) -> None:
        append_jsonl(
            self.path / "results.jsonl",
            {
                "schema": 1, "suite": suite, "metrics": {"accuracy": percent, "accuracy (neutral)": 1.0},
                "n_examples": 2000, "student_digest": student_digest(self.path), "metric_version": 2, **other,
            },
        )  # fmt: skip


@pytest.fixture(scope="session")
def one_run(tmp_path_factory: pytest.TempPathFactory) -> SharedRun:
    return SharedRun(tmp_path_factory.mktemp("share"))


@pytest.fixture
def run(one_run: SharedRun) -> Iterator[SharedRun]:
    """The run, put back as it was afterwards."""
    kept = {path: path.read_bytes() for path in one_run.path.rglob("*") if path.is_file()}
    yield one_run
    shutil.rmtree(one_run.path)
    shutil.rmtree(one_run.workspace.reports, ignore_errors=True)
    shutil.rmtree(one_run.workspace.root / "students", ignore_errors=True)
    for path, content in kept.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def write_results(run: SharedRun, scores: dict[int, float], *, name: str = "full", **other: Any) -> None:
    """A report of an evaluation with one row, that of the run's experiment."""
    seeds = sorted(scores)
    row = {
        "task": "snli-ve", "source": run.data.source, "revision": run.data.revision, "is_mini": True,
        "student": "tiny", "teacher": "mini", "arm": "mad", "label": "mad", "shots": "1pct", "suite": "test",
        "metric": "accuracy", "headline": True, "chance": 33.3, "mean": sum(scores.values()) / len(seeds),
        "low": 39.0, "high": 43.5, "n_seeds": len(seeds), "n_examples": 2000, "n_images": 1000, "seeds": seeds,
        "per_seed": [scores[seed] for seed in seeds], "difference": None, **other,
    }  # fmt: skip
    from madkit.evaluate.results import Results

    document = Results(protocol="full", settings={}, rows=(), sources=()).document()
    document["rows"] = [row]
    write_json_atomic(run.workspace.reports / name / "results.json", document)


def manifest_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(folder / "manifest.json")
    return found


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
