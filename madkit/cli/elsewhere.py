"""Suggested commands go to the workspace and cache that the user has named, and not to the ones that are the default.

Errors, messages and results name the next command without saying where: what a library raises knows nothing of a
command line. Where they are printed, each ``madkit ...`` in them gets the ``--workspace`` and ``--cache`` that this
call was given, if that command takes them. What came from the environment needs no saying: the next command sees it.
"""

from __future__ import annotations

import re
import shlex
from typing import Any

from madkit.cli.app import load_command
from madkit.cli.commands import COMMANDS

# A command in a sentence. "its madkit distill command" speaks of one that was typed before, options and all.
_COMMAND = re.compile(rf"(?<![\w./-])madkit (?:{'|'.join(COMMANDS)})(?![\w/-])(?! command\b)")
_given: dict[str, str] = {}


def forget() -> None:
    """Begin a new call."""
    _given.clear()


def remember(ctx: Any, param: Any, value: Any) -> Any:
    """Typer's callback of an option: keep a value that stands on the command line. Returns it as it is."""
    source = ctx.get_parameter_source(param.name)
    if value is not None and source is not None and source.name == "COMMANDLINE":
        _given[param.opts[0]] = str(value)
    return value


def placed(text: str) -> str:
    """``text`` with the given places in every command that takes them and names none.

    They stand right behind the command's name: where a command ends, and the sentence goes on, cannot be told.
    """
    if not _given:
        return text
    starts = [found.start() for found in _COMMAND.finditer(text)]
    pieces = [text[begin:end] for begin, end in zip([0, *starts], [*starts, len(text)], strict=True)]
    return pieces[0] + "".join(_with_places(piece) for piece in pieces[1:])


def _with_places(piece: str) -> str:
    """``piece`` begins with a command and goes on to the next one."""
    plain = re.match(r"[\w-]+(?: [\w-]+)*", piece)
    _, name, *rest = re.finditer(r"[\w-]+", plain.group() if plain else piece)
    command = load_command(name.group())
    for word in rest:
        if word.group() not in getattr(command, "commands", {}):
            break
        name, command = word, command.commands[word.group()]
    takes = {option for parameter in command.params for option in parameter.opts}
    more = [
        f" {option} {shlex.quote(value)}"
        for option, value in _given.items()
        if option in takes and not re.search(rf"{option}\b", piece)
    ]
    return piece[: name.end()] + "".join(more) + piece[name.end() :]
