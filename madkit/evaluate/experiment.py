"""What names an experiment wherever something is told of it: the fields that every row of the results begins with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict


class AboutCondition(TypedDict):
    """The fields of `Condition`, as keyword arguments."""

    task: str
    source: str
    revision: str
    student: str
    shots: str


class AboutExperiment(AboutCondition):
    """The fields of `Experiment`, as keyword arguments."""

    arm: str
    label: str


@dataclass(frozen=True)
class Condition:
    """What arms have in common that can be compared: the data (`source` in one `revision`), student and labels."""

    task: str
    source: str
    revision: str
    student: str
    shots: str


@dataclass(frozen=True)
class Experiment(Condition):
    """One arm under a condition. `label` is the arm, with the settings that set it apart where the workspace holds
    several experiments of one arm.
    """

    arm: str
    label: str
