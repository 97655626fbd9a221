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
from madkit.distill.settings.teacher_settings import TeacherSettings
from madkit.distill.teacher.adaptation import AdaptedTeacher
from madkit.distill.teacher.side import compares_modalities
from madkit.mad.config import MADConfig
from madkit.mad.criterion import separate_spaces
from madkit.mad.sides import Teachable, teachable


@dataclass(frozen=True, slots=True)
class Teacher:
    """One teacher of a run.

    Attributes:
        name: as the cache knows it; an adapted teacher goes by its adaptation's name.
        cache: its cache, which may be of images or texts alone.
        settings: its weight, and where its `mad` differs.
        asked: another cache that probes read (`adaptation.asked_cache`), for confidence and soft labels; None: `cache`.
        adapted: what it has seen of the labels; None for a teacher as its publisher made it.
    """

    name: str
    cache: TokenCache
    settings: TeacherSettings = field(default_factory=TeacherSettings)
    asked: TokenCache | None = None
    adapted: AdaptedTeacher | None = None

    @property
    def weight(self) -> float:
        """Factor of all that it adds to the loss."""
        return self.settings.weight

    @property
    def whole(self) -> bool:
        """Whether it reads images and texts."""
        return len(self.cache.parts) == 2

    @property
    def sides(self) -> str:
        """What it reads, in a word or two."""
        return " and ".join(self.cache.parts)

    def can(self, config: MADConfig) -> Teachable:
        """What of `config` it can teach."""
        parts = self.cache.parts
        return teachable(config, images="images" in parts, texts="texts" in parts, shared_space=self.cache.shared_space)


class Teachers:
    """The teachers of a run, by name: one or several, each with a name of its own.

    Attributes:
        members: sorted by name.
        one: whether there is one teacher of both modalities, as an arm describes it: terms then go by their own names.
    """

    def __init__(self, members: Iterable[Teacher]) -> None:
        self.members = tuple(sorted(members, key=lambda member: member.name))
        self.one = len(self.members) == 1 and self.members[0].whole and self.members[0].settings.plain

    def __iter__(self) -> Iterator[Teacher]:
        return iter(self.members)

    @property
    def label(self) -> str:
        """All names, for tables and messages."""
        return ", ".join(member.name for member in self.members)

    @property
    def keys(self) -> list[str]:
        """All caches' names, in the order of the teachers."""
        return [member.cache.path.name for member in self.members]

    @property
    def phase_key(self) -> str | list[list[str | float]]:
        """What stands for them in a pre-phase's identity: the cache's name, or caches and weights of several."""
        if self.one:
            return self.keys[0]
        return [[member.cache.path.name, member.weight] for member in self.members]

    def only(self, names: Iterable[str]) -> Teachers:
        """Those of them with these names."""
        kept = set(names)
        return Teachers(member for member in self.members if member.name in kept)

    @property
    def asked(self) -> str | None:
        """Names of the other caches that probes read; None where there are none."""
        return ", ".join(member.asked.path.name for member in self.members if member.asked is not None) or None

    def as_rows(self) -> list[dict[str, object]]:
        """What a manifest says of each."""
        return [
            {
                "name": member.name,
                "cache": member.cache.path.name,
                **member.settings.model_dump(mode="json"),
                "adapted": None if member.adapted is None else member.adapted.as_dict(),
            }
            for member in self.members
        ]

    @property
    def lacks(self) -> str:
        """What the caches have no values for, as a clause; empty where they have all."""
        said = []
        for member in self.members:
            parts = [(part, len(getattr(member.cache, part).absent)) for part in member.cache.parts]
            if any(count for _, count in parts):
                whose = "the cache" if len(self.members) == 1 else f"the cache of {member.name}"
                without = " and ".join(f"{count:,} {part}" for part, count in parts)
                said.append(f"{whose} was completed without {without}")
        return "; ".join(said)

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

    def none_can(self, config: MADConfig) -> ConfigError:
        """The error where nobody of the teachers can teach anything of a phase's settings."""
        affinity = config.affinity_weight > 0
        if len(self.members) > 1 or self.members[0].whole:
            return separate_spaces(affinity)
        (member,) = self.members
        if affinity:
            return ConfigError(
                f"Affinity distillation compares texts with regions, and {member.name} reads {member.sides} alone.",
                hint="take a CLIP-like teacher, or an arm without affinity, such as mad or kd-global.",
            )
        return ConfigError(
            f"{member.name} reads {member.sides} alone, and no term of these settings is about {member.sides}.",
            hint="set a weight of theirs above 0, or take another teacher.",
        )

    def told(self, phases: Mapping[str, MADConfig]) -> list[str]:
        """What to say of teachers that cannot teach everything, a sentence each.

        Args:
            phases: settings of each phase; the teachers' own apply to the one called "mad".

        Raises:
            ConfigError: a teacher could teach nothing in any phase, a phase would have no teacher, or one teacher
                alone cannot compare what a phase compares.
        """
        if self.one:  # what it cannot teach is an error, and said before anything is read
            for config in phases.values():
                if compares_modalities(config) and not self.members[0].cache.shared_space:
                    raise separate_spaces(config.affinity_weight > 0)
            return []
        said = []
        shares = {phase: self.shares(config, own=phase == "mad") for phase, config in phases.items()}
        for phase, config in phases.items():
            if not shares[phase]:
                raise self.none_can(config)
        for member in self.members:
            found = [
                member.can(member.settings.applied(config) if phase == "mad" else config)
                for phase, config in phases.items()
            ]
            dropped = list(dict.fromkeys(name for one in found for name in one.dropped))
            why = "its images and texts share no space" if member.whole else f"it reads {member.sides} alone"
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
            if member.asked is not None:
                member.asked.close()


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
