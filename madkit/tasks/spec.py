"""The tasks that madkit knows, and what is fixed about each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from madkit.core.errors import DataError, UsageProblem
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

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values, for manifests."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> TaskSpec:
        """The spec that `to_dict` wrote. Raises DataError where fields are missing, unknown or of another type."""
        lists = ("metrics", "labels", "subtasks")
        values: dict[str, Any] = {key: tuple(value) if key in lists else value for key, value in fields.items()}
        try:
            spec = cls(**values)
        except TypeError as error:
            raise DataError(f"A task's description in a manifest is damaged ({error}).") from None
        if spec.kind not in get_args(TaskKind):
            raise DataError(f"A manifest describes a task of the unknown kind {spec.kind!r}.")
        return spec


def custom_spec(name: str, kind: TaskKind, *, labels: tuple[str, ...] = (), n_candidates: int = 0) -> TaskSpec:
    """The spec of a user's own task: accuracy is its metric, and its chance follows from the number of choices."""
    choices = n_candidates if kind == "multiple-choice" else len(labels)
    return TaskSpec(
        name=name,
        title=name,
        kind=kind,
        metric="accuracy",
        metrics=("accuracy",),
        labels=labels,
        n_candidates=n_candidates,
        chance=100 / choices if choices else None,
    )


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
