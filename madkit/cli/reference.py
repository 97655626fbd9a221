"""The command reference, written from the commands themselves.

``python -m madkit.cli.reference docs/commands.md`` writes the page; without a path it is printed. A test compares the
committed page with what the commands say.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from enum import Enum
from inspect import cleandoc
from pathlib import Path
from typing import Any

from typer.core import TyperGroup

from madkit.cli.app import load_command
from madkit.cli.commands import COMMANDS

HOW = "python -m madkit.cli.reference docs/commands.md"
INTRODUCTION = f"""\
# Commands

Every command says the same with `--help`. This page is written from the commands (`{HOW}`).

Results go to stdout, progress and messages to stderr; `--json` prints one JSON document in place of text. On a terminal
tables fit its width.

## Exit codes

| code | meaning |
|--:|---|
| 0 | done; also: nothing was left to do |
| 1 | an expected failure: one sentence on stderr, `Error: ...`, and mostly what to type next, `Try: ...` |
| 2 | wrong usage: an unknown command, option or name, or values that exclude each other |
| 3 | a verification ran to its end and found something wrong (`cache verify`, `data check`, ...) |
| 75 | stopped by a signal after saving; the same command goes on (EX_TEMPFAIL of sysexits.h) |
| 130 | Ctrl-C |

A name is wrong usage (2) where madkit knows all there can be: commands, options and their choices, tasks, splits and
suites, students, teachers, arms, recipes, protocols. What may exist and is not here is a failure (1): files and
folders, runs, caches, repositories on the hub, and the keys and values of a configuration (YAML, `--set`).

Where work has many parts (cells of an evaluation, images of an extraction) a part that fails does not stop the others:
all of them are done, what failed is named at the end, and the exit code is 1.

## Environment variables

| variable | what it does |
|---|---|
| `MADKIT_WORKSPACE` | the workspace, where no `--workspace` is given; else `./madkit-workspace` |
| `MADKIT_CACHE` | folder or URL of the token caches, where no `--cache` is given; else `cache` in the workspace |
| `MADKIT_CACHE_DIR` | mirrors of caches at URLs, and indexes of read-only region files; else `~/.cache/madkit` |
| `MADKIT_DEBUG` | `1`: an error's traceback comes before its sentence |
| `HF_HUB_OFFLINE` | `1`: the Hugging Face hub is never asked |
| `HF_TOKEN` | the hub's token, for `--push` of `madkit export` |
| `NO_COLOR` | no colours, on a terminal either |

## Shell completion

```
madkit --install-completion
```

installs it for the shell that it is typed in (bash, zsh, fish, PowerShell); `madkit --show-completion` prints the
script instead. Completed are commands, options, and the names behind them: arms, recipes, protocols, tasks, teachers,
students, and what the workspace holds (runs, caches, adapted teachers, reports). Nothing heavy is imported for it.
"""
_COMMON = ("--help", "--install-completion", "--show-completion")


def reference() -> str:
    """The whole page, as Markdown."""
    parts = [INTRODUCTION, *_overview()]
    for name in COMMANDS:
        parts.extend(_command(f"madkit {name}", load_command(name), 2))
    return "\n".join(part.rstrip() + "\n" for part in parts)


def _overview() -> Iterator[str]:
    panels = dict.fromkeys(line.panel for line in COMMANDS.values())
    for panel in panels:
        rows = [
            f"| [`{name}`](#madkit-{name}) | {_cell(line.help)} |"
            for name, line in COMMANDS.items()
            if line.panel == panel
        ]
        yield "\n".join([f"## {panel}", "", "| command | |", "|---|---|", *rows])


def _command(path: str, command: Any, level: int) -> Iterator[str]:
    """A command's section, and those of its sub-commands."""
    yield f"{'#' * min(level, 4)} {path}"
    yield _prose(command.help or "")
    if isinstance(command, TyperGroup):
        for name, sub in command.commands.items():
            yield from _command(f"{path} {name}", sub, level + 1)
        if command.epilog:
            yield _examples(command.epilog)
        return
    arguments = [one for one in command.params if not one.opts[0].startswith("-")]
    options = [one for one in command.params if one.opts[0].startswith("-") and one.opts[0] not in _COMMON]
    usage = " ".join([path, *(["[OPTIONS]"] if options else []), *(_metavar(one) for one in arguments)])
    yield f"```text\n{usage}\n```"
    if arguments:
        rows = [f"| `{_metavar(one)}` | {_cell(one.help or '')} |" for one in arguments]
        yield "\n".join(["| argument | |", "|---|---|", *rows])
    if options:
        rows = [f"| {_names(one)} | {_cell(_about(one))} | {_default(one)} |" for one in options]
        yield "\n".join(["| option | | default |", "|---|---|---|", *rows])
    if command.epilog:
        yield _examples(command.epilog)


def _prose(text: str) -> str:
    """A docstring's paragraphs as they are; Typer ends what it shows at a form feed."""
    return cleandoc(text.partition("\f")[0])


def _examples(epilog: str) -> str:
    """The calls of an epilog (see app.py) as one block."""
    calls = [line.strip().strip("`") for line in epilog.splitlines() if line.strip().startswith("`")]
    return "\n".join(["```", *calls, "```"])


def _names(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in sorted(option.opts, key=len, reverse=True))
    if getattr(option, "is_flag", False):
        return names + "".join(f", `{name}`" for name in option.secondary_opts)
    return f"{names} {_metavar(option)}"


def _metavar(parameter: Any) -> str:
    """What stands for its value; where it names none, its choices or TEXT."""
    if parameter.metavar:
        return str(parameter.metavar).replace("|", "\\|")
    choices = _choices(parameter)
    return "\\|".join(choices) if choices else "TEXT"


def _choices(parameter: Any) -> list[str]:
    # Typer's own class of values, and Click's of Typers before it
    descriptor = getattr(parameter, "type_descriptor", None) or getattr(parameter, "type", None)
    return [_plain(choice) for choice in getattr(descriptor, "choices", None) or ()]


def _about(option: Any) -> str:
    text = " ".join((option.help or "").split())
    if option.envvar:
        text += f" (`{option.envvar}`)"
    if getattr(option, "required", False):
        text += " **Needed.**"
    return text


def _default(option: Any) -> str:
    shown, value = getattr(option, "show_default", None), option.default
    if isinstance(shown, str):
        return _cell(shown)
    if value is None or value is False or value == "" or shown is False or callable(value):
        return ""
    return f"`{_plain(value)}`" if value is not True else "yes"


def _plain(value: object) -> str:
    return str(value.value if isinstance(value, Enum) else value)


def _cell(text: str) -> str:
    """Text of one table cell."""
    return " ".join(text.split()).replace("|", "\\|")


def main(arguments: list[str]) -> int:
    """Write the page into the file that is named, or print it."""
    if not arguments:
        print(reference(), end="")
        return 0
    Path(arguments[0]).write_text(reference(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
