"""The tasks that madkit knows, and what is fixed about each of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from madkit.core.errors import UsageProblem
from madkit.core.registry import suggest

TaskKind = Literal["multiple-choice", "classification", "vqa"]


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """What is fixed about a task: its shape, its labels and its headline metric.

    `labels` names the classes in the order of the label indices (classification only). `metric` is the headline,
    `metrics` holds everything reported, headline first. `n_candidates` is the number of choices of one question, 0
    where a task has none. `chance` is the headline metric of uniform guessing in percent (None: no closed form).
    `subtasks` are the values that `Example.subtask` takes.
    """

    name: str
    title: str
    kind: TaskKind
    metric: str
    metrics: tuple[str, ...]
    labels: tuple[str, ...] = ()
    n_candidates: int = 0
    chance: float | None = None
    subtasks: tuple[str, ...] = ()


# Label names are stored with every artefact: code bases order the three classes differently.
SNLI_VE_LABELS: tuple[str, ...] = ("contradiction", "entailment", "neutral")

TASKS: dict[str, TaskSpec] = {
    spec.name: spec
    for spec in (
        TaskSpec(
            name="vcr",
            title="Visual Commonsense Reasoning",
            kind="multiple-choice",
            metric="Q->AR",
            metrics=("Q->AR", "Q->A", "QA->R"),
            n_candidates=4,
            chance=6.25,
            subtasks=("answer", "rationale"),
        ),
        TaskSpec(
            name="snli-ve",
            title="Visual Entailment (SNLI-VE)",
            kind="classification",
            metric="accuracy",
            metrics=("accuracy",),
            labels=SNLI_VE_LABELS,
            chance=100 / 3,
        ),
        TaskSpec(
            name="vqa",
            title="Visual Question Answering (VQA v2)",
            kind="vqa",
            metric="accuracy",
            metrics=("accuracy",),
        ),
    )
}


def get_task(name: str) -> TaskSpec:
    """The task of that name. Raises UsageProblem, with the nearest name, for one that does not exist."""
    try:
        return TASKS[name]
    except KeyError:
        raise UsageProblem(
            f"There is no task named {name!r}.{suggest(name, TASKS)}",
            hint=f"use one of: {', '.join(TASKS)}",
        ) from None
