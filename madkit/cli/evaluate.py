"""``madkit evaluate``: every run on every suite, to a table with intervals."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from madkit.cli.options import CacheOption, JsonOption, WorkspaceOption
from madkit.cli.output import emit

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
"""


class Rule(StrEnum):
    """Versions of VQA's official accuracy."""

    current = "current"
    pre2021 = "pre2021"


class Beside(StrEnum):
    """What can be laid beside one's own results."""

    published = "published"


VqaRuleOption = Annotated[
    Rule, typer.Option("--vqa-rule", help="Version of the official VQA accuracy: since March 2021, or before.")
]


def evaluate(
    protocol: Annotated[
        str,
        typer.Option("--protocol", metavar="NAME", help="smoke, full, low-shot, domain-shift, or a YAML file."),
    ] = "full",
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
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
    cache: CacheOption = None,
    workspace: WorkspaceOption = None,
    json_: JsonOption = False,
) -> None:
    """Score every run of the workspace on every test suite and compare the arms.

    What has a result already is not scored again. The report, an HTML page with JSON, CSV and Markdown beside it, goes
    into `reports/` of the workspace. Cells that fail are named at the end (exit code 1); all others are there.

    With `--train-missing` the runs that the protocol asks for and the workspace lacks are trained first, with the
    settings of the other runs of their arm.

    With `--vqa-rule pre2021` the answers that are there are scored by the older rule, without running a student, and
    the report goes into a folder of its own.
    """
    from dataclasses import replace

    from madkit.core.console import warn
    from madkit.core.workspace import Workspace
    from madkit.evaluate.differing import differing_scenes
    from madkit.evaluate.published import beside_published
    from madkit.evaluate.report import write_report
    from madkit.evaluate.stage import evaluate as run

    place = Workspace.at(workspace, cache=cache)
    untrained = train(place, protocol, processes=processes) if train_missing else []
    results = run(place, protocol, device=device, vqa_rule=vqa_rule.value)
    results = replace(results, problems=(*(problem.as_dict() for problem in untrained), *results.problems))
    if beside is Beside.published:
        results = beside_published(results)
    folder = results.protocol if vqa_rule is Rule.current else f"{results.protocol}-{vqa_rule.value}"
    page = write_report(place.reports / folder, results, gallery=differing_scenes(place, results))
    emit({**results.document(), "report": str(page)}, json_, lambda: _print(results, page))
    for problem in results.problems:
        hint = f" Try: {problem['hint']}" if problem["hint"] else ""
        warn(f"{problem['where']}: {problem['error']}{hint}")
    if results.problems:
        raise typer.Exit(1)


def train(workspace: Workspace, protocol: str, *, processes: int = 0) -> list[Problem]:
    """Train the cells of a protocol that have no run; what could not be trained, and why."""
    import tempfile

    from madkit.core.console import info
    from madkit.core.errors import RunError
    from madkit.distill.sweep.filling import specs_for
    from madkit.distill.sweep.fitting import fit
    from madkit.distill.sweep.sweep import run_many
    from madkit.evaluate.grid import Problem
    from madkit.evaluate.missing import cells_to_train
    from madkit.evaluate.protocol import load_protocol

    cells, problems = cells_to_train(workspace, protocol)
    with tempfile.TemporaryDirectory(prefix="madkit-") as folder:
        specs, impossible = specs_for(cells, Path(folder), load_protocol(protocol)[1].set)
        problems += [Problem(where, error.message, error.hint) for where, error in impossible]
        if not specs:
            return problems
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
        return
    console = Console(width=80)
    with console.capture() as capture:
        console.print(terminal(results))
    for line in capture.get().splitlines():
        print(line.rstrip())


def _print(results: Results, page: Path) -> None:
    from madkit.evaluate.report.terminal import next_step

    print_results(results)
    step = next_step(results)
    if step:
        print(f"Next: {step}")
    print(page)
