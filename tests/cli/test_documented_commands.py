"""Every madkit command that the documentation types is one that the program takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.core import TyperGroup

from madkit.cli.app import load_command
from madkit.cli.commands import COMMANDS

ROOT = Path(__file__).parents[2]


def typed_commands(text: str) -> list[str]:
    """Return the madkit calls of fenced blocks, one per line or after ``&&``, and of `inline code`.

    A block marked ``text`` is what a program printed: only its lines behind a ``$`` were typed.
    """
    calls: list[str] = []
    for number, part in enumerate(text.split("```")):
        if number % 2:
            language, _, body = part.partition("\n")
            lines = body.replace("\\\n", " ").splitlines()
            if language.strip() == "text":
                lines = [line for line in lines if line.startswith("$ ")]
            calls += [piece.strip() for line in lines for piece in line.removeprefix("$ ").split("&&")]
        else:
            calls += re.findall(r"`([^`\n]+)`", part)
    calls = [re.split(r"\s+(?:#|->|>|\|)\s", f"{call} ")[0].strip() for call in calls]
    return [call for call in calls if call.startswith("madkit ") and call.split()[1].islower()]


DOCUMENTED = [
    pytest.param(call, id=f"{path.name}: {call}")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    for call in sorted(set(typed_commands(path.read_text(encoding="utf-8"))))
]


def test_the_reader_finds_what_is_typed() -> None:
    block = "pip install -e . && madkit demo\nmadkit cache \\\n  list   # comment"
    text = f"See `madkit env`, `x`.\n```\n{block}\n```\n`madkit COMMAND`"
    assert typed_commands(text) == ["madkit env", "madkit demo", "madkit cache    list"]
    assert typed_commands("```text\n$ madkit env\nmadkit fp32   1.76   1.00x\n```") == ["madkit env"]
    assert DOCUMENTED


@pytest.mark.parametrize("call", DOCUMENTED)
def test_documented_calls_parse(call: str) -> None:
    name, *arguments = shlex.split(call)[1:]
    if name.startswith("--"):
        return
    assert name in COMMANDS, f"there is no command {name}"
    command, context = load_command(name), None
    if not arguments:
        return  # names the command, whatever options it needs
    while isinstance(command, TyperGroup):
        context = command.make_context(name, list(arguments), parent=context)
        name, command, arguments = command.resolve_command(context, arguments)
    command.make_context(name, arguments, parent=context)  # parses and checks values, runs nothing
