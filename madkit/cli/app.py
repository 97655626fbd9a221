"""Assembles the Typer application from the table of commands, importing a command only when it is called."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup
from typer.main import get_command, get_group

from madkit import __version__
from madkit.cli.choices import name_near_misses
from madkit.cli.commands import COMMANDS, CommandLine
from madkit.cli.completion import leave_as_given, prepare

MARKUP: Literal["markdown"] = "markdown"  # unlike Rich's markup, it leaves "[person1]" alone and joins wrapped lines
EPILOG = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 verification failed, 75 stopped but resumable, 130 Ctrl-C."


class LazyGroup(TyperGroup):
    """A group that holds a stub per command, for listing, and swaps the called one for the real command."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Find the command that ``args`` name, as Typer does, and import it."""
        name, command, rest = super().resolve_command(ctx, args)
        if name in COMMANDS:
            command = load_command(name)
            if ctx.resilient_parsing:  # a shell asks how the line could go on
                prepare(name, command)
        return name, command, rest


def load_command(name: str) -> Any:
    """Import a command of the table and return its Typer command object."""
    line = COMMANDS[name]
    module_name, _, attribute = line.target.partition(":")
    module = import_module(module_name)
    target = getattr(module, attribute)
    epilog = _epilog(getattr(module, "EXAMPLES", ""))
    if isinstance(target, typer.Typer):
        target.rich_markup_mode = MARKUP
        group = get_group(target)
        group.epilog = group.epilog or epilog
        _leave_groups_as_given(group)
        name_near_misses(group)
        return group
    single = typer.Typer(add_completion=False, rich_markup_mode=MARKUP)
    single.command(name, epilog=epilog)(target)
    command = get_command(single)
    name_near_misses(command)
    return command


def _leave_groups_as_given(group: Any) -> None:
    """Groups have no parameters but --help; values of commands are converted."""
    leave_as_given(group)
    for command in group.commands.values():
        if isinstance(command, TyperGroup):
            _leave_groups_as_given(command)


def _epilog(examples: str) -> str | None:
    """Return example calls, one per line, as the text below a command's help."""
    lines = [f"`{line.strip()}`" for line in examples.splitlines() if line.strip()]
    # two spaces before a newline break the line in Markdown, which would join them otherwise
    return "Examples:\n\n" + "  \n".join(lines) if lines else None


def build_app() -> typer.Typer:
    """Return the application with one stub per line of the table."""
    app = typer.Typer(
        cls=LazyGroup,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=MARKUP,
        context_settings={"help_option_names": ["--help", "-h"]},
    )
    app.callback(epilog=EPILOG)(root)
    for name, line in COMMANDS.items():
        app.command(name, help=line.help, rich_help_panel=line.panel)(_stub(line))
    return app


def _stub(line: CommandLine) -> Any:
    def stub() -> None:
        raise NotImplementedError(f"stub of {line.target} was called")

    return stub


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"madkit {__version__}")
        raise typer.Exit


def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Distil frozen unimodal teachers into vision-language students, from token caches.

    **extract** reads images and texts once, **distill** fine-tunes a student against what was read, and **evaluate**
    scores every run on every test suite. **demo** does all three on the embedded benchmark in minutes.
    """
