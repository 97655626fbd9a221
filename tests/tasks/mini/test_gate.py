"""The gate of the design: few labels teach something, all labels teach much more (plain fine-tuning, no teacher)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from madkit.core.files import digest_of, read_jsonl
from madkit.core.workspace import Workspace
from madkit.distill.stage import distill
from madkit.tasks.mini import build
from madkit.tasks.mini.plan import DESIGN, SplitPlan, splits_of

FIGURES = Path(__file__).parents[3] / "docs" / "data" / "mini-gate.jsonl"
ABOVE_CHANCE, BELOW_FULL = 6.0, 15.0
TASKS = ("snli-ve", "vqa", "vcr")


def rows(task: str, shots: str) -> list[Mapping[str, Any]]:
    return [row for row in read_jsonl(FIGURES) if row["task"] == task and row["shots"] == shots]


def mean(found: list[Mapping[str, Any]]) -> float:
    return sum(row["dev"][row["metric"]] for row in found) / len(found)


@pytest.mark.parametrize("task", TASKS)
def test_the_figures_are_of_this_design(task: str) -> None:
    plans = [{name: getattr(p, name) for name in SplitPlan.__dataclass_fields__} for p in splits_of(task, "full")]
    revision = digest_of({"design": DESIGN, "task": task, "part": "full", "plans": plans})
    assert {row["revision"] for row in [*rows(task, "1pct"), *rows(task, "full")]} == {revision}


@pytest.mark.parametrize("task", TASKS)
def test_one_percent_is_above_chance_and_below_all_labels(task: str) -> None:
    few, full = rows(task, "1pct"), rows(task, "full")
    assert len(few) >= 2
    assert mean(few) > few[0]["chance"] + ABOVE_CHANCE
    assert mean(full) > mean(few) + BELOW_FULL


def test_few_labels_still_teach_today(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cheapest of the recorded runs, with today's code: 200 labels of mini-SNLI-VE.

    Drawn are one chunk to choose them from and the demo's development split: nobody looks at more here.
    """
    plans = [replace(plan, questions=500) for plan in splits_of("snli-ve", "demo") if plan.name in ("train", "dev")]
    monkeypatch.setattr(build, "splits_of", lambda task, part: plans)
    outcome = distill(
        Workspace.at(tmp_path), task="snli-ve", shots="200", arm="finetune", threads=1, part="demo",
        config_overrides={"optim.steps": 250},
    )  # fmt: skip
    assert outcome.dev["accuracy"] > 100 / 3 + ABOVE_CHANCE, json.dumps(outcome.dev)
