"""The list of shifts, and the way from a name to what it makes."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, cast

from madkit.core.errors import UsageProblem
from madkit.core.registry import suggest
from madkit.shifts.interface import Builder, Made, Shift, ShiftOptions

if TYPE_CHECKING:
    from madkit.core.workspace import Workspace
    from madkit.tasks.data import TaskData

SHIFTS: dict[str, Shift] = {
    shift.name: shift
    for shift in (
        Shift(
            "shortcut-singular",
            "vcr",
            "questions about one person, tags and pronouns of the choices exchanged (suite test-shortcut-singular)",
            "madkit.shifts.shortcut:build_singular",
        ),
        Shift(
            "shortcut-plural",
            "vcr",
            "questions about one group of people, groups and 'they' exchanged (suite test-shortcut-plural)",
            "madkit.shifts.shortcut:build_plural",
        ),
        Shift(
            "masked",
            "vcr",
            "the tokens that a text-only scorer leans on most are masked, or all others (suites test-adv-top-1, "
            "test-keep-top-1, test-keep-top-3, test-keep-top-5)",
            "madkit.shifts.masked.build:build",
            trains=True,
        ),
        Shift(
            "source",
            "vcr",
            "train on LSMDC films and test on MovieClips, and the reverse (datasets <name>-lsmdc, <name>-movieclips)",
            "madkit.shifts.source:build",
        ),
        Shift(
            "hypothesis-hard",
            "snli-ve",
            "the pairs that a classifier of the hypothesis alone gets wrong (suite test-hypothesis-hard) and "
            "the others (test-hypothesis-easy)",
            "madkit.shifts.hypothesis_hard:build",
            trains=True,
        ),
        Shift(
            "snli-overlap",
            "snli-ve",
            "the dev and test pairs that lie in SNLI's train split (a list of pairIDs)",
            "madkit.shifts.snli_overlap:build",
        ),
    )
}


def get_shift(name: str, task: str) -> Shift:
    """The shift of that name for data of that task.

    Raises UsageProblem, with the nearest name, for a name that does not exist or that belongs to another task.
    """
    ours = [shift.name for shift in SHIFTS.values() if shift.task == task]
    hint = f"one of: {', '.join(ours)}" if ours else f"shifts exist for: {', '.join(sorted(_tasks()))}"
    shift = SHIFTS.get(name)
    if shift is None:
        raise UsageProblem(f"There is no shift {name!r}.{suggest(name, ours or SHIFTS)}", hint=hint)
    if shift.task != task:
        raise UsageProblem(f"The shift '{name}' is made from data of the task {shift.task}, not {task}.", hint=hint)
    return shift


def _tasks() -> set[str]:
    return {shift.task for shift in SHIFTS.values()}


def make_shift(workspace: Workspace, data: TaskData, name: str, options: ShiftOptions | None = None) -> list[Made]:
    """Make a shift from a task's data and return what there is now; finished parts are found and not made again.

    Raises:
        UsageProblem: no such shift for this task.
        MadkitError: whatever the data lacks; nothing half-made is left.
    """
    shift = get_shift(name, data.spec.name)
    module, _, attribute = shift.target.partition(":")
    builder = cast(Builder, getattr(import_module(module), attribute))
    return builder(workspace, data, options or ShiftOptions())
