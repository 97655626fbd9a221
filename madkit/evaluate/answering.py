"""The stage behind `madkit predict`: a trained student answers a split, and its answers become a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from madkit.core.errors import NotFoundError, UsageProblem
from madkit.core.registry import suggest
from madkit.evaluate.origin import find_data, find_run, spec_of, student_of, warn_of_other_regions
from madkit.evaluate.sight import regions_of_run
from madkit.evaluate.submission import check_format, conditioned, official_format, suffix, write_submission
from madkit.tasks.data import open_task

if TYPE_CHECKING:
    from collections.abc import Sequence

    from madkit.core.workspace import Workspace
    from madkit.tasks.data import TaskData
    from madkit.tasks.example import Example


@dataclass(frozen=True, slots=True)
class Answered:
    """A file of answers: where it lies, in which format, and how many questions it answers."""

    path: Path
    format: str
    run: Path
    task: str
    source: str
    split: str
    questions: int


def answer(
    workspace: Workspace,
    run: str,
    split: str = "test",
    *,
    task: str | None = None,
    format_: str | None = None,
    output: Path | None = None,
    raw: bool = False,
    device: str = "auto",
    threads: int = 0,
) -> Answered:
    """Let the student of a run answer a split or suite, and write the answers.

    Args:
        workspace: holds the run and its data; neither teacher nor cache is read.
        run: its folder, or its name in the workspace; or the folder of an exported student.
        task: the data set to answer; None: the one that the run was trained on, in that very revision.
        split: a split, a suite, or an official test set without labels ("submission").
        format_: one of `submission.FORMATS`; None: the task's official one for official test sets, else "jsonl".
        output: the file; None: `submissions/<split>` in the run's folder, which an exported student's is not.
        raw: the student's scores as they are, in place of softmax probabilities.
        device: where the student runs.
        threads: compute threads; 0: all cores.

    Raises:
        NotFoundError: no such run, or its data is gone.
        UsageProblem: a split that the data lacks, a format of another task, or no file for an exported student.
        DataError, RunError: answers that do not fit the question set, or are not finite; nothing is written.
    """
    found = find_run(workspace, run)
    student = student_of(found)
    if output is None and student == found.path:
        raise UsageProblem(
            f"{run} is an exported student, whose folder stays as it is.", hint=f"say where to: -o {split}.jsonl"
        )
    data = open_task(workspace, task) if task is not None else find_data(workspace, found)
    if data is None:
        raise NotFoundError(
            f"The workspace does not hold revision {found.revision} of {found.source}, on which {found.path.name} was "
            "trained.",
            hint="name the data to answer: --task NAME (madkit data list)",
        )
    if task is None:
        warn_of_other_regions(found, data)
    spec = spec_of(found, data)
    check_split(data, split)
    form = format_ or (official_format(spec) if split in data.submissions() else "jsonl")
    check_format(form, spec)
    path = output or found.path / "submissions" / f"{split}{suffix(form)}"
    if path.is_dir():
        raise UsageProblem(f"{path} is a folder.", hint="name a file: -o FILE")
    examples: Sequence[Example] = data.examples(split)
    if form == "vcr-csv":
        examples = conditioned(examples)

    import torch  # only where there is something to answer

    from madkit.evaluate.predict import predict

    key = str(found.config.get("cache_key"))
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        with regions_of_run(workspace, student, key, data, split) as regions:
            rows = predict(student, examples, regions, spec=spec, device=device)
    finally:
        torch.set_num_threads(before)
    where = f"The answers of {found.path.name} on {data.source} {split}"
    n = write_submission(path, rows, examples, spec, form, raw=raw, where=where)
    return Answered(path, form, found.path, spec.name, data.source, split, n)


def check_split(data: TaskData, split: str) -> None:
    """Raise UsageProblem, with the nearest name, for a split or suite that the data lacks."""
    names = list(dict.fromkeys([*data.splits(), *data.suites(), *data.submissions()]))
    if split not in names:
        raise UsageProblem(
            f"{data.source} has no split or test suite {split!r}.{suggest(split, names)}",
            hint=f"use one of: {', '.join(names)}",
        )
