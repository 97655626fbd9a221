"""The table of commands: what ``madkit --help`` lists without importing any of them.

A command module defines a plain Typer-style function, or ``app = typer.Typer(...)`` for one with sub-commands. It may
define ``EXAMPLES``, a text that is shown below its help.
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
    "env": CommandLine("madkit.cli.env:env", "Print versions and hardware, ready to paste into an issue.", INSPECT),
}
