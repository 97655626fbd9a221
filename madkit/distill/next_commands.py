"""What to type after a run, for its summary, which is read where nobody knows how the run was asked for."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from madkit.distill.asked import Asked


def next_commands(asked: Asked) -> list[tuple[str, str]]:
    """Commands for a run's summary with what each is for: its score on the test suites, and the same with another seed.

    The second repeats every name and setting that the run was asked for by, so that the two runs are of one arm; it is
    left out where the arm's file will be gone. Both name workspace and cache where a call without them would look
    elsewhere.
    """
    places = asked.workspace.options()
    evaluate = ["madkit", "evaluate", *places]
    found = [(shlex.join(evaluate), "this run and its neighbours on every test suite, with intervals")]
    if not _is_temporary(asked.names.arm):
        found.append((shlex.join(["madkit", "distill", *_same(asked), *places]), "one seed is no measurement"))
    return found


def _is_temporary(arm: str) -> bool:
    """Whether an arm is a temporary file, as `evaluate --train-missing` writes of what a cell is told."""
    path = Path(arm)
    return path.is_absolute() and path.resolve().is_relative_to(Path(tempfile.gettempdir()).resolve())


def _same(asked: Asked) -> Iterator[str]:
    names = asked.names
    yield from ("--task", names.task, "--shots", names.shots, "--arm", names.arm)
    if names.student is not None:
        yield from ("--student", str(names.student))
    if names.init is not None:
        yield from ("--init", names.init)
    if names.recipe is not None:
        yield from ("--recipe", names.recipe)
    teachers = [asked.teacher] if isinstance(asked.teacher, str) else asked.teacher or []
    for teacher in teachers:
        yield from ("--teacher", teacher)
    for key, value in (names.overrides or {}).items():
        yield from ("--set", f"{key}={_yaml(value)}")
    yield from ("--seed", str(asked.seed + 1))


def _yaml(value: Any) -> str:
    """A value as `--set` reads it again."""
    text = yaml.safe_dump(_plain(value), default_flow_style=True, width=10**6)
    return text.removesuffix("...\n").strip()


def _plain(value: Any) -> Any:
    """A value as YAML knows it; a library call may give one of NumPy, or typed settings."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if hasattr(value, "tolist"):  # arrays and numbers of NumPy and torch
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(one) for one in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
