"""Runs that a grid lacks, as work for a sweep: with the settings of the runs that stand beside them.

A run keeps its settings resolved: what was left open when it was started is filled in. A run for another seed or
another number of labels needs them open again, where they were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pydantic
import yaml

from madkit.core.errors import MadkitError, RunError
from madkit.core.files import read_json, write_text_atomic
from madkit.distill.runs.folder import MANIFEST
from madkit.distill.settings.arms import PERMUTED, arm_names, left_out, load_arm, meant_for
from madkit.distill.settings.config import DistillConfig, resolve
from madkit.distill.sweep.worker_process import RunSpec


class Like(Protocol):
    """A complete run, by its folder."""

    @property
    def path(self) -> Path:
        """The folder."""


class Cell(Protocol):
    """What is to be trained; `like` are runs whose settings it shall have, none for the arm's own."""

    @property
    def task(self) -> str:
        """As `--task` takes it."""

    @property
    def student(self) -> str | None:
        """Name or folder."""

    @property
    def shots(self) -> str | None:
        """Number of labels."""

    @property
    def arm(self) -> str | None:
        """Name of the arm."""

    @property
    def seed(self) -> int | None:
        """Of the run."""

    @property
    def teacher(self) -> str | None:
        """Whose cache to read, where the arm reads one."""

    @property
    def like(self) -> Sequence[Like]:
        """Runs of one experiment."""

    @property
    def beside(self) -> Sequence[Like]:
        """Runs of another arm that a run without any to follow is compared with."""

    @property
    def place(self) -> str:
        """For messages."""


def specs_for(
    cells: Sequence[Cell], folder: Path, overrides: Mapping[str, Any] | None = None, arms: Sequence[str] = ()
) -> tuple[list[RunSpec], list[tuple[str, MadkitError]]]:
    """A run for each cell, and the cells (by their place) for which there can be none, with the reason.

    Args:
        cells: what is missing.
        folder: gets one YAML file an arm and experiment; it has to stay as long as the runs are trained.
        overrides: settings of the runs that have no others to follow, dotted key to value, where they are meant for
            the arm (`meant_for`).
        arms: the arms that the settings are shared over, beside those of the cells.
    """
    specs: list[RunSpec] = []
    problems: list[tuple[str, MadkitError]] = []
    sharing = _sharing(cells, arms)
    for cell in cells:
        if cell.shots is None or cell.arm is None or cell.seed is None:
            continue
        try:
            if cell.like:
                arm, own = str(_written(cell.like, folder)), dict[str, Any]()
            else:
                arm, own = cell.arm, {**_as_long(cell.beside), **meant_for(cell.arm, overrides or {}, sharing)}
            teacher = cell.teacher if load_arm(arm, own).needs_cache else None
        except MadkitError as error:
            problems.append((cell.place, error))
            continue
        specs.append(RunSpec(cell.task, arm, cell.shots, cell.seed, cell.student, teacher, own))
    return specs, problems


def not_shared(cells: Sequence[Cell], overrides: Mapping[str, Any] | None, arms: Sequence[str]) -> dict[str, list[str]]:
    """Those of the `overrides` that `specs_for` gives not to all of its cells' arms, with the arms that go without."""
    given = {cell.arm for cell in cells if not cell.like}
    found = left_out(overrides or {}, _sharing(cells, arms))
    without = {key: [arm for arm in names if arm in given] for key, names in found.items()}
    return {key: names for key, names in without.items() if names}


def _sharing(cells: Sequence[Cell], arms: Sequence[str]) -> list[str]:
    """The arms, controls among them, that share settings; those that nobody knows are problems of their cells."""
    named = dict.fromkeys([*arms, *(cell.arm for cell in cells if cell.arm is not None and not cell.like)])
    return [arm for arm in named if arm.removesuffix(PERMUTED) in arm_names()]


def _as_long(beside: Sequence[Like]) -> dict[str, Any]:
    """The number of steps that the runs beside were told, if they were told one."""
    if not beside:
        return {}
    steps = settings_of([run.path for run in beside])["optim"]["steps"]
    return {} if steps is None else {"optim.steps": steps}


def _written(runs: Sequence[Like], folder: Path) -> Path:
    settings = settings_of([run.path for run in runs])
    # a folder for each experiment: the file's stem is the arm, by which a sweep finds its runs' journals
    path = folder / runs[0].path.name.rpartition("-")[2] / f"{settings['arm']}.yaml"
    write_text_atomic(path, yaml.safe_dump(settings, sort_keys=False))
    return path


def settings_of(folders: Sequence[Path]) -> dict[str, Any]:
    """What the runs of one experiment were told, as an arm's YAML: open where it was open, as far as that shows.

    The number of steps counts as left open where the arm's rule gives the very same one, the seed of the pre-phase
    where every run has its own.

    Raises RunError for settings that this madkit does not know.
    """
    manifests = [read_json(folder / MANIFEST) for folder in folders]
    first = manifests[0]
    try:
        config = DistillConfig.model_validate(first["config"])
        seeds = [(one["seed"], (one["config"].get("pre_phase") or {}).get("seed")) for one in manifests]
        values = config.model_dump(mode="json")
        extra = _open_steps(config, kind=str(first["spec"]["kind"]), n_examples=int(first["examples_labelled"]))
    except (KeyError, TypeError, pydantic.ValidationError) as error:
        raise RunError(
            f"{folders[0] / MANIFEST} has settings that this madkit cannot follow "
            f"({type(error).__name__}: {next(iter(str(error).splitlines()), '')}).",
            hint="train the missing runs with madkit distill",
        ) from None
    if extra is not None:
        values["optim"] |= {"steps": None, "extra_steps": extra}
    if values["pre_phase"] is not None and all(seed == own for seed, own in seeds):
        values["pre_phase"]["seed"] = None
    return values


def _open_steps(config: DistillConfig, *, kind: str, n_examples: int) -> int | None:
    """The `extra_steps` with which the rule for steps gives those of `config`; None where they were given."""
    candidates = [config.optim.extra_steps]
    if config.arm in arm_names():
        candidates.append(load_arm(config.arm).optim.extra_steps)
    for extra in candidates:
        left = config.model_copy(
            update={"optim": config.optim.model_copy(update={"steps": None, "extra_steps": extra})}
        )
        if resolve(left, task=kind, n_examples=n_examples, seed=0).optim.steps == config.optim.steps:
            return extra
    return None
