"""What a sweep is made of: tasks x arms x shots x seeds, and settings that are tried in turn."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from madkit.core.config import StrictModel, load_config
from madkit.core.errors import UsageProblem
from madkit.distill.sweep.worker_process import RunSpec

_SEEDS = re.compile(r"(\d+)(?:-(\d+))?")


def parse_seeds(text: str) -> list[int]:
    """Seeds from "0-4", "0,2,7" or "0-2,9". Raises UsageProblem for anything else."""
    seeds: list[int] = []
    for piece in text.split(","):
        found = _SEEDS.fullmatch(piece.strip())
        if found is None or (found[2] is not None and int(found[2]) < int(found[1])):
            raise UsageProblem(f"'{text}' does not name seeds.", hint="give them as 0-4, or 0,2,7")
        seeds += range(int(found[1]), int(found[2] or found[1]) + 1)
    return list(dict.fromkeys(seeds))


def _names(value: object) -> object:
    return [value] if isinstance(value, (str, int)) else value


def _seeds(value: object) -> object:
    if isinstance(value, str):
        try:
            return parse_seeds(value)
        except UsageProblem as error:
            raise ValueError(f"{error.message} Give them as 0-4, or 0,2,7") from None
    return [value] if isinstance(value, int) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_names)]


class SweepPlan(StrictModel):
    """The runs of a sweep: every combination. A file holds the same keys; a single value may stand for a list."""

    task: Names = Field(min_length=1)
    arm: Names = Field(("mad",), min_length=1, description="names of arms, or YAML files")
    shots: Names = Field(("1pct",), min_length=1)
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_seeds)] = Field((0,), min_length=1)
    student: Names = Field((), description="names or folders; none: mini-uniter on mini data")
    init: str | None = None
    recipe: str | None = None
    teacher: Names = Field((), description="several teach together; none: the only cache")
    set: dict[str, Any] = Field(default_factory=dict, description="settings of every run, by dotted key")
    grid: dict[str, list[Any]] = Field(default_factory=dict, description="settings with the values to try in turn")

    def specs(self) -> list[RunSpec]:
        """The runs, seed by seed: what has been done when a sweep is stopped early can be compared."""
        teacher: str | list[str] | None = list(self.teacher) or None
        if isinstance(teacher, list) and len(teacher) == 1:
            (teacher,) = teacher
        students: Sequence[str | None] = self.student or (None,)
        tried = [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]
        return [
            RunSpec(task, arm, shots, seed, student, teacher, {**self.set, **values}, self.init, self.recipe)
            for seed in dict.fromkeys(self.seeds)
            for task in dict.fromkeys(self.task)
            for shots in dict.fromkeys(self.shots)
            for student in dict.fromkeys(students)
            for values in tried
            for arm in dict.fromkeys(self.arm)
        ]

    def tried(self, spec: RunSpec) -> dict[str, Any]:
        """The values of the grid's settings in one of its runs."""
        return {key: spec.overrides[key] for key in self.grid}


def load_plan(path: Path | None, given: Mapping[str, Any], overrides: Mapping[str, Any]) -> SweepPlan:
    """A plan from a YAML file and what stands on the command line, which goes before the file.

    Args:
        path: the file, or None.
        given: keys of the plan.
        overrides: settings of every run; they go before those of the file, one by one.

    Raises NotFoundError or ConfigError, which lists all mistakes.
    """
    plan = load_config(SweepPlan, path, given)
    grid = {key: values for key, values in plan.grid.items() if key not in overrides}
    return plan.model_copy(update={"set": {**plan.set, **overrides}, "grid": grid})
