"""Whether a run of a sweep is complete, found out without a process of its own."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

from madkit.core.errors import MadkitError, NotFoundError
from madkit.core.workspace import Workspace
from madkit.distill.asked import Names, ask_for, check_names
from madkit.distill.runs.folder import MANIFEST
from madkit.distill.sweep.worker_process import RunSpec
from madkit.tasks.data import TaskData


def names_of(workspace: Workspace, spec: RunSpec) -> Names | None:
    """The names of a run, checked; None where a folder or file is not there, which its worker will say.

    Raises UsageProblem or ConfigError for names and values that cannot be meant.
    """
    try:
        return check_names(
            workspace,
            task=spec.task,
            shots=spec.shots,
            arm=spec.arm,
            student=spec.student,
            init=spec.init,
            recipe=spec.recipe,
            overrides=spec.overrides,
        )
    except NotFoundError:
        return None


def finished(
    workspace: Workspace, spec: RunSpec, names: Names | None, data: TaskData
) -> tuple[Path, dict[str, Any]] | None:
    """Folder and development scores of a run that is complete; None where it is not, or cannot be looked for.

    Args:
        workspace: caches and runs.
        spec: the run.
        names: see `names_of`.
        data: of its task.
    """
    if names is None or not _may_be_there(workspace, names, data, spec.seed):
        return None
    try:
        asked = ask_for(workspace, names, teacher=spec.teacher, seed=spec.seed, data=data, say=lambda _: None)
    except (MadkitError, OSError):  # whoever is to train it says what is wrong
        return None
    try:
        manifest = asked.folder.complete()
        return None if manifest is None else (asked.folder.path, dict(manifest.get("dev") or {}))
    finally:
        asked.close()


def _may_be_there(workspace: Workspace, names: Names, data: TaskData, seed: int) -> bool:
    """Whether a folder has a name that the run's may be, so that a new sweep reads nothing it will read again."""
    arm, shots = glob.escape(names.config.arm), glob.escape(names.shots.replace(":", "-"))
    folders = (workspace.runs / data.source).glob(f"*-{arm}-{shots}-s{seed}-*/{MANIFEST}")
    return next(folders, None) is not None
