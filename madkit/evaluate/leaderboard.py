"""The stage behind `madkit evaluate --submission`: the official answer files of all runs that a protocol asks for.

Each is what `madkit predict RUN --split submission` writes. What has been written is told by a row of the run's
`submissions/written.jsonl`, with the digests of the student, the questions and the file; it is not written again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from madkit.core.console import info, progress
from madkit.core.errors import MadkitError, NotFoundError
from madkit.core.files import append_jsonl, read_jsonl, sha256_file
from madkit.core.interrupts import StopSignals
from madkit.evaluate.answering import answer
from madkit.evaluate.cells import suite_digest
from madkit.evaluate.contents import student_digest
from madkit.evaluate.grid import Problem, Run
from madkit.evaluate.scorer import StudentScorer
from madkit.evaluate.stage import plan_of

if TYPE_CHECKING:
    from madkit.core.workspace import Workspace
    from madkit.tasks.data import TaskData

SCHEMA = "madkit.submissions/1"
WRITTEN = "written.jsonl"


@dataclass(frozen=True)
class Submission:
    """One file for a leaderboard; `new` says whether it was written just now."""

    run: str
    task: str
    source: str
    split: str
    format: str
    path: Path
    questions: int
    new: bool


@dataclass(frozen=True)
class Submissions:
    """All files, and what kept others from being written."""

    files: tuple[Submission, ...]
    problems: tuple[Problem, ...]

    def document(self) -> dict[str, Any]:
        """Plain JSON values."""
        files = [{**asdict(one), "path": str(one.path)} for one in self.files]
        return {"schema": SCHEMA, "files": files, "problems": [problem.as_dict() for problem in self.problems]}


def write_submissions(
    workspace: Workspace, protocol: str = "full", *, device: str = "auto", precision: str = "auto"
) -> Submissions:
    """Write the answers of every run to the official test sets that its data has ("submission", "submission-dev").

    Args:
        workspace: holds the runs and their data.
        protocol: a shipped name or the path of a YAML file; says which runs.
        device: where the students run.
        precision: "auto", "fp32" or "bf16".

    Runs that fail stand in `problems`; all others are there.

    Raises:
        NotFoundError: no such protocol, no run, or no run whose data has an official test set.
        UsageProblem: no such device or precision.
        StoppedResumable, KeyboardInterrupt: asked to stop; finished files are kept.
    """
    StudentScorer(device, precision).check()
    plan = plan_of(workspace, protocol)
    todo: list[tuple[Run, TaskData, str]] = []
    problems = list(plan.problems)
    lacking = []
    for run in plan.runs:
        data = plan.data[run.table]
        if data is not None:
            todo += [(run, data, split) for split in data.submissions()]
            if not data.submissions():
                lacking.append(run.source)
    if not todo and not problems:
        names = ", ".join(dict.fromkeys(lacking))
        raise NotFoundError(
            f"None of the data that runs were trained on has an official test set without labels ({names}).",
            hint="import the benchmark's test files: madkit data import --help",
        )
    for name in dict.fromkeys(lacking):
        info(f"{name} has no official test set; nothing is written for its runs.")
    files = []
    with StopSignals() as stop, progress("Writing submissions", len(todo), "files") as bar:
        for run, data, split in todo:
            if stop.requested:
                raise stop.error()
            bar.update(f"{run.path.name}, {split}")
            try:
                files.append(_written(workspace, run, data, split, device, precision))
            except MadkitError as error:
                problems.append(Problem(f"{run.path.name} on {split}", error.message, error.hint))
            except Exception as error:  # whatever a damaged student raises must not cost the other files
                if os.environ.get("MADKIT_DEBUG", "0") not in ("", "0"):
                    raise
                text = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
                hint = "the same command with MADKIT_DEBUG=1 shows where"
                problems.append(Problem(f"{run.path.name} on {split}", text, hint))
            bar.advance()
    return Submissions(tuple(files), tuple(problems))


def _written(workspace: Workspace, run: Run, data: TaskData, split: str, device: str, precision: str) -> Submission:
    journal = run.path / "submissions" / WRITTEN
    about = {
        "split": split,
        "student_digest": student_digest(run.path),
        "suite_digest": suite_digest(run, split, data),
        "precision": precision,
    }
    for row in reversed(read_jsonl(journal) if journal.is_file() else []):
        path = journal.parent / str(row.get("file"))
        if about.items() <= row.items() and path.is_file() and sha256_file(path) == row.get("sha256"):
            return _told(run, split, path, row, new=False)
    done = answer(workspace, str(run.path), split, device=device, precision=precision)
    row = {
        **about,
        "format": done.format,
        "file": done.path.name,
        "questions": done.questions,
        "sha256": sha256_file(done.path),
    }
    append_jsonl(journal, row)
    return _told(run, split, done.path, row, new=True)


def _told(run: Run, split: str, path: Path, row: Mapping[str, Any], *, new: bool) -> Submission:
    return Submission(run.path.name, run.task, run.source, split, str(row["format"]), path, int(row["questions"]), new)
