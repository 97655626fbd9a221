"""Options that take one of a few values: what a wrong value is told, in every command."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Any, get_args

import pytest

from madkit.cli.app import load_command
from madkit.cli.commands import COMMANDS
from madkit.cli.main import main


def choices() -> Iterator[tuple[str, Any, type[Enum]]]:
    """Every option that takes a member of an enumeration, with the command it belongs to."""

    def walk(path: str, command: Any) -> Iterator[tuple[str, Any, type[Enum]]]:
        for name, sub in getattr(command, "commands", {}).items():
            yield from walk(f"{path} {name}", sub)
        for parameter in command.params:
            annotation = parameter.type_descriptor.annotation
            kind = (get_args(annotation) or (annotation,))[0]
            if isinstance(kind, type) and issubclass(kind, Enum):
                yield path, parameter, kind

    for name in COMMANDS:
        yield from walk(name, load_command(name))


CHOICES = list(choices())


def test_the_walk_finds_choices() -> None:
    found = {(path, parameter.opts[0]) for path, parameter, _ in CHOICES}
    assert {("report", "--format"), ("evaluate", "--precision"), ("teachers check", "--dtype")} <= found


@pytest.mark.parametrize(
    ("path", "parameter", "kind"), CHOICES, ids=[f"{path} {one.opts[0]}" for path, one, _ in CHOICES]
)
def test_a_slip_is_told_the_nearest_value_in_one_sentence(
    path: str, parameter: Any, kind: type[Enum], capsys: pytest.CaptureFixture[str]
) -> None:
    values = [str(member.value) for member in kind]
    right = max(values, key=len)
    slip = right[:-1] + ("x" if right[-1] != "x" else "y")
    option = parameter.opts[0]
    needed = sum(one.param_type_name == "argument" and one.required for one in _command(path).params)
    assert main([*path.split(), *["x"] * needed, option, slip]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    first, second = err.splitlines()
    assert first.startswith(f"Error: There is no {option} '{slip}'. Did you mean '")
    assert second == f"Try: {option} {', '.join(values[:-1])} or {values[-1]}"


def test_right_values_arrive_as_members_and_several_as_a_list() -> None:
    for _, parameter, kind in CHOICES:
        member = list(kind)[-1]
        several = parameter.multiple
        given = [member.value] if several else member.value
        found = parameter._runtime_param.coerce(given, param=parameter, ctx=None)
        assert found == ([member] if several else member)
        assert all(isinstance(one, kind) for one in (found if several else [found]))
        assert not parameter._runtime_param.coerce(None, param=parameter, ctx=None)
        assert several or parameter._runtime_param.coerce(member, param=parameter, ctx=None) is member


def test_help_shows_the_values(capsys: pytest.CaptureFixture[str]) -> None:
    for path, parameter, kind in CHOICES:
        assert main([*path.split(), "--help"]) == 0
        printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
        words = printed[printed.index(parameter.opts[0]) :]
        for member in kind:
            assert str(member.value) in words, (path, parameter.opts)


def _command(path: str) -> Any:
    first, *rest = path.split()
    command = load_command(first)
    for name in rest:
        command = command.commands[name]
    return command
