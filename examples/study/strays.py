"""Runs that a workspace holds and the grid would not train: left from a list of candidates that was changed since.

`madkit evaluate` makes a row of every run that it finds; one that was made with settings which are not chosen any more
would stand in the tables as if it were the arm.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from madkit.core.errors import DataError
from madkit.core.files import read_json
from madkit.core.workspace import Workspace
from madkit.distill.sweep.sweep import RunSpec


def refuse_strays(
    workspace: Workspace, specs: Iterable[RunSpec], shots: Mapping[str, Iterable[int]], tasks: Collection[str]
) -> None:
    """Raise DataError for the first run of the tables' seeds whose settings are those of no `spec`.

    Args:
        workspace: whose runs are looked at.
        specs: every run of the study.
        shots: number of labels -> seeds of the tables; runs of other seeds (tuning, variants) are in no table.
        tasks: those that are evaluated.
    """
    planned: dict[tuple[str, str, str, int], list[Mapping[str, Any]]] = {}
    for spec in specs:
        planned.setdefault((spec.task, spec.arm, spec.shots, spec.seed), []).append(spec.overrides)
    for path in sorted(workspace.runs.glob("*/*/manifest.json")):
        manifest = read_json(path)
        if manifest.get("kind") != "run" or manifest["task"] not in tasks:
            continue
        if manifest["seed"] not in shots.get(manifest["shots"], ()):
            continue
        arm = manifest["arm"].removesuffix("-permuted")  # what the tables call a control; its settings say it, too
        place = (manifest["task"], arm, manifest["shots"], manifest["seed"])
        if not any(_is_of(manifest["config"], overrides) for overrides in planned.get(place, ())):
            raise DataError(
                f"{path.parent} was trained with settings that the grid does not choose, and would be read as its arm.",
                hint=f"move it out of the workspace: mv {path.parent} ELSEWHERE",
            )


def _is_of(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> bool:
    return all(_value(config, key) == value for key, value in overrides.items())


def _value(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config.get(part) if isinstance(config, Mapping) else None
    return config
