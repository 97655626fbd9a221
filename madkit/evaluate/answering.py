"""The stages behind `madkit predict`: a trained student answers a split, or a user's own questions, and its answers
become a file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from madkit.core.errors import NotFoundError, RunError, UsageProblem
from madkit.core.files import check_writable, write_text_atomic
from madkit.core.registry import suggest
from madkit.evaluate.origin import RUN_MANIFEST, find_data, find_run, spec_of, student_of, warn_of_other_regions
from madkit.evaluate.sight import CONFIG, regions_of_run
from madkit.evaluate.submission import (
    FORMATS,
    OWN_FORMATS,
    check_format,
    conditioned,
    csv_text,
    format_of,
    known,
    official_format,
    suffix,
    write_submission,
)
from madkit.tasks.data import open_task

if TYPE_CHECKING:
    from madkit.core.workspace import Workspace
    from madkit.evaluate.asking import LeftOut
    from madkit.evaluate.grid import Run
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
    precision: str = "auto",
    threads: int = 0,
) -> Answered:
    """Let the student of a run answer a split or suite, and write the answers.

    Args:
        workspace: holds the run and its data; neither teacher nor cache is read.
        run: its folder, or its name in the workspace; or an exported student's folder or name on the hub, `ORG/NAME`.
        task: the data set to answer; None: the one that the run was trained on, in that very revision.
        split: a split, a suite, or an official test set without labels ("submission").
        format_: one of `submission.FORMATS`; None: what the name of `output` says, else the task's
            official one for official test sets, else "jsonl".
        output: the file; None: `submissions/<split>` in the run's folder, which an exported student's is not.
        raw: the student's scores as they are, in place of softmax probabilities.
        device: where the student runs.
        precision: "fp32", "bf16", or "auto": bf16 on a GPU that has it.
        threads: compute threads; 0: all cores.

    Raises:
        NotFoundError: no such run, or its data is gone.
        UsageProblem: a split that the data lacks, a format of another task, or no file for an exported student.
        DataError, RunError: answers that do not fit the question set, or are not finite; nothing is written.
    """
    found = _run_of(workspace, run)
    student = student_of(found)
    if not (student / CONFIG).is_file():
        raise _no_student(run)
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
    if format_ is not None:
        check_format(format_, spec)
    usual = official_format(spec) if split in data.submissions() else "jsonl"
    form = format_of(output, format_, usual, known(spec))
    path = output or found.path / "submissions" / f"{split}{suffix(form)}"
    if path.is_dir():
        raise UsageProblem(f"{path} is a folder.", hint="name a file: -o FILE")
    check_writable(path)  # answering may take hours
    examples: Sequence[Example] = data.examples(split)
    if form == "vcr-csv":
        examples = conditioned(examples)

    from madkit.evaluate.predict import predict  # torch: only where there is something to answer

    key = str(found.config.get("cache_key"))
    with _on_threads(threads), regions_of_run(workspace, student, key, data, split) as regions:
        rows = predict(student, examples, regions, spec=spec, device=device, precision=precision)
    where = f"The answers of {found.path.name} on {data.source} {split}"
    n = write_submission(path, rows, examples, spec, form, raw=raw, where=where)
    return Answered(path, form, found.path, spec.name, data.source, split, n)


@dataclass(frozen=True, slots=True)
class Told:
    """What became of a user's own questions.

    Attributes:
        path: the file of answers, None where they were passed on line by line.
        format: its format.
        student: what was asked.
        questions: how many were answered.
        resumed: of these, how many an earlier, interrupted call had answered.
        left_out: those that were not.
    """

    path: Path | None
    format: str
    student: str
    questions: int
    resumed: int
    left_out: tuple[LeftOut, ...]


def answer_questions(
    workspace: Workspace,
    run: str,
    questions: Path,
    *,
    images: Path | None = None,
    regions: Sequence[str] = (),
    regions_format: str | None = None,
    split: str | None = None,
    allow_missing: bool = False,
    format_: str | None = None,
    output: Path | None = None,
    tell: Callable[[dict[str, Any]], None] | None = None,
    raw: bool = False,
    device: str = "auto",
    precision: str = "auto",
    threads: int = 0,
) -> Told:
    """Let a student answer a user's own JSONL file, which needs no import.

    Args:
        workspace: where a run's name is looked for; nothing else of it is needed.
        run: a run's folder or name, a student's folder, or its name on the hub, `ORG/NAME`.
        questions: a JSONL file as docs/custom.md describes it; labels are not needed.
        images: folder or zip of the images; None: the file's folder, or `images` in it.
        regions: files or folders of region features, "pixels", or a token cache's folder (`asking.predict`).
        regions_format: layout of the files; None: found out.
        split: ask the lines of this split alone.
        allow_missing: leave out questions whose images or features are absent or broken.
        format_: one of `OWN_FORMATS`; None: what the name of `output` says, else "jsonl".
        output: the file, whole or not there; what is answered is kept beside it until then. None: `tell` gets the rows.
        tell: called with each row of answers (`asking.row_of`), in the order of the questions.
        raw: the student's scores as they are, in place of softmax probabilities.
        device: where the student runs.
        precision: "fp32", "bf16", or "auto": bf16 on a GPU that has it.
        threads: compute threads; 0: all cores.

    Raises NotFoundError, UsageProblem, DataError and RunError as `asking.predict`, and UsageProblem for a format that
    does not hold such answers.
    """
    if format_ is not None and format_ not in OWN_FORMATS:
        near = f"does not exist.{suggest(format_, OWN_FORMATS)}"
        why = "is that of an official test set" if format_ in FORMATS else near
        raise UsageProblem(f"The format {format_} {why}".rstrip(".") + ".", hint="--format jsonl or --format csv")
    if output is not None and output.is_dir():
        raise UsageProblem(f"{output} is a folder.", hint="name a file: --out FILE")
    form = format_of(output, format_, "jsonl", OWN_FORMATS)
    if output is None and form != "jsonl":
        raise UsageProblem(f"The format {form} needs a file.", hint="--out FILE.csv")
    student = find_student(workspace, run)

    from madkit.evaluate.asking import Asking, row_of  # torch: only where there is something to answer

    rows: list[dict[str, Any]] = []
    with (
        _on_threads(threads),
        Asking(
            student, questions, images=images, regions=regions, regions_format=regions_format, split=split,
            allow_missing=allow_missing, device=device, precision=precision, keep=output,
        ) as asked,
    ):  # fmt: skip
        count = 0
        for row in asked.answers():
            count += 1
            if output is not None:
                rows.append(row)
            elif tell is not None:
                tell(row_of(row, asked.spec, raw=raw))
        if output is not None:
            lines = (json.dumps(row_of(row, asked.spec, raw=raw), ensure_ascii=False) + "\n" for row in rows)
            write_text_atomic(output, csv_text(rows, asked.spec, raw) if form == "csv" else "".join(lines))
            asked.done()
    return Told(output, form, run, count, asked.resumed, tuple(asked.left_out))


def find_student(workspace: Workspace, name: str) -> Path | str:
    """The folder of a student given by its own folder, by a run's folder or name, or by `ORG/NAME` on the hub.

    Raises NotFoundError, UsageProblem or RunError as `origin.find_run`; NotFoundError where the hub gave nothing.
    """
    folder = Path(name)
    if (folder / CONFIG).is_file() or (folder.is_file() and folder.name == CONFIG):
        return folder if folder.is_dir() else folder.parent
    if folder.is_dir() and not (folder / RUN_MANIFEST).is_file():
        raise NotFoundError(
            f"{folder} is neither a run nor a student: it has no {RUN_MANIFEST} and no {CONFIG}.",
            hint="give a run's folder or name, or the folder that madkit export wrote",
        )
    try:
        found = student_of(find_run(workspace, name))
    except NotFoundError as error:
        return _from_hub(workspace, name, error)
    if not (found / CONFIG).is_file():
        raise _no_student(name)
    return found


def _no_student(run: str) -> RunError:
    return RunError(
        f"The run {run} holds no student.", hint="remove its folder and type its madkit distill command again"
    )


def _run_of(workspace: Workspace, name: str) -> Run:
    """A run, or an exported student as if it were one, in the workspace, in a folder, or on the hub."""
    try:
        return find_run(workspace, name)
    except NotFoundError as error:
        return find_run(workspace, str(_from_hub(workspace, name, error)))


def _from_hub(workspace: Workspace, name: str, no_run: NotFoundError) -> Path:
    """A student's folder from the hub. Raises `no_run` where the name can only be that of a run."""
    from madkit.students.load import on_the_hub, student_folder

    if (workspace.runs / name.partition("/")[0]).is_dir() or not on_the_hub(name):
        raise no_run
    return student_folder(name)


@contextmanager
def _on_threads(threads: int) -> Iterator[None]:
    """Compute with so many threads (0: as many as there are), and then with as many as before."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_split(data: TaskData, split: str) -> None:
    """Raise UsageProblem, with the nearest name, for a split or suite that the data lacks."""
    names = list(dict.fromkeys([*data.splits(), *data.suites(), *data.submissions()]))
    if split not in names:
        raise UsageProblem(
            f"{data.source} has no split or test suite {split!r}.{suggest(split, names)}",
            hint=f"use one of: {', '.join(names)}",
        )
