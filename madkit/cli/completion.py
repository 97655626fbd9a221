"""What the shell completes behind an option: arms, tasks, teachers, runs. Names come from folders and light tables.

While a command line is completed nothing is converted or checked, so that neither torch nor pydantic is imported.
Values that may be paths complete to nothing here where no name fits, and the shell goes on with files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import madkit
from madkit.core.workspace import Workspace

PACKAGE = Path(madkit.__file__).parent
TASKS = ("vcr", "snli-ve", "vqa")
SHOTS = ("1pct", "5pct", "10pct", "full")
DEVICES = ("auto", "cpu", "cuda")
Names = Callable[[Workspace], Iterable[str]]


def prepare(path: str, command: Any) -> None:
    """Make a Typer command ready to be completed: light values, and names behind its options; sub-commands as well.

    Args:
        path: the command as it is typed behind ``madkit``.
        command: Typer's object.
    """
    leave_as_given(command)
    for name, sub in getattr(command, "commands", {}).items():
        prepare(f"{path} {name}", sub)
    for parameter in command.params:
        name = str(parameter.name)
        names = _BY_COMMAND.get((path, name)) or _BY_NAME.get(name)
        if names is not None:
            _attach(parameter, names)


def leave_as_given(command: Any) -> None:
    """Keep Typer from building converters for a command's parameters, for which it imports pydantic.

    For commands whose values need no conversion: flags alone, or a line that is being completed. A Typer that has no
    such attribute goes its own, slower way.
    """
    original = command.get_help_option

    def get_help_option(ctx: Any) -> Any:  # --help is no parameter of the command, and made when it is parsed
        option = original(ctx)
        if option is not None:
            option._runtime_param = _AsGiven()
        return option

    command.get_help_option = get_help_option
    for parameter in command.params:
        parameter._runtime_param = _AsGiven()


class _AsGiven:
    """Stands in for Typer's conversion of one parameter."""

    def coerce(self, value: Any, *, param: Any, ctx: Any) -> Any:
        """Return the value; none of several is an empty tuple, as Typer has it."""
        return () if value is None and (param.multiple or param.nargs == -1) else value


def _attach(parameter: Any, names: Names) -> None:
    def complete(ctx: Any, param: Any, incomplete: str) -> list[str]:
        given = next((found for context in _up(ctx) if (found := context.params.get("workspace"))), None)
        try:
            workspace = Workspace.at(given)
            known = list(names(workspace))
        except Exception:  # a shell that completes has no place for an error
            return []
        before, comma, last = incomplete.rpartition(",")  # lists, where an option takes them
        return [f"{before}{comma}{name}" for name in known if name.startswith(last)]

    parameter._custom_shell_complete = complete


def _up(ctx: Any) -> Iterable[Any]:
    while ctx is not None:
        yield ctx
        ctx = ctx.parent


def _files(folder: str) -> Names:
    return lambda _: sorted(path.stem for path in (PACKAGE / folder).glob("*.yaml"))


def _constant(*names: str) -> Names:
    return lambda _: names


def _configurations(workspace: Workspace) -> Iterable[str]:
    for folder in ("distill/settings/arms", "distill/settings/recipes", "evaluate/protocols"):
        yield from _files(folder)(workspace)


def _tasks(workspace: Workspace) -> Iterable[str]:
    return dict.fromkeys([*TASKS, *_folders(workspace.data)])


def _folders(folder: Path) -> list[str]:
    """Names of what lies in a folder and has a manifest."""
    return sorted(path.parent.name for path in folder.glob("[!.]*/manifest.json"))


def _runs(workspace: Workspace) -> list[str]:
    names = (path.parent.name for path in workspace.runs.glob("*/*/manifest.json"))
    return sorted(name for name in names if not name.startswith((".", "pre-phase-")))


def _stores(workspace: Workspace) -> list[str]:
    return [] if workspace.cache_url is not None else _folders(workspace.cache)


def _teachers(_: Workspace) -> Iterable[str]:
    from madkit.teachers.known import KNOWN

    return KNOWN


def _students(_: Workspace) -> Iterable[str]:
    from madkit.students.known_sizes import KNOWN_SIZES

    return KNOWN_SIZES


def _adapters(workspace: Workspace) -> list[str]:
    return _folders(workspace.adapters)


def _reports(workspace: Workspace) -> list[str]:
    return sorted(path.parent.name for path in workspace.reports.glob("*/results.json"))


# By the name of an option or argument.
_BY_NAME: dict[str, Names] = {
    "arm": _files("distill/settings/arms"),
    "recipe": lambda workspace: ["paper", *_files("distill/settings/recipes")(workspace)],
    "protocol": _files("evaluate/protocols"),
    "task": _tasks,
    "shots": _constant(*SHOTS),
    "teacher": _teachers,
    "student": _students,
    "adapter": _adapters,
    "device": _constant(*DEVICES),
    "store": _stores,
    "run": _runs,
    "run_a": _runs,
    "run_b": _runs,
}
# Arguments whose name means another thing in every command.
_BY_COMMAND: dict[tuple[str, str], Names] = {
    ("teachers show", "name"): _teachers,
    ("teachers check", "name"): _teachers,
    ("students show", "name"): _students,
    ("students export", "source"): _runs,
    ("config show", "name"): _configurations,
    ("config init", "name"): _configurations,
    ("report", "protocol"): _reports,
}
