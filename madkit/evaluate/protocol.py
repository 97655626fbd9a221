"""Protocols: which part of the grid tasks x shots x arms x seeds x suites a table shows, and against what.

A protocol is a small YAML file. Four are shipped (`names`); a path to one's own works everywhere a name does.
"""

from __future__ import annotations

from collections.abc import Collection
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from madkit.core.config import StrictModel, load_config
from madkit.core.errors import ConfigError, NotFoundError, UsageProblem
from madkit.core.registry import suggest


def _as_texts(value: object) -> object:
    """Let YAML numbers stand for names: `shots: [200]` means the shots "200"."""
    return [str(item) for item in value] if isinstance(value, list) else value


Names = Annotated[Literal["any"] | tuple[str, ...], BeforeValidator(_as_texts)]
Seeds = Literal["any"] | tuple[int, ...]


class Protocol(StrictModel):
    """A part of the grid. "any" stands for whatever the workspace holds; a list also says what ought to be there."""

    about: str = ""
    tasks: Names = "any"
    students: Names = "any"
    shots: Names = "any"
    arms: Names = "any"
    seeds: Seeds = "any"
    suites: Names = "any"
    baseline: str = Field("finetune", description="the arm that differences are taken to")
    resamples: int = Field(2000, ge=100, description="draws of the bootstrap and of the permutation test")
    set: dict[str, Any] = Field(
        default_factory=dict,
        description="settings of runs that --train-missing trains and that have no other run of their arm to follow",
    )

    @field_validator("tasks", "students", "shots", "arms", "seeds", "suites")
    @classmethod
    def _not_empty(cls, value: object) -> object:
        if value != "any" and not value:
            raise ValueError("the list is empty; leave the key out for everything")
        return value

    def wants(self, *, task: str, student: str, shots: str, arm: str, seed: int, source: str = "") -> bool:
        """Whether a run belongs to the protocol. `tasks` may name tasks ("vqa") and data sets ("vqa-cp-v2")."""
        axes: list[tuple[object, Names | Seeds]] = [
            (student, self.students),
            (shots, self.shots),
            (arm, self.arms),
            (seed, self.seeds),
        ]
        here = self.tasks == "any" or task in self.tasks or source in self.tasks
        return here and all(wanted == "any" or value in wanted for value, wanted in axes)

    def check_tasks(self, known: Collection[str]) -> None:
        """Raise ConfigError, with the nearest name, for a task that is none of the `known` tasks and data sets."""
        for name in self.tasks if self.tasks != "any" else ():
            if name not in known:
                raise ConfigError(
                    f"The protocol asks for {name!r}, but there is no such task or data set.{suggest(name, known)}",
                    hint=f"correct the key 'tasks'; there are {', '.join(known)}",
                )


def names() -> list[str]:
    """The shipped protocols."""
    folder = resources.files("madkit.evaluate") / "protocols"
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def load_protocol(name: str) -> tuple[str, Protocol]:
    """The protocol of that name, or of that YAML file, with the name under which its report is kept.

    Raises UsageProblem with the nearest name, NotFoundError for a file, or ConfigError listing every wrong key.
    """
    path = Path(name)
    if path.suffix in {".yaml", ".yml"} or "/" in name:
        if not path.is_file():
            raise NotFoundError(f"There is no protocol file {name}.", hint=f"use a shipped one: {', '.join(names())}")
        return path.stem, load_config(Protocol, path, {})
    if name not in names():
        raise UsageProblem(
            f"There is no protocol named {name!r}.{suggest(name, names())}",
            hint=f"use one of {', '.join(names())}, or the path of a YAML file",
        )
    with resources.as_file(resources.files("madkit.evaluate") / "protocols" / f"{name}.yaml") as file:
        return name, load_config(Protocol, file, {})
