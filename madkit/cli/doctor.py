"""``madkit doctor``: is everything in order, and what mends what is not."""

from __future__ import annotations

import os
import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

from madkit.cli.elsewhere import placed
from madkit.cli.options import CacheOption, JsonOption, WorkspaceOption
from madkit.cli.output import emit

if TYPE_CHECKING:
    from madkit.doctor.stage import Examination

EXAMPLES = """
madkit doctor
madkit doctor --workspace /data/madkit --deep
madkit doctor --json
"""
WIDTH = 80
_COLOURS = {"PASS": "green", "WARN": "yellow", "FAIL": "red"}


def doctor(
    deep: Annotated[
        bool, typer.Option("--deep", help="Also read every byte of caches and students, and check the data: minutes.")
    ] = False,
    cache: CacheOption = None,
    workspace: WorkspaceOption = None,
    json_: JsonOption = False,
) -> None:
    """Check versions, machine, disk, hub and the workspace, and say how to mend what is wrong.

    Exits 1 where anything failed; warnings alone are no failure. Only a temporary folder in an existing workspace is
    written, and removed again.
    """
    from madkit.core.workspace import Workspace
    from madkit.doctor.stage import examine

    found = examine(Workspace.at(workspace, cache=cache), deep=deep)
    emit(found.document(), json_, lambda: _print(found))
    if not found.ok:
        raise typer.Exit(1)


def _print(found: Examination) -> None:
    from madkit.doctor.findings import counts

    plain = bool(os.environ.get("NO_COLOR"))
    group = ""
    for one in found.findings:
        if one.group != group:
            typer.echo(("\n" if group else "") + one.group.capitalize())
            group = one.group
        lines = textwrap.wrap(f"{one.name}: {one.detail}", WIDTH - 8, break_long_words=False, break_on_hyphens=False)
        status = one.status.value if plain else typer.style(one.status.value, fg=_COLOURS[one.status.value])
        typer.echo(f"  {status}  {lines[0]}")
        for line in lines[1:]:
            typer.echo(f"        {line}")
        if one.mend:
            typer.echo(f"        mend: {placed(one.mend)}")  # never wrapped, so that it can be copied
    told = ", ".join(f"{number} {status}" for status, number in counts(found.findings).items())
    typer.echo(f"\n{told} in {found.seconds:.1f} s")
