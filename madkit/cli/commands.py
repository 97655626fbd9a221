"""The table of commands: what ``madkit --help`` lists without importing any of them.

A command module defines a plain Typer-style function, or ``app = typer.Typer(...)`` for one with sub-commands. It may
define ``EXAMPLES``, calls one per line, which are shown below its help.
"""

from __future__ import annotations

from typing import NamedTuple

PIPELINE = "The way of the data"
INSPECT = "Look around"


class CommandLine(NamedTuple):
    """Where a command lives and its line in the overview."""

    target: str
    help: str
    panel: str


COMMANDS: dict[str, CommandLine] = {
    "demo": CommandLine("madkit.cli.demo:demo", "All three stages on the embedded benchmark, in minutes.", PIPELINE),
    "adapt": CommandLine(
        "madkit.cli.adapt:adapt", "Fine-tune a teacher on the training subset, before it reads.", PIPELINE
    ),
    "extract": CommandLine(
        "madkit.cli.extract:extract", "Read images and texts with a frozen teacher, into a token cache.", PIPELINE
    ),
    "distill": CommandLine(
        "madkit.cli.distill:distill", "Fine-tune a student, with or without a teacher's tokens.", PIPELINE
    ),
    "evaluate": CommandLine(
        "madkit.cli.evaluate:evaluate", "Score every run on every test suite, with intervals and a report.", PIPELINE
    ),
    "predict": CommandLine(
        "madkit.cli.predict:predict", "Write a trained student's answers, in official formats.", PIPELINE
    ),
    "score": CommandLine("madkit.cli.score:score", "Score anyone's answers with the official metrics.", PIPELINE),
    "export": CommandLine(
        "madkit.cli.export:export", "A trained student as a folder to share, or on the hub.", PIPELINE
    ),
    "compare": CommandLine(
        "madkit.cli.compare:compare", "Two runs on the same questions: differences and where they differ.", INSPECT
    ),
    "report": CommandLine("madkit.cli.report:report", "Print an evaluation's table in another format.", INSPECT),
    "data": CommandLine("madkit.cli.data:app", "Import benchmarks and your own questions; list, show, check.", INSPECT),
    "teachers": CommandLine("madkit.cli.teachers:app", "List and describe teachers.", INSPECT),
    "students": CommandLine("madkit.cli.students:app", "List, describe, convert and export students.", INSPECT),
    "cache": CommandLine("madkit.cli.cache:app", "List, inspect, verify, repair and remove token caches.", INSPECT),
    "bench": CommandLine("madkit.cli.bench:app", "Measure madkit on this machine, against peers.", INSPECT),
    "config": CommandLine(
        "madkit.cli.config:app", "Read, copy out and check configurations: arms, recipes, protocols.", INSPECT
    ),
    "doctor": CommandLine("madkit.cli.doctor:doctor", "Check this machine and a workspace; say what mends.", INSPECT),
    "env": CommandLine("madkit.cli.env:env", "Print versions and hardware, ready to paste into an issue.", INSPECT),
}
