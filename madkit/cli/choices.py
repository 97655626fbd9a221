"""Options with a few values to choose from: what a value that is none of them is told, everywhere the same."""

from __future__ import annotations

from enum import Enum
from typing import Any, get_args

from madkit.core.errors import UsageProblem
from madkit.core.registry import suggest


def name_near_misses(command: Any) -> None:
    """Let every choice of a Typer command, and of its sub-commands, name the nearest value for a wrong one.

    A Typer that keeps conversion elsewhere goes its own way: the same exit code, without the nearest.

    Args:
        command: Typer's object.
    """
    for sub in getattr(command, "commands", {}).values():
        name_near_misses(sub)
    for parameter in command.params:
        kind = _kind(parameter)
        if kind is not None:
            parameter._runtime_param = _Choice(kind)


def _kind(parameter: Any) -> type[Enum] | None:
    """The enumeration of which an option takes one member, or several; None for all others."""
    descriptor = getattr(parameter, "type_descriptor", None)
    annotation = getattr(descriptor, "annotation", None)
    kind = next(iter(get_args(annotation)), annotation)  # of list[Kind], its members'
    return kind if isinstance(kind, type) and issubclass(kind, Enum) else None


class _Choice:
    """Stands in for Typer's conversion of one parameter."""

    def __init__(self, kind: type[Enum]) -> None:
        self._kind = kind

    def coerce(self, value: Any, *, param: Any, ctx: Any) -> Any:
        """The member, or the list of them. Raises UsageProblem for a value that is none."""
        several = param.multiple or param.nargs == -1
        if value is None:
            return () if several else None
        return [self._member(one, param) for one in value] if several else self._member(value, param)

    def _member(self, value: Any, param: Any) -> Enum:
        known = [str(member.value) for member in self._kind]
        if not isinstance(value, Enum) and value not in known:
            option = max(param.opts, key=len)
            *others, last = known
            raise UsageProblem(
                f"There is no {option} '{value}'.{suggest(str(value), known)}",
                hint=f"{option} {', '.join(others)} or {last}",
            )
        return self._kind(value)
