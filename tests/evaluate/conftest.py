"""A made-up workspace: runs whose answers are drawn by a rule, so that every figure has a known cause."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from madkit.core.seeds import derive_seed
from madkit.core.workspace import Workspace
from madkit.evaluate import stage
from madkit.evaluate.metrics import prediction_row
from madkit.tasks.example import Example, ImageRef, Segment
from madkit.tasks.spec import TaskSpec, get_task


def make_examples(spec: TaskSpec, suite: str, n: int = 60, per_image: int = 2) -> list[Example]:
    task = spec.name
    random = np.random.default_rng(derive_seed(task, suite))
    examples = []
    for index in range(n):
        image = ImageRef(f"{suite}-{index // per_image}", Path("none.png"))
        common: dict[str, Any] = {"task": task, "image": image, "context": (Segment("What is it?"),)}
        unit = f"{suite}-{index}"
        if spec.kind == "multiple-choice":
            for subtask in spec.subtasks or ("",):
                label = int(random.integers(4))
                choices = tuple(Segment(f"{subtask} {choice}") for choice in range(4))
                examples.append(
                    Example(
                        f"{unit}/{subtask}".rstrip("/"),
                        question_id=unit,
                        candidates=choices,
                        label=label,
                        subtask=subtask,
                        **common,
                    )
                )
        elif spec.kind == "classification":
            examples.append(Example(unit, question_id=unit, label=int(random.integers(3)), **common))
        else:
            kind = "yes/no" if index % 2 else "other"
            # by the older rule "a red" is no match: it takes punctuation off the annotators' answers, not articles
            given = ("a red",) * 9 + ("green",) if index % 3 else ("red",) * 10
            examples.append(
                Example(
                    unit,
                    question_id=unit,
                    answers={"red": 1.0},
                    annotations=given,
                    answer_type=kind,
                    form="what is" if index % 3 else "is the",
                    **common,
                )
            )
    return examples


@dataclass
class MadeUpData:
    """Stands in for TaskData."""

    task: str
    source: str
    revision: str
    n: int = 60
    names: tuple[str, ...] = ("test", "test-rendering")
    read: list[str] = field(default_factory=list)
    manifest: dict[str, Any] = field(default_factory=dict)
    suite_revisions: dict[str, str] = field(default_factory=dict)
    own_spec: TaskSpec | None = None
    region_digests: dict[str | None, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.source

    @property
    def spec(self) -> TaskSpec:
        return self.own_spec or get_task(self.task)

    def suite_revision(self, suite: str) -> str:
        return self.suite_revisions.get(suite, self.revision)

    def suites(self) -> list[str]:
        return list(self.names)

    def splits(self) -> list[str]:
        return ["train", "dev", "test"]

    def submissions(self) -> list[str]:
        return []

    def examples(self, suite: str) -> list[Example]:
        self.read.append(suite)
        return make_examples(self.spec, suite, self.n)

    def regions(self, suite: str | None = None) -> None:
        return None

    def region_digest(self, suite: str | None = None) -> str | None:
        return self.region_digests.get(suite)


class MadeUpWorkspace:
    """Runs, data and a scorer that is right with a chance that depends on the arm, the suite and the seed."""

    def __init__(self, root: Path) -> None:
        self.workspace = Workspace.at(root)
        self.data: dict[tuple[str, str], MadeUpData] = {}
        self.scored: list[tuple[str, str]] = []
        self.broken: set[str] = set()
        self.skill = {"finetune": 0.5, "mad": 0.5, "affinity": 0.65}

    def add_data(self, task: str, source: str, revision: str = "aaaa000011112222", **other: Any) -> MadeUpData:
        made = MadeUpData(task, source, revision, **other)
        self.data[source, revision] = made
        return made

    def add_run(self, arm: str = "finetune", seed: int = 0, **other: Any) -> Path:
        values: dict[str, Any] = {
            "schema": 1,
            "task": "snli-ve",
            "source": "mini-snli-ve",
            "data_revision": "aaaa000011112222",
            "is_mini": True,
            "student": "mini-uniter",
            "arm": arm,
            "shots": "1pct",
            "seed": seed,
            "teacher": None if arm == "finetune" else "mini",
            "config": {"arm": arm, "optim": {"learning_rate": 1e-4}},
            "status": "complete",
            **other,
        }
        name = f"{values['student']}-{arm}-{values['shots']}-s{seed}-{other.get('tag', '00000000')}"
        values.pop("tag", None)
        folder = self.workspace.runs / values["source"] / name
        (folder / "student").mkdir(parents=True)
        (folder / "student" / "config.json").write_text(
            json.dumps({"made up": name, "skill": self.skill.get(arm, 0.5)})
        )
        (folder / "manifest.json").write_text(json.dumps(values))
        return folder

    def find(self, workspace: Workspace, run: Any) -> MadeUpData | None:
        return self.data.get(run.table)

    def scorer(self, student: Path, examples: Any, regions: Any, spec: Any) -> list[dict[str, Any]]:
        about = json.loads((student / "config.json").read_text())
        suite = examples[0].id.rsplit("-", 1)[0]
        self.scored.append((student.parent.name, suite))
        if student.parent.name in self.broken:
            return [prediction_row(example, [float("nan")] * 3, 0) for example in examples]
        random = np.random.default_rng(derive_seed(about["made up"], suite))
        skill = about["skill"] + random.normal(0, 0.01) - (0.1 if suite != "test" else 0)
        rows = []
        for example in examples:
            right = random.random() < skill
            if example.answers is not None:
                rows.append(prediction_row(example, [0.5], "red" if right else "blue"))
                continue
            classes = len(example.candidates) or 3
            label = example.label or 0
            chosen = label if right else (label + 1) % classes
            rows.append(prediction_row(example, np.eye(classes)[chosen].tolist(), chosen))
        return rows

    def evaluate(self, protocol: str = "full", **options: Any) -> Any:
        return stage.evaluate(self.workspace, protocol, scorer=self.scorer, **options)


@pytest.fixture(scope="session")
def shared_results(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Results of three arms, three seeds, two suites and two numbers of labels: mad is finetune, affinity is better."""
    with pytest.MonkeyPatch.context() as patch:
        made = MadeUpWorkspace(tmp_path_factory.mktemp("made-up") / "workspace")
        patch.setattr(stage, "find_data", made.find)
        made.add_data("snli-ve", "mini-snli-ve", n=120)
        made.skill |= {"mad": 0.5, "affinity": 0.9}
        for shots in ("1pct", "full"):
            for arm in ("finetune", "mad", "affinity"):
                for seed in range(3):
                    made.add_run(arm, seed, shots=shots)
        return made.evaluate()


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MadeUpWorkspace:
    made = MadeUpWorkspace(tmp_path / "workspace")
    monkeypatch.setattr(stage, "find_data", made.find)
    return made


@pytest.fixture(scope="session", params=["snli-ve", "vcr", "vqa"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of each task on a tiny part of the embedded benchmark; its student has random weights."""
    from .tiny_runs import make_tiny_run  # torch: not for the tests without a student

    return make_tiny_run(tmp_path_factory.mktemp("tiny"), request.param)
