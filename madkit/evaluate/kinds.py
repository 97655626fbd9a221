"""Kinds of questions that no benchmark names, read from the examples: what the error breakdowns are by.

Multiple choice about an image with boxes (VCR, and tasks of one's own) has two: how many boxes the image has, which is
how many answers to "who" there are, and whether the right choice names one of them, which takes more than language.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from madkit.tasks.example import Example
    from madkit.tasks.spec import TaskSpec

# by -> metric -> question -> kind
Kinds = Mapping[str, Mapping[str, Mapping[str, str]]]

BOXES, NAMES = "number of boxes", "right choice"
_BINS = ((0, "0"), (2, "1-2"), (4, "3-4"), (8, "5-8"))


def name_of_forms(source: str, suite: str) -> str:
    """What the kinds are that a benchmark's own files name: GD-VCR tells regions of the world, others types."""
    return "region" if source == "gd-vcr" or suite.startswith("test-gd-vcr") else "question type"


def kinds_of(spec: TaskSpec, examples: Iterable[Example]) -> Kinds:
    """The kinds of a suite's questions, for each metric of the task; empty for tasks without choices or boxes.

    Of tasks in two halves (VCR) the joint metric goes by the answer's half.
    """
    found: dict[str, dict[str, dict[str, str]]] = {BOXES: {}, NAMES: {}}
    if spec.kind != "multiple-choice":
        return {}
    for example in examples:
        if not example.boxes:
            continue
        for metric in _metrics(spec, example.subtask):
            found[BOXES].setdefault(metric, {})[example.question_id] = _bin(len(example.boxes))
            if example.label is not None:
                named = any(tag.boxes for tag in example.candidates[example.label].tags)
                kind = "names a box" if named else "names none"
                found[NAMES].setdefault(metric, {})[example.question_id] = kind
    return {by: metrics for by, metrics in found.items() if metrics}


def _metrics(spec: TaskSpec, subtask: str) -> tuple[str, ...]:
    if not spec.subtasks:
        return spec.metrics
    first, second = spec.subtasks
    return {first: ("Q->A", "Q->AR"), second: ("QA->R",)}.get(subtask, ())


def _bin(count: int) -> str:
    return next((name for most, name in _BINS if count <= most), "9 or more")
