"""From the names of teachers to their opened caches: one teacher, several, or none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from madkit.cache import TokenCache, choose_cache
from madkit.core.errors import ConfigError, UsageProblem
from madkit.core.workspace import Workspace
from madkit.distill.settings.config import DistillConfig
from madkit.distill.settings.teacher_settings import TeacherSettings
from madkit.distill.teacher.adaptation import AdaptedTeacher, TeacherPick, asked_cache, pick_teacher
from madkit.distill.teacher.teachers import Teacher, Teachers, name_apart, wanted_teachers
from madkit.tasks.data import TaskData
from madkit.tasks.example import Example
from madkit.teachers.known import canonical_name, parse_teacher_name


@dataclass(frozen=True, slots=True)
class Named:
    """Whose caches a run will read; nothing is opened yet.

    Attributes:
        picks: which cache stands for each name, in the order given; one without a name where nobody was named.
        settings: what the configuration says of each.
        several: whether they are several teachers, or one with a weight or settings of its own.
    """

    picks: tuple[TeacherPick, ...]
    settings: tuple[TeacherSettings, ...]
    several: bool

    @property
    def first(self) -> TeacherPick:
        """The first: a student that sees with a teacher's tokens sees with this one's."""
        return self.picks[0]

    @property
    def told(self) -> list[TeacherPick]:
        """Those of which something is to be said. Of several teachers not that one could be adapted, too."""
        return [pick for pick in self.picks if pick.said and (pick.adapted is not None or not self.several)]

    @property
    def adapted(self) -> AdaptedTeacher | None:
        """What the teachers have seen of the labels: of several adapted ones, that which saw most of others' labels."""
        found = [pick.adapted for pick in self.picks if pick.adapted is not None]
        return max(found, key=lambda one: math.inf if one.outside is None else one.outside, default=None)

    @property
    def facts(self) -> AdaptedTeacher | None:
        """What the manifest says: :attr:`adapted`, or of one teacher alone the adaptation that kept it as it was."""
        return self.adapted or (None if self.several else self.first.kept)


def name_teachers(
    workspace: Workspace,
    data: TaskData,
    teacher: str | Sequence[str] | None,
    config: DistillConfig,
    labelled: Sequence[Example],
    *,
    sees: bool,
    shots: str,
    seed: int,
) -> Named:
    """Choose the caches that a run reads.

    Args:
        workspace: where caches lie.
        data: the run's data.
        teacher: a name, several, or None for the configuration's ``teachers``, else the only cache that there is.
        config: the run's configuration.
        labelled: the run's labelled examples.
        sees: whether the student sees with a teacher's tokens.
        shots: the labelled subset's name.
        seed: its seed.

    Raises:
        UsageProblem: a teacher twice, settings of one that was not named, or several where one is needed.
        NotFoundError, CacheError: as `adaptation.pick_teacher`.
    """
    names = [teacher] if isinstance(teacher, str) else list(teacher or ())
    wanted = wanted_teachers(names, config.teachers, as_caches_say)
    several = config.distils and (len(wanted) > 1 or not all(one.plain for one in wanted.values()))
    needed = config.needs_cache or sees
    if needed and len(wanted) > 1 and not config.distils:
        raise UsageProblem(
            f"{len(wanted)} teachers are named, and here nothing is learnt from them: the student sees with the tokens "
            "of one.",
            hint=f"name one: --teacher {next(iter(wanted))}",
        )
    chosen: list[str | None] = [*wanted] if several else [next(iter(wanted), None)]
    picks = [
        pick_teacher(workspace, data, name, config.adaptation, labelled, shots=shots, seed=seed)
        if needed
        else TeacherPick(name)
        for name in chosen
    ]
    return Named(tuple(picks), tuple(wanted.values()) if several else (TeacherSettings(),), several)


def as_caches_say(name: str) -> str:
    """A teacher's name as its cache has it: the short one where there is one. Names of caches stay as they are."""
    try:
        return parse_teacher_name(name).canonical
    except UsageProblem:
        return canonical_name(name)


def open_teachers(
    workspace: Workspace, data: TaskData, named: Named, config: DistillConfig, *, unlabelled: bool
) -> Teachers:
    """Open the caches that were chosen, and those of the same teachers before an adaptation, where these are asked.

    Args:
        workspace: where caches lie.
        data: the run's data.
        named: which caches.
        config: the run's configuration.
        unlabelled: whether the train split has questions that are not labelled.

    Raises:
        NotFoundError, CacheError: a cache is not there, or damaged; the hint is the command that makes it.
        UsageProblem: two names mean one cache.
    """
    opened: list[TokenCache] = []
    try:
        for pick in named.picks:
            opened.append(choose_cache(workspace, data, pick.store))
        members = []
        for name, cache, pick, settings in zip(
            name_apart(opened), tuple(opened), named.picks, named.settings, strict=True
        ):
            asked = asked_cache(workspace, data, pick, config, unlabelled=unlabelled)
            if asked is not None:
                opened.append(asked)
            members.append(Teacher(name, cache, settings, asked, pick.adapted))
        return Teachers(members)
    except BaseException:
        for cache in opened:
            cache.close()
        raise


def with_teachers(config: DistillConfig, teachers: Teachers | None) -> DistillConfig:
    """`config` with the settings of all its teachers written out, under the names that tables show."""
    if teachers is None or teachers.one:
        return config.model_copy(update={"teachers": {}})
    return config.model_copy(update={"teachers": {member.name: member.settings for member in teachers}})


def check_phases(teachers: Teachers | None, config: DistillConfig) -> list[str]:
    """What to say of teachers that cannot teach all of a run.

    Raises ConfigError as `Teachers.told`, and for a control none of whose teachers reads images: those are what is
    permuted, so it would be the arm itself under another name.
    """
    if teachers is None:
        return []
    if config.permute_teacher and all("images" not in member.cache.parts for member in teachers):
        raise ConfigError(
            "permute_teacher gives every image another image's teacher tokens, and no teacher here reads images "
            f"({teachers.label}), so there is nothing to permute.",
            hint="name one that does with --teacher (madkit teachers list), or run the arm itself",
        )
    phases = {"mad": config.mad, "pre_phase": config.pre_phase.objective if config.pre_phase is not None else None}
    return teachers.told({name: phase for name, phase in phases.items() if phase is not None})
