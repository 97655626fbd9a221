"""What a sweep is made of: tasks x arms x shots x seeds, and settings that are tried in turn."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PrivateAttr

from madkit.core.config import StrictModel, flat, left_by, load_config
from madkit.core.errors import UsageProblem
from madkit.distill.settings.arms import left_out, load_arm, meant_for
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
    """Names as a list. Whole numbers are names, too: YAML reads `shots: 200` as one."""
    pieces = value if isinstance(value, (list, tuple)) else [value]
    for piece in pieces:
        if isinstance(piece, bool) or not isinstance(piece, (str, int)):
            raise ValueError(f"a name is wanted, or a list of names, and {piece!r} is none")
    return [str(piece) for piece in pieces]


def _seeds(value: object) -> object:
    """Seeds as a list of numbers. Its pieces may be written as `parse_seeds` takes them: ``[0-2, 5]``."""
    seeds: list[int] = []
    for piece in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(piece, bool) or not isinstance(piece, (str, int)):
            raise ValueError(f"{piece!r} does not name seeds. Give them as 0-4, or 0,2,7")
        try:
            seeds += parse_seeds(piece) if isinstance(piece, str) else [piece]
        except UsageProblem as error:
            raise ValueError(f"{error.message} Give them as 0-4, or 0,2,7") from None
    return seeds


def _to_try(values: object) -> object:
    if values == []:
        raise ValueError("the list of values to try is empty; leave the key out, or give it at least one")
    return values


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
    set: dict[str, Any] = Field(
        default_factory=dict, description="settings of every run that has their section, by key"
    )
    grid: dict[str, Annotated[list[Any], BeforeValidator(_to_try)]] = Field(
        default_factory=dict, description="settings with the values to try in turn"
    )
    _before: dict[str, Any] = PrivateAttr(default_factory=dict)  # settings that go before set and grid, as `flat`

    def specs(self) -> list[RunSpec]:
        """The runs, seed by seed: what has been done when a sweep is stopped early can be compared."""
        teacher: str | list[str] | None = list(self.teacher) or None
        if isinstance(teacher, list) and len(teacher) == 1:
            (teacher,) = teacher
        students: Sequence[str | None] = self.student or (None,)
        return [
            RunSpec(task, arm, shots, seed, student, teacher, settings, self.init, self.recipe)
            for seed in dict.fromkeys(self.seeds)
            for task in dict.fromkeys(self.task)
            for shots in dict.fromkeys(self.shots)
            for student in dict.fromkeys(students)
            for arm, settings in self._cells()
        ]

    def _cells(self) -> list[tuple[str, dict[str, Any]]]:
        """Every arm with each of its settings, once: 0.3 and 0.30 are one value, as are all that are not for it."""
        found: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {}
        for shared in self._shared():
            for arm in dict.fromkeys(self.arm):
                settings = meant_for(arm, shared, self.arm)
                told = load_arm(arm, settings).model_dump_json(exclude_unset=True)  # a recipe may lie below it
                found.setdefault((arm, told), (arm, settings))
        return list(found.values())

    def _axes(self) -> list[list[dict[str, Any]]]:
        """The settings that each value of the grid comes to, as `flat`, without those that the command line sets."""
        return [[left_by(flat({key: value}), self._before) for value in values] for key, values in self.grid.items()]

    def _shared(self) -> Iterator[dict[str, Any]]:
        """The settings of every combination, for all arms: `set`, the grid over it, the command line over both."""
        for chosen in itertools.product(*self._axes()):
            settings = flat(self.set)
            for high in (*chosen, self._before):
                settings = {**left_by(settings, high), **high}
            yield settings

    def tried(self, spec: RunSpec) -> dict[str, Any]:
        """The values of the grid's settings in one of its runs, by their whole keys."""
        keys = dict.fromkeys(key for values in self._axes() for settings in values for key in settings)
        return {key: spec.overrides[key] for key in keys if key in spec.overrides}

    def left_out(self) -> dict[str, list[str]]:
        """The settings that are not for all of the arms (`meant_for`), with those that are trained without."""
        return left_out({key: None for settings in self._shared() for key in settings}, self.arm)


def load_plan(path: Path | None, given: Mapping[str, Any], overrides: Mapping[str, Any]) -> SweepPlan:
    """A plan from a YAML file and what stands on the command line, which goes before the file.

    Args:
        path: the file, or None.
        given: keys of the plan.
        overrides: settings of every run; they go before those of the file, one by one, however either spells them.

    Raises NotFoundError or ConfigError, which lists all mistakes.
    """
    plan = load_config(SweepPlan, path, given)
    plan._before = flat(overrides)
    return plan
