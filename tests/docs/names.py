"""The names behind options: arms, recipes, protocols, teachers, students, and the keys of ``--set``.

Words in capitals stand for something of the reader's; so do paths, and names that begin with "my-".
"""

from __future__ import annotations

import re
from typing import Any

from madkit.adapt.config import load_adapt_config
from madkit.distill.settings.arms import load_arm, parse_overrides
from madkit.distill.settings.recipes import load_recipe
from madkit.evaluate.protocol import load_protocol
from madkit.students.families import full_name
from madkit.teachers.known import parse_teacher_name

OF_THE_READER = re.compile(r"[A-Z_]+|my-.*|.*-[0-9a-f]{8,12}")
A_PATH = re.compile(r"\.{0,2}/.*|.*\.ya?ml")


def check_names(command: str, given: dict[str, Any]) -> None:
    """Raise a MadkitError, with the nearest name, for a name or a key that madkit does not have.

    `command` is its full name ("data import"), `given` its parsed parameters.
    """
    teachers = _names(given, "teacher") + (_names(given, "name") if command.startswith("teachers ") else [])
    for teacher in teachers:
        parse_teacher_name(teacher)
    students = _names(given, "student") if command == "distill" else []
    for student in students + (_names(given, "name") if command == "students show" else []):
        full_name(student)
    for recipe in _names(given, "recipe"):
        if recipe != "paper":
            load_recipe(recipe)
    for protocol in _names(given, "protocol") if command == "evaluate" else []:
        load_protocol(protocol)
    overrides = parse_overrides(list(given.get("set_") or []))
    if command == "adapt":
        load_adapt_config(None, overrides)
    elif command == "distill":
        for arm in _names(given, "arm") or ["mad"]:
            load_arm(arm, overrides)


def _names(given: dict[str, Any], parameter: str) -> list[str]:
    value = given.get(parameter)
    found = [value] if isinstance(value, str) else list(value or [])
    return [name for name in found if not OF_THE_READER.fullmatch(name) and not A_PATH.fullmatch(name)]
