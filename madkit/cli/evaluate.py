"""``madkit evaluate``: every run on every suite, to a table with intervals."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from madkit.cli.options import JsonOption, WorkspaceOption
from madkit.cli.output import emit

if TYPE_CHECKING:
    from madkit.evaluate.results import Results

EXAMPLES = """
madkit evaluate --protocol full
madkit evaluate --protocol low-shot --json
madkit evaluate --protocol my-protocol.yaml
madkit evaluate --vqa-rule pre2021
"""


class Rule(StrEnum):
    """Versions of VQA's official accuracy."""

    current = "current"
    pre2021 = "pre2021"


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
    workspace: WorkspaceOption = None,
    json_: JsonOption = False,
) -> None:
    """Score every run of the workspace on every test suite and compare the arms.

    What has a result already is not scored again. The report, an HTML page with JSON, CSV and Markdown beside it, goes
    into `reports/` of the workspace. Cells that fail are named at the end (exit code 1); all others are there.

    With `--vqa-rule pre2021` the answers that are there are scored by the older rule, without running a student, and
    the report goes into a folder of its own.
    """
    from madkit.core.console import warn
    from madkit.core.workspace import Workspace
    from madkit.evaluate.report import write_report
    from madkit.evaluate.stage import evaluate as run

    place = Workspace.at(workspace)
    results = run(place, protocol, device=device, vqa_rule=vqa_rule.value)
    folder = results.protocol if vqa_rule is Rule.current else f"{results.protocol}-{vqa_rule.value}"
    page = write_report(place.reports / folder, results)
    emit({**results.document(), "report": str(page)}, json_, lambda: _print(results, page))
    for problem in results.problems:
        hint = f" Try: {problem['hint']}" if problem["hint"] else ""
        warn(f"{problem['where']}: {problem['error']}{hint}")
    if results.problems:
        raise typer.Exit(1)


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
