"""The cells of a protocol's grid that have no run: named in every report, and given on to be trained."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from madkit.core.errors import MadkitError, NotFoundError
from madkit.evaluate.grid import LONG, PERMUTED, Group, Problem, Run, arm_order, find_runs, group_runs, shots_order
from madkit.evaluate.protocol import Protocol, load_protocol

if TYPE_CHECKING:
    from madkit.core.workspace import Workspace


@dataclass(frozen=True)
class MissingCell:
    """A cell without a complete run.

    `task` is what `--task` takes. `source`, `revision` and `student` are None where the workspace holds no run of the
    task, the others where the protocol leaves the axis open besides. `like` are the runs of the same arm whose settings
    the cell should have, of the same number of labels where there are such; `teacher` the one whose cache they read.
    Without such runs `beside` are those of another arm that it will be compared with: it should train as long as they.
    """

    task: str
    source: str | None = None
    revision: str | None = None
    is_mini: bool = False
    student: str | None = None
    shots: str | None = None
    arm: str | None = None
    seed: int | None = None
    teacher: str | None = None
    like: tuple[Run, ...] = ()
    beside: tuple[Run, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For the results document."""
        told = {name: getattr(self, name) for name in ("task", "source", "student", "shots", "arm", "seed")}
        return {**told, "steps": self.steps}

    @property
    def steps(self) -> int | None:
        """How many steps the runs made that it is like or beside; None where nobody says."""
        return next((run.steps for run in (*self.like, *self.beside)), None)

    @property
    def place(self) -> str:
        """For messages."""
        parts = [self.source or self.task, self.shots, self.arm, None if self.seed is None else f"seed {self.seed}"]
        return " ".join(part for part in parts if part)


def missing_cells(groups: Sequence[Group], protocol: Protocol) -> list[MissingCell]:
    """Cells of the grid without a complete run, per source and student.

    An axis that the protocol leaves open ("any") spans the values found in the workspace. A task without any run is one
    cell that names nothing else, unless the protocol names all of shots, arms and seeds.
    """
    tables: dict[tuple[str, str], list[Group]] = defaultdict(list)
    for group in groups:
        tables[group.first.table].append(group)
    missing: list[MissingCell] = []
    for there in tables.values():
        students = _axis(protocol.students, {group.first.student for group in there}, str)
        for student in students:
            missing += _of_student(student, there, protocol)
    found = {name for group in groups for name in (group.first.task, group.first.source)}
    for task in () if protocol.tasks == "any" else protocol.tasks:
        if task in found:
            continue
        if protocol.shots == "any" or protocol.arms == "any" or protocol.seeds == "any":
            missing.append(MissingCell(task))
            continue
        named: list[str | None] = [None] if protocol.students == "any" else [*protocol.students]
        missing += [
            MissingCell(task, student=student, shots=shots, arm=arm, seed=seed)
            for student, shots, arm, seed in product(named, protocol.shots, protocol.arms, protocol.seeds)
        ]
    return missing


def _of_student(student: str, there: Sequence[Group], protocol: Protocol) -> list[MissingCell]:
    """The missing cells of one source and student; `there` are the source's groups, of this student and others."""
    own = [group for group in there if group.first.student == student] or list(there)
    shots = _axis(protocol.shots, {group.first.shots for group in own}, shots_order)
    arms = _axis(protocol.arms, {group.first.arm for group in own} | {protocol.baseline}, arm_order)
    seeds = sorted({seed for group in own for seed in group.seeds}) if protocol.seeds == "any" else protocol.seeds
    held = {(run.student, run.shots, run.arm, run.seed) for group in own for run in group.runs}
    first = own[0].first
    missing = []
    for one, arm, seed in product(shots, arms, seeds):
        if (student, one, arm, seed) in held:
            continue
        like = _like(own, student, one, arm)
        beside = None if like is not None else _beside(own, student, one, protocol.baseline)
        missing.append(
            MissingCell(
                # a data set goes by its own name, the embedded benchmark by the task's
                task=first.task if first.is_mini else first.source,
                source=first.source,
                revision=first.revision,
                is_mini=first.is_mini,
                student=student,
                shots=one,
                arm=arm,
                seed=int(seed),
                teacher=like.first.teacher if like is not None else _only_teacher(own),
                like=like.runs if like is not None else (),
                beside=beside.runs if beside is not None else (),
            )
        )
    return missing


def _like(groups: Sequence[Group], student: str, shots: str, arm: str) -> Group | None:
    """The experiment of that arm with most runs, with the same number of labels where there is one."""
    same = [group for group in groups if (group.first.student, group.first.arm) == (student, arm)]
    return max(same, key=lambda group: (group.first.shots == shots, len(group.runs), group.label), default=None)


def _beside(groups: Sequence[Group], student: str, shots: str, baseline: str) -> Group | None:
    """The baseline with as many labels, or another arm; none where there is none, or several that train unequally."""
    there = [group for group in groups if (group.first.student, group.first.shots) == (student, shots)]
    usual = [group for group in there if group.first.arm == baseline]
    usual = usual or [group for group in there if group.first.arm.removesuffix(PERMUTED) != LONG]
    return usual[0] if len({group.first.steps for group in usual}) == 1 else None


def _only_teacher(groups: Sequence[Group]) -> str | None:
    """The teacher of the other runs, where they have one and the same."""
    teachers = {group.first.teacher for group in groups if group.first.teacher and not group.first.adaptation}
    return teachers.pop() if len(teachers) == 1 else None


def _axis(wanted: Any, found: set[str], order: Callable[[str], Any]) -> list[str]:
    return sorted(found, key=order) if wanted == "any" else list(wanted)


def cells_to_train(workspace: Workspace, protocol: str) -> tuple[list[MissingCell], list[Problem]]:
    """The missing cells of a protocol that a training of now would fill, and why the others cannot be filled.

    A run belongs to one revision of its data: where the workspace holds another one by now, or an imported benchmark in
    place of the embedded one, training would not fill the cell.

    Raises what `evaluate` does for protocols, and NotFoundError where neither runs nor the protocol say what to train.
    """
    _, wanted = load_protocol(protocol)
    groups: list[Group] = []
    absent: NotFoundError | None = None
    try:
        groups = group_runs(find_runs(workspace, wanted)[0])
    except NotFoundError as error:
        absent = error
    cells: list[MissingCell] = []
    problems: list[Problem] = []
    for cell in missing_cells(groups, wanted):
        try:
            problem = _obstacle(workspace, cell)
        except MadkitError as error:
            problem = Problem(cell.place, error.message, error.hint)
        if problem is None:
            cells.append(cell)
        else:
            problems.append(problem)
    if absent is not None and not cells and not problems:
        raise NotFoundError(
            "There are no runs that could tell what the protocol leaves open.",
            hint="name tasks, shots, arms and seeds in a protocol of your own, or train a run: madkit distill",
        )
    return cells, problems


def _obstacle(workspace: Workspace, cell: MissingCell) -> Problem | None:
    from madkit.tasks.data import open_task

    if cell.arm is None:
        words = "The protocol does not say what to train here, and no run of the task is there to tell."
        return Problem(cell.place, words, f"name shots, arms and seeds, or: madkit distill --task {cell.task}")
    if cell.source is None:
        return None
    data = open_task(workspace, cell.task, build=False, part="auto")
    if (data.source, data.revision) == (cell.source, cell.revision):
        return None
    return Problem(
        cell.place,
        f"Its runs belong to {cell.source}, revision {cell.revision}; the workspace trains on {data.source}, revision "
        f"{data.revision}, now.",
        "train all arms again on the data that is there, or put the other back",
    )
