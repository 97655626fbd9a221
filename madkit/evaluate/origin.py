"""Where a run comes from: its folder by name, the data it was trained on, and its task."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from madkit.core.console import warn
from madkit.core.errors import MadkitError, NotFoundError, RunError, UsageProblem
from madkit.core.files import read_json
from madkit.core.folders import visible
from madkit.core.registry import suggest
from madkit.evaluate.grid import Run, read_run

if TYPE_CHECKING:
    from madkit.core.workspace import Workspace
    from madkit.tasks.data import TaskData
    from madkit.tasks.spec import TaskSpec

RUN_MANIFEST = "manifest.json"


def find_data(workspace: Workspace, run: Run) -> TaskData | None:
    """The data that a run belongs to: same source, same revision. None where the workspace no longer holds it.

    Every data set of the workspace is looked at: its name need not be the task's. Raises DataError where the data is
    there and cannot be opened.
    """
    from madkit.tasks.data import MANIFEST, TaskData

    homes = [workspace.data / run.source, workspace.data / run.task]
    homes += [path.parent for path in visible(workspace.data, f"*/{MANIFEST}")]
    homes += sorted(path.parent for path in (workspace.data / "mini").glob(f"{run.source}*/{MANIFEST}"))
    for home in dict.fromkeys(homes):
        try:
            manifest = read_json(home / MANIFEST)
        except MadkitError:
            continue
        if isinstance(manifest, dict) and (manifest.get("source"), manifest.get("revision")) == run.table:
            return TaskData(home)
    return None


def warn_of_other_regions(run: Run, data: TaskData) -> None:
    """Say so where the data's region features are not those that the run was trained on."""
    trained, held = run.config.get("regions"), data.region_digest()
    if trained is not None and trained != held:
        warn(
            f"{run.path.name} was trained on other region features than {data.name} has now, so its answers are not "
            "what it learnt to give."
        )


def spec_of(run: Run, data: TaskData | None) -> TaskSpec:
    """The task of a run: as its data tells, else as its manifest does. Raises RunError where neither does."""
    if data is not None:
        return data.spec
    if run.spec is None:
        raise RunError(
            f"Neither the run nor the workspace says what the task {run.task!r} is.",
            hint="put its data back into the workspace",
        )
    return run.spec


def student_of(run: Run) -> Path:
    """The folder with the student of a run; of an exported student (`madkit export`) that is the folder itself."""
    inside = run.path / "student"
    return run.path if not inside.is_dir() and (run.path / "config.json").is_file() else inside


def find_run(workspace: Workspace, name: str) -> Run:
    """The complete run in a folder, or of that name in the workspace ("<run>" or "<source>/<run>").

    An exported student's folder counts as its run's.

    Raises NotFoundError with the nearest name, UsageProblem for a name that two sources use, and RunError for a run
    that is not finished or cannot be read.
    """
    found = [Path(name)] if (Path(name) / RUN_MANIFEST).is_file() else []
    if not found:
        runs = [path.parent for path in sorted(workspace.runs.glob(f"*/*/{RUN_MANIFEST}"))]
        runs = [path for path in runs if not path.name.startswith("pre-phase-")]
        found = [path for path in runs if name.rstrip("/") in (path.name, f"{path.parent.name}/{path.name}")]
        if not found:
            if Path(name).is_dir():
                raise NotFoundError(
                    f"{name} is no run: it has no {RUN_MANIFEST}.", hint="give a run's folder or name, or an export's"
                )
            names = [path.name for path in runs]
            raise NotFoundError(
                f"There is no run {name!r} in {workspace.runs}.{suggest(name, names)}",
                hint=f"one of: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
                if names
                else "madkit distill --task vcr --shots 1pct",
            )
        if len(found) > 1:
            raise UsageProblem(
                f"Several sources have a run {name!r}.",
                hint=f"one of: {', '.join(f'{path.parent.name}/{path.name}' for path in found)}",
            )
    run = read_run(found[0])
    if run is None:
        raise RunError(
            f"The run {found[0].name} is not finished.", hint="type its madkit distill command again; it goes on"
        )
    return run
