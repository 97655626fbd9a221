"""What a domain shift is, what it may be told, and what it makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from madkit.core.workspace import Workspace
    from madkit.tasks.data import TaskData


@dataclass(frozen=True, slots=True)
class ShiftOptions:
    """What a user may choose about a shift.

    Attributes:
        seed: of everything that is drawn, and of the small model where one is trained.
        device: "auto" (a GPU when there is one), "cpu", "cuda", "cuda:1", ...
        threads: compute threads on a CPU; 0 leaves the shift's choice.
        limit: how many questions of the training split the small model sees, 0 for all.
        epochs: passes over them; None takes the shift's own number.
        only_wrong: mask the wrong choices alone (masked suites).
        snli: SNLI's own files (a folder or a zip), for the overlap list.
    """

    seed: int = 0
    device: str = "auto"
    threads: int = 0
    limit: int = 0
    epochs: int | None = None
    only_wrong: bool = False
    snli: Path | None = None


@dataclass(frozen=True, slots=True)
class Made:
    """One thing that a shift has made: a test suite, a dataset of its own, or a list of ids.

    `counts` says how many of what are in it, in the words that a user should read.
    """

    kind: Literal["suite", "dataset", "list"]
    name: str
    path: Path
    counts: Mapping[str, int] = field(default_factory=dict)


Builder = Callable[["Workspace", "TaskData", ShiftOptions], list[Made]]


@dataclass(frozen=True, slots=True)
class Shift:
    """One entry of the list of shifts.

    Attributes:
        name: what `madkit data suite TASK NAME` takes.
        task: the task whose data it needs ("vcr", "snli-ve").
        about: one line for people.
        target: "module:function" of its builder.
        trains: whether it trains a small model (minutes instead of seconds).
    """

    name: str
    task: str
    about: str
    target: str
    trains: bool = False
