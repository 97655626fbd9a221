"""The teachers of a run: who they are, whose caches are read, and what each of them can teach.

Names are sorted wherever order could matter (sums, draws, manifests), so that the same teachers named in another order
are the same run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from madkit.cache import TokenCache
from madkit.cache.reader import adapter_name
from madkit.core.errors import ConfigError, UsageProblem
from madkit.core.registry import suggest
from madkit.distill.teacher_settings import TeacherSettings
from madkit.mad.config import MADConfig
from madkit.mad.criterion import separate_spaces
from madkit.mad.sides import Teachable, teachable


@dataclass(frozen=True, slots=True)
class Teacher:
    """One teacher of a run.

    Attributes:
        name: as the cache knows it; an adapted teacher goes by its adaptation's name.
        cache: its cache, which may be of images or texts alone where there are several teachers.
        settings: its weight, and where its `mad` differs.
    """

    name: str
    cache: TokenCache
    settings: TeacherSettings = field(default_factory=TeacherSettings)

    @property
    def weight(self) -> float:
        """Factor of all that it adds to the loss."""
        return self.settings.weight

    @property
    def sides(self) -> str:
        """What it reads, in a word or two."""
        return " and ".join(self.cache.parts)

    def can(self, config: MADConfig) -> Teachable:
        """What of `config` it can teach."""
        parts = self.cache.parts
        return teachable(config, images="images" in parts, texts="texts" in parts, shared_space=self.cache.shared_space)


class Teachers:
    """Several teachers, by name.

    Args:
        members: at least two, with different names.
    """

    def __init__(self, members: Iterable[Teacher]) -> None:
        self.members = tuple(sorted(members, key=lambda member: member.name))

    def __iter__(self) -> Iterator[Teacher]:
        return iter(self.members)

    @property
    def label(self) -> str:
        """All names, for tables and messages."""
        return ", ".join(member.name for member in self.members)

    @property
    def keys(self) -> str:
        """All caches' names, in the order of the teachers."""
        return ", ".join(member.cache.path.name for member in self.members)

    def as_rows(self) -> list[dict[str, object]]:
        """What a manifest says of each."""
        return [
            {"name": member.name, "cache": member.cache.path.name, **member.settings.model_dump(mode="json")}
            for member in self.members
        ]

    def shares(self, config: MADConfig, *, own: bool) -> dict[str, MADConfig]:
        """What each teacher teaches of `config`, by name; who can teach none of it is left out.

        Args:
            config: the settings of a phase.
            own: whether the teachers' own settings apply: to fine-tuning they do, to a pre-phase they do not.

        Raises:
            ConfigError: a teacher's own settings ask it to compare regions with texts, and it cannot.
        """
        shares = {}
        for member in self.members:
            base = member.settings.applied(config) if own else config
            found = member.can(base)
            asked = member.settings.mad if own else {}
            for affinity, wanted in (
                (True, "affinity" in found.dropped and asked.get("affinity_weight")),
                (False, found.relevance and asked.get("relevance")),
            ):
                if wanted:
                    raise separate_spaces(affinity)
            if found.config is not None:
                shares[member.name] = found.config
        return shares

    def told(self, phases: Mapping[str, MADConfig]) -> list[str]:
        """What to say of teachers that cannot teach everything, a sentence each.

        Args:
            phases: settings of each phase; the teachers' own apply to the one called "mad".

        Raises:
            ConfigError: a teacher could teach nothing in any phase.
        """
        said = []
        shares = {phase: self.shares(config, own=phase == "mad") for phase, config in phases.items()}
        for member in self.members:
            found = [
                member.can(member.settings.applied(config) if phase == "mad" else config)
                for phase, config in phases.items()
            ]
            dropped = list(dict.fromkeys(name for one in found for name in one.dropped))
            both = len(member.cache.parts) == 2
            why = "its images and texts share no space" if both else f"it reads {member.sides} alone"
            if phases and not any(member.name in names for names in shares.values()):
                raise ConfigError(
                    f"The teacher {member.name} would teach nothing here: {why}, and this takes "
                    f"{', '.join(dropped) or 'another one'}.",
                    hint="leave it out, or take an arm with token or global terms, such as mad or kd-global.",
                )
            if dropped:
                said.append(f"{member.name} teaches no {_listed(dropped)}: {why}.")
            if any(one.relevance for one in found):
                said.append(f"{member.name} selects tokens by relevance inside each modality: {why}.")
        return said

    def close(self) -> None:
        """Let go of the caches."""
        for member in self.members:
            member.cache.close()


def wanted_teachers(
    named: Sequence[str], settings: Mapping[str, TeacherSettings], canonical: Callable[[str], str]
) -> dict[str, TeacherSettings]:
    """Whose caches are to be read: who was named on the command line, else who stands in the configuration.

    Args:
        named: names as given, none of them twice; none at all leaves the choice to the configuration.
        settings: what the configuration says of teachers.
        canonical: from a name to the one that caches carry.

    Returns:
        Settings by canonical name in the order given, without teachers of weight 0; empty where nobody was named.

    Raises:
        UsageProblem: a name twice, or settings of a teacher that was not named.
    """
    given = [canonical(name) for name in named]
    for place, name in enumerate(given):
        if name in given[:place]:
            raise UsageProblem(f"The teacher {name} was given twice.", hint="give each teacher once")
    known: dict[str, TeacherSettings] = {}
    for name, one in settings.items():
        if canonical(name) in known:
            raise UsageProblem(
                f"The configuration has two entries for the teacher {canonical(name)}.",
                hint=f"one of them is teachers.{name}",
            )
        known[canonical(name)] = one
    for name in known if given else ():
        if name not in given:
            raise UsageProblem(
                f"The configuration has settings for the teacher {name}, which --teacher does not name."
                f"{suggest(name, given)}",
                hint=f"add --teacher {name}, or take its settings out",
            )
    wanted = {name: known.get(name, TeacherSettings()) for name in (given or known)}
    left = {name: one for name, one in wanted.items() if one.weight > 0}
    if wanted and not left:
        raise ConfigError("All teachers have weight 0, so nobody would teach.", hint="give one of them a weight")
    return left


def teacher_name(cache: TokenCache) -> str:
    """What a run calls the teacher of a cache."""
    return adapter_name(cache.identity) or cache.teacher


def name_apart(caches: Sequence[TokenCache]) -> list[str]:
    """A name for each cache: its teacher's, or the folder's where a teacher has several.

    Raises UsageProblem where one cache was chosen twice.
    """
    folders = [cache.path.name for cache in caches]
    for place, folder in enumerate(folders):
        if folder in folders[:place]:
            raise UsageProblem(
                f"The teacher {teacher_name(caches[place])} was given twice: both names mean the cache {folder}.",
                hint="give each teacher once",
            )
    names = [teacher_name(cache) for cache in caches]
    return [folder if names.count(name) > 1 else name for name, folder in zip(names, folders, strict=True)]


def _listed(terms: Sequence[str]) -> str:
    return terms[0] if len(terms) == 1 else f"{', '.join(terms[:-1])} or {terms[-1]}"
