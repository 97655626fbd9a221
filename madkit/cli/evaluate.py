"""``madkit evaluate``: every run on every suite, to a table with intervals."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from madkit.cli.elsewhere import placed
from madkit.cli.options import CacheOption, JsonOption, WorkspaceOption
from madkit.cli.output import emit, print_table

if TYPE_CHECKING:
    from madkit.core.workspace import Workspace
    from madkit.evaluate.grid import Problem
    from madkit.evaluate.results import Results

EXAMPLES = """
madkit evaluate --protocol full
madkit evaluate --protocol low-shot --json
madkit evaluate --protocol my-protocol.yaml --train-missing
madkit evaluate --vqa-rule pre2021
madkit evaluate --beside published
madkit evaluate --agreement
madkit evaluate --submission
accelerate launch --multi_gpu --num_processes 2 -m madkit evaluate --protocol full
"""


class Rule(StrEnum):
    """Versions of VQA's official accuracy."""

    current = "current"
    pre2021 = "pre2021"


class Precision(StrEnum):
    """What students compute in."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


class Beside(StrEnum):
    """What can be laid beside one's own results."""

    published = "published"


VqaRuleOption = Annotated[
    Rule, typer.Option("--vqa-rule", help="Version of the official VQA accuracy: since March 2021, or before.")
]
PrecisionOption = Annotated[
    Precision,
    typer.Option("--precision", help="fp32, bf16, or auto: bf16 on a GPU that has it; answers that are there count."),
]


def evaluate(
    protocol: Annotated[
        str,
        typer.Option("--protocol", metavar="NAME", help="smoke, full, low-shot, domain-shift, or a YAML file."),
    ] = "full",
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: PrecisionOption = Precision.auto,
    vqa_rule: VqaRuleOption = Rule.current,
    train_missing: Annotated[
        bool, typer.Option("--train-missing", help="First train the cells of the protocol that have no run.")
    ] = False,
    processes: Annotated[
        int, typer.Option("--processes", metavar="N", min=0, help="Trainings side by side.", show_default="what fits")
    ] = 0,
    beside: Annotated[
        Beside | None,
        typer.Option("--beside", help="Lay quoted published results of the same benchmarks beside one's own."),
    ] = None,
    agreement: Annotated[
        bool,
        typer.Option("--agreement", help="Ask the teachers, from their caches, how often students answer as they do."),
    ] = False,
    submission: Annotated[
        bool, typer.Option("--submission", help="Write the runs' files for the leaderboards, and no table.")
    ] = False,
    cache: CacheOption = None,
    workspace: WorkspaceOption = None,
    json_: JsonOption = False,
) -> None:
    """Score every run of the workspace on every test suite and compare the arms.

    What has a result already is not scored again. The report, an HTML page with JSON, CSV and Markdown beside it, goes
    into `reports/` of the workspace. Cells that fail are named at the end (exit code 1); all others are there.

    With `--train-missing` the runs that the protocol asks for and the workspace lacks are trained first, with the
    settings of the other runs of their arm.

    With `--agreement` the teachers of the runs are asked the same questions, from the vectors in their caches, and the
    table tells how often students answer as they do. A run without a teacher is laid beside those of the other arms.

    With `--submission` the runs answer the official test sets without labels of their data, and the answers are written
    as the leaderboards of VCR, SNLI-VE and VQA take them (`submissions/` in a run's folder).

    Under `accelerate launch` or `torchrun` the processes share what has to be answered, and the first one makes the
    table.

    With `--vqa-rule pre2021` the answers that are there are scored by the older rule, without running a student, and
    the report goes into a folder of its own.
    """
    from dataclasses import replace

    from madkit.cli.report import scenes
    from madkit.core.errors import UsageProblem
    from madkit.core.job import Job
    from madkit.core.workspace import Workspace
    from madkit.evaluate.published import beside_published
    from madkit.evaluate.report import write_report
    from madkit.evaluate.scorer import StudentScorer
    from madkit.evaluate.sharing import answer_together
    from madkit.evaluate.stage import evaluate as run

    table = {"--agreement": agreement, "--beside": beside, "--vqa-rule": vqa_rule is not Rule.current}
    idle = [name for name, given in table.items() if given]
    if submission and idle:
        raise UsageProblem(f"{idle[0]} is of the table, and --submission writes none.", hint=f"leave out {idle[0]}")
    if processes and not train_missing:
        raise UsageProblem("--processes says how many trainings run side by side.", hint="add --train-missing")
    place = Workspace.at(workspace, cache=cache)
    how: dict[str, Any] = {"device": device, "precision": precision.value, "vqa_rule": vqa_rule.value}
    failed: dict[str, Problem] = {}
    with Job("evaluate") as ranks:
        if ranks.count > 1 and (train_missing or submission):
            raise UsageProblem(
                f"{'--submission' if submission else '--train-missing'} is for a single process.",
                hint="start it without torchrun or accelerate launch",
            )
        StudentScorer(device, precision.value).check()  # before hours of training
        untrained = train(place, protocol, processes=processes) if train_missing else []
        if submission:
            _write_submissions(place, protocol, untrained, device=device, precision=precision.value, json_=json_)
            return
        if ranks.count > 1:
            failed = answer_together(ranks, place, protocol, **how)
            if not ranks.first:
                return
    results = run(place, protocol, **how, agreement=agreement, failed=failed)
    results = replace(results, problems=(*(problem.as_dict() for problem in untrained), *results.problems))
    if beside is Beside.published:
        results = beside_published(results)
    folder = results.protocol if vqa_rule is Rule.current else f"{results.protocol}-{vqa_rule.value}"
    page = write_report(place.reports / folder, results, gallery=scenes(place, results))
    emit({**results.document(), "report": str(page)}, json_, lambda: _print(results, page))
    _tell(results.problems)


def _tell(problems: Sequence[Mapping[str, Any]]) -> None:
    """Name what failed, each error once with the places that have it, and end with exit code 1 where there are any."""
    from madkit.core.console import warn

    places: dict[tuple[str, str | None], list[str]] = {}
    for problem in problems:
        places.setdefault((problem["error"], problem["hint"]), []).append(problem["where"])
    for (error, hint), where in places.items():
        more = f" (The same of {len(where) - 1} more.)" if len(where) > 1 else ""
        warn(f"{where[0]}: {error}{more}{f' Try: {hint}' if hint else ''}")
    if problems:
        raise typer.Exit(1)


def _write_submissions(
    workspace: Workspace, protocol: str, untrained: list[Problem], *, device: str, precision: str, json_: bool
) -> None:
    from madkit.core.console import counted
    from madkit.evaluate.leaderboard import Submissions, write_submissions

    done = write_submissions(workspace, protocol, device=device, precision=precision)
    done = Submissions(done.files, (*untrained, *done.problems))

    def human() -> None:
        for one in done.files:
            there = "" if one.new else " (there already)"
            print(f"{one.source} {one.split}: {counted(one.questions, 'questions')} answered, as {one.format}{there}.")
            print(one.path)

    emit(done.document(), json_, human)
    _tell([problem.as_dict() for problem in done.problems])


def train(workspace: Workspace, protocol: str, *, processes: int = 0) -> list[Problem]:
    """Train the cells of a protocol that have no run; what could not be trained, and why."""
    import tempfile

    from madkit.cli.distill_sweep import say_left_out
    from madkit.core.console import info
    from madkit.core.errors import RunError
    from madkit.distill.sweep.filling import not_shared, specs_for
    from madkit.distill.sweep.fitting import fit
    from madkit.distill.sweep.sweep import run_many
    from madkit.evaluate.grid import Problem
    from madkit.evaluate.missing import cells_to_train
    from madkit.evaluate.protocol import load_protocol

    cells, problems = cells_to_train(workspace, protocol)
    with tempfile.TemporaryDirectory(prefix="madkit-") as folder:
        asked = load_protocol(protocol)[1]
        arms = [] if asked.arms == "any" else asked.arms
        specs, impossible = specs_for(cells, Path(folder), asked.set, arms)
        problems += [Problem(where, error.message, error.hint) for where, error in impossible]
        if not specs:
            return problems
        say_left_out(not_shared(cells, asked.set, arms))
        fitting = fit(len(specs), 1)
        count = min(processes or fitting.processes, len(specs))
        missing = "1 run is" if len(specs) == 1 else f"{len(specs)} runs are"
        info(f"{missing} missing; training {count} at a time.")
        try:
            run_many(workspace, specs, processes=count, gpus=fitting.gpus if count > 1 else ())
        except RunError as error:
            problems.append(Problem("--train-missing", error.message, error.hint))
    return problems


def print_results(results: Results) -> None:
    """Print the table on stdout: fitted to a terminal, 80 columns of plain text into a file or pipe."""
    from rich.console import Console

    from madkit.evaluate.report.terminal import terminal

    if sys.stdout.isatty():
        Console().print(terminal(results))
    else:
        console = Console(width=80)
        with console.capture() as capture:
            console.print(terminal(results))
        for line in capture.get().splitlines():
            print(line.rstrip())
    _print_teachers(results)


def _print(results: Results, page: Path) -> None:
    from madkit.evaluate.report.terminal import next_step

    print_results(results)
    step = next_step(results)
    if step:
        print(placed(f"Next: {step}"))
    print(page)


def _print_teachers(results: Results) -> None:
    """Agreement with the teachers on the in-domain suite by the headline metric; the rest is in the JSON."""
    headlines = {(row.source, row.revision, row.suite): row.metric for row in results.rows if row.headline}
    for source in results.sources:
        here = (source.name, source.revision, *source.suites[:1])
        rows = [
            one
            for one in results.teacher_agreements
            if (one.source, one.revision, one.suite) == here and one.metric == headlines.get((*here,))
        ]
        for student, shots, teacher in dict.fromkeys((one.student, one.shots, one.teacher) for one in rows):
            print(f"\nSame answer as the teacher {teacher}, % ({source.name}, {here[2]}, {student}, {shots})")
            print_table(
                ("arm", "asked by", "same", "95 %", "if right", "if wrong", "its score"),
                [
                    (
                        one.label,
                        one.method,
                        f"{one.mean:.1f}",
                        "" if one.low is None or one.high is None else f"[{one.low:.1f}, {one.high:.1f}]",
                        "" if one.when_right is None else f"{one.when_right:.1f}",
                        "" if one.when_wrong is None else f"{one.when_wrong:.1f}",
                        f"{one.teacher_score:.1f}",
                    )
                    for one in rows
                    if (one.student, one.shots, one.teacher) == (student, shots, teacher)
                ],
                right={2, 4, 5, 6},
            )
