"""What a run is asked for: names checked, data opened, subset, student and teachers found, its folder known.

Nothing is trained here, so that whoever only wants to know whether a run is complete can ask, as a sweep does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from madkit.cache import TokenCache, choose_cache
from madkit.core.console import info
from madkit.core.errors import UsageProblem
from madkit.core.files import digest_of, sha256_file
from madkit.core.workspace import Workspace
from madkit.distill.batches.answers import head_for
from madkit.distill.batches.sight import Start, beginning, kept_start, sees_with, sight_of
from madkit.distill.loop.trackers import check_trackers
from madkit.distill.runs.folder import RunFolder, RunIdentity
from madkit.distill.settings.arms import load_arm
from madkit.distill.settings.config import DistillConfig, resolve
from madkit.distill.settings.recipes import PAPER, load_recipe
from madkit.distill.teacher.run_teachers import Named, name_teachers, open_teachers, with_teachers
from madkit.distill.teacher.teachers import Teachers, teacher_name
from madkit.students.heads import HeadSpec
from madkit.students.load import student_folder
from madkit.students.setup import setup_in
from madkit.students.start import check_start
from madkit.tasks.data import TaskData, check_task_name, open_task
from madkit.tasks.example import Example
from madkit.tasks.id_lists import labelled_examples
from madkit.tasks.shots import parse_shots

MINI_STUDENT = "mini-uniter"


@dataclass(frozen=True, slots=True)
class Names:
    """What a run is asked for by, checked as far as can be done before anything is built or read.

    Attributes:
        task: name of a task or data set.
        shots: as it is written in folder names.
        arm: name of a shipped arm or path of a YAML file.
        student: name or folder; None: the mini student, on mini data.
        init: what a student without weights of its own begins with.
        recipe: name or path of a paper's settings, or None.
        overrides: dotted keys of `DistillConfig` to values.
        config: the arm with its overrides.
    """

    task: str
    shots: str
    arm: str
    student: str | Path | None
    init: str | None
    recipe: str | None
    overrides: Mapping[str, Any] | None
    config: DistillConfig


def check_names(
    workspace: Workspace,
    *,
    task: str,
    shots: str,
    arm: str,
    student: str | Path | None = None,
    init: str | None = None,
    recipe: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Names:
    """The names of a run, where each means something. Arguments as for `stage.distill`.

    Raises:
        UsageProblem, ConfigError: names or values that cannot be meant, with the nearest ones that can.
        NotFoundError: a folder or file that is not there.
    """
    task = check_task_name(workspace, task)
    shots = str(parse_shots(shots))
    config = load_arm(arm, overrides)
    check_trackers(config.trackers)
    student = kept_start(workspace, student)
    check_start(str(student or MINI_STUDENT), init)
    if recipe is not None and recipe != PAPER:
        load_recipe(recipe)
    return Names(task, shots, arm, student, init, recipe, overrides, config)


class Asked:
    """A run that is known by all that decides its numbers; nothing of it is made. Close it: caches are open.

    Attributes:
        workspace, names, data, seed: as asked for; `teacher` is what the caller named, a name or several or None.
        train, labelled: examples of the train split, and those of them whose labels are used.
        named, teachers: whose caches are read; opened, or None for arms without a teacher.
        config: all settings, resolved.
        head: what the student decides between.
        start: name or folder of the student's first weights.
        setup: what decides its numbers beside the weights.
        sight, eyes: what the student sees with, and the cache whose tokens it sees, or None.
        folder: where the run lies, or will.
    """

    def __init__(
        self,
        workspace: Workspace,
        data: TaskData,
        names: Names,
        labelled: Sequence[Example],
        start: Start,
        named: Named,
        seed: int,
        config: DistillConfig,
        teacher: str | Sequence[str] | None = None,
    ) -> None:
        self.workspace = workspace
        self.names, self.teacher = names, teacher
        self.data = data
        self.seed = seed
        self.train: Sequence[Example] = data.examples("train")
        self.labelled = labelled
        self.named = named
        self.start = start.source
        config = resolve(config, task=data.spec.kind, n_examples=len(labelled), seed=seed)
        self.teachers: Teachers | None = None
        if config.needs_cache:
            unlabelled = len(labelled) < len(self.train)  # questions are labelled as a whole
            self.teachers = open_teachers(workspace, data, named, config, unlabelled=unlabelled)
        self.config = with_teachers(config, self.teachers)
        head = head_for(data.spec, self.train, answers=Path(config.answers) if config.answers else None)
        binary = head.kind == "multiple-choice" and config.choice_loss == "binary"
        self.head: HeadSpec = replace(head, binary=True) if binary else head
        folder = student_folder(start.source)
        self.sight = sight_of(folder)
        self.setup = setup_in(folder)
        self.eyes: TokenCache | None = None
        if self.sight == "teacher":  # the cache of an arm without a teacher, too
            self.eyes = choose_cache(workspace, data, named.first.store)
        known = [] if self.teachers is None else self.teachers.keys
        if self.eyes is not None:  # goes first: evaluation needs it
            known = list(dict.fromkeys([self.eyes.path.name, *known]))
        taught_by = None if self.eyes is None else teacher_name(self.eyes)
        identity = RunIdentity(
            task=data.spec.name,
            source=data.source,
            data_revision=data.revision,
            is_mini=data.is_mini,
            student=start.name,
            student_digest=_digest_of_file(folder / "model.safetensors"),
            arm=self.config.arm,
            shots=names.shots,
            seed=seed,
            teacher=taught_by if self.teachers is None else self.teachers.label,
            cache_key=", ".join(known) or None,
            examples=digest_of([example.id for example in labelled]),
            regions=data.region_digest(),
            confidence_cache=None if self.teachers is None else self.teachers.asked,
            student_setup=self.setup.own,
        )
        self.folder = RunFolder.of(workspace, identity, self.config, data.spec.to_dict())

    @property
    def identity(self) -> RunIdentity:
        """Everything that decides the run's numbers, but its configuration."""
        return self.folder.identity

    def close(self) -> None:
        """Let go of the caches."""
        for opened in (self.teachers, self.eyes):
            if opened is not None:
                opened.close()


def ask_for(
    workspace: Workspace,
    names: Names,
    *,
    teacher: str | Sequence[str] | None,
    seed: int,
    data: TaskData | None = None,
    part: str = "auto",
    turn: Callable[[], AbstractContextManager[object]] = nullcontext,
    say: Callable[[str], None] = info,
) -> Asked:
    """Find everything that a run needs: its first weights are put together where nobody has, nothing is trained.

    Args:
        workspace: data, caches and runs.
        names: see `check_names`.
        teacher: name of the cache's teacher, or names of several, or None.
        seed: of the run.
        data: the task's data where it is open; None opens it.
        part: which part of the embedded benchmark, see `open_task`.
        turn: a context in which one process of a job makes what the others find.
        say: told of the recipe that is taken.

    Raises as `stage.distill` before training.
    """
    config, student = names.config, names.student
    if data is None:
        with turn():  # the embedded benchmark is built by one process
            data = open_task(workspace, names.task, part=part)
    if student is None:
        if not data.is_mini:
            raise UsageProblem(
                f"{data.source} is not the embedded benchmark, so a student has to be named.",
                hint=f"add --student NAME or FOLDER; --student {MINI_STUDENT} is there to try things out",
            )
        student = MINI_STUDENT
    if names.recipe is not None:
        found = load_recipe(names.recipe, student=str(student), task=data.spec.name)
        config = load_arm(names.arm, names.overrides, below=found.settings)
        say(
            f"Recipe {found.recipe}: {found.published} (about {found.batch.samples:,} examples or "
            f"{found.batch.tokens:,} tokens a step)."
        )
    labelled = labelled_examples(data, names.shots, seed)
    sees = sees_with(str(student)) == "teacher"
    named = name_teachers(workspace, data, teacher, config, labelled, sees=sees, shots=names.shots, seed=seed)
    with turn():  # its first weights are put together by one process
        start = beginning(workspace, str(student), names.init, data, named.first.store, config.visual_input)
    return Asked(workspace, data, names, labelled, start, named, seed, config, teacher)


def _digest_of_file(path: Path) -> str:
    found = path.stat()
    return _digest(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=64)
def _digest(path: Path, size: int, changed: int) -> str:
    """Of a file that is as it was: a sweep asks for the same weights again and again."""
    return sha256_file(path)[:16]
