"""What a results document says of the data and the runs behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from madkit.core.errors import DataError, RunError
from madkit.core.files import digest_of, sha256_file
from madkit.evaluate.results import Source

if TYPE_CHECKING:
    from madkit.core.workspace import Workspace
    from madkit.evaluate.grid import Run
    from madkit.tasks.data import TaskData
    from madkit.tasks.spec import TaskSpec


def student_digest(run: Path) -> str:
    """16 hex digits over the exported student of a run. Raises RunError where there is none."""
    files = sorted(path for path in (run / "student").glob("*") if path.is_file())
    if not files:
        raise RunError(f"The run {run.name} holds no exported student.", hint="remove the folder and train again")
    return digest_of({path.name: sha256_file(path) for path in files})


def sources_of(
    runs: Sequence[Run],
    scores: Mapping[tuple[Run, str], Any],
    data: Mapping[tuple[str, str], TaskData | None],
    specs: Mapping[tuple[str, str], TaskSpec],
) -> tuple[Source, ...]:
    """The data behind the runs, with the suites that were scored."""
    found: dict[tuple[str, str], Source] = {}
    for run in runs:
        if run.table not in found and run.table in specs:
            held = data[run.table]
            part = str(held.manifest.get("part", "")) if held is not None else ""
            found[run.table] = Source(
                name=run.source,
                task=run.task,
                title=specs[run.table].title,
                is_mini=run.is_mini,
                revision=run.revision,
                suites=tuple(dict.fromkeys(suite for other, suite in scores if other.table == run.table)),
                part="" if part == "full" else part,
            )
    return tuple(found.values())


def about_run(run: Run, workspace: Workspace) -> dict[str, Any]:
    """One entry of `runs`."""
    try:
        digest: str | None = student_digest(run.path)
    except (RunError, DataError):
        digest = None
    return {
        "path": str(run.path.relative_to(workspace.root)),
        "source": run.source,
        "student": run.student,
        "arm": run.arm,
        "shots": run.shots,
        "seed": run.seed,
        "teacher": run.teacher,
        "experiment": run.experiment,
        "student_digest": digest,
    }
