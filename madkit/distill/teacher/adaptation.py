"""Whose cache a run reads where teachers were adapted, and what an adapted teacher has seen of the labels.

An adapted teacher (`madkit adapt`) has learnt from labelled examples. Where these are exactly the run's own labelled
subset, the comparison with other arms is fair: the same labels were used. Where they are others, the teacher carries
labels that the run must not have, so such a teacher is never chosen by itself, and a run that names it says so in its
manifest. What an adaptation learnt from is compared by the digest of the examples' ids, not by names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from madkit.cache import TokenCache, choose_cache
from madkit.cache.manage import StoreRow, describe, find_caches
from madkit.cache.reader import adapter_name
from madkit.core.errors import CacheError, ConfigError, MadkitError, NotFoundError, UsageProblem
from madkit.core.files import digest_of, read_json
from madkit.core.workspace import Workspace
from madkit.distill.settings.config import Adaptation, DistillConfig
from madkit.tasks.data import TaskData
from madkit.tasks.example import Example
from madkit.tasks.id_lists import labelled_examples
from madkit.teachers.known import KNOWN

SIDES = ("vision", "text")


@dataclass(frozen=True, slots=True)
class AdaptedTeacher:
    """What a run's manifest says of an adapted teacher.

    Attributes:
        name: of the adaptation.
        base: the teacher that was adapted.
        train: what of it was trained ("lora", ...); None where the adaptation's manifest is gone.
        kind: digest of base and settings without seed and subset: equal for the adaptations of a study's seeds.
        same_examples: whether it learnt from exactly the run's labelled examples.
        outside: how many labelled examples it learnt from that the run does not have; None where nobody can say.
        untouched: whether no step of the adaptation was better than the teacher as it was, which then is the teacher.
    """

    name: str
    base: str
    train: str | None
    kind: str
    same_examples: bool
    outside: int | None
    untouched: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the manifest."""
        return asdict(self)

    @property
    def line(self) -> str:
        """What it has seen, in a clause."""
        if self.untouched:
            return f"kept as it was by its adaptation on exactly this run's labelled examples ({self.name})"
        if self.same_examples:
            return "adapted on exactly this run's labelled examples"
        if self.outside is None:
            return "adapted on examples that are not known, since the adaptation's manifest is gone"
        if self.outside == 0:
            return "adapted on a part of this run's labelled examples"
        return f"adapted on {self.outside:,} labelled examples that this run does not have"


@dataclass(frozen=True, slots=True)
class TeacherPick:
    """Which cache a run reads.

    Attributes:
        store: its name, for `choose_cache`; None leaves the choice, and its errors, to that.
        said: what to tell people; empty where there is nothing to tell.
        adapted: what the teacher has seen; None for one as its publisher made it.
        unadapted: name of the cache of the same teacher before its adaptation; None where there is none.
        kept: the adaptation on exactly the run's labelled examples that left the teacher as it was, where there is one
            and the arm asks for it: such a run belongs with those whose teachers got better.
    """

    store: str | None
    said: str = ""
    adapted: AdaptedTeacher | None = None
    unadapted: str | None = None
    kept: AdaptedTeacher | None = None

    @property
    def fair(self) -> bool:
        """Whether the teacher has seen no label but the run's own."""
        return self.adapted is None or self.adapted.outside == 0


def pick_teacher(
    workspace: Workspace,
    data: TaskData,
    teacher: str | None,
    adaptation: Adaptation,
    labelled: Sequence[Example],
    *,
    shots: str,
    seed: int,
) -> TeacherPick:
    """Choose among the caches of a teacher and of its adaptations.

    Args:
        workspace: where caches and adaptations lie.
        data: the run's data.
        teacher: what the user named: a teacher, an adaptation, or a cache; None for nothing.
        adaptation: what the arm wants (`DistillConfig.adaptation`).
        labelled: the run's labelled examples.
        shots: their name, for the command that would adapt a teacher to them.
        seed: the same.

    Raises:
        UsageProblem: what was named is not what the arm may take.
        NotFoundError: `required`, and there is none.
        CacheError: several adapted teachers fit, or there is none but one that has seen other labels.
    """
    return _Choice(workspace, data, teacher, adaptation, labelled, shots, seed).pick()


class _Choice:
    """One choice: what its steps share."""

    def __init__(
        self,
        workspace: Workspace,
        data: TaskData,
        teacher: str | None,
        adaptation: Adaptation,
        labelled: Sequence[Example],
        shots: str,
        seed: int,
    ) -> None:
        self.workspace, self.data, self.teacher, self.adaptation = workspace, data, teacher, adaptation
        self.shots, self.seed = shots, seed
        self.ids = [example.id for example in labelled]
        self.task = data.spec.name if data.is_mini else data.name
        rows = [describe(path) for path in find_caches(workspace)]
        here = (data.source, data.revision)
        self.rows = [row for row in rows if (row.identity.get("source"), row.identity.get("revision")) == here]
        self.plain = [row for row in self.rows if adapter_name(row.identity) is None]
        self.adapted = [row for row in self.rows if adapter_name(row.identity) is not None]

    def pick(self) -> TeacherPick:
        literal = [row for row in self.rows if self.teacher in _own_names(row)]
        if len(literal) == 1:
            return self._named(literal[0])
        if literal:
            return TeacherPick(self.teacher)  # several caches of one adaptation: choose_cache says so
        said = self._base_of_named()
        if not said and self.adaptation in ("if-there", "required"):
            fit = [(row, facts) for row in self._of_base() if (facts := self._facts(row)).same_examples]
            if len(fit) > 1:
                names = ", ".join(facts.name for _, facts in fit)
                raise CacheError(
                    f"Several teachers were adapted on this run's labelled examples: {names}.",
                    hint=f"choose one: --teacher {fit[0][0].path.name}",
                )
            if fit:
                row, facts = fit[0]
                return self._take(row, facts, f"Teacher {facts.base}, {facts.line}: {facts.name}.")
            said = self._none_fits()
        return TeacherPick(self._untouched(), said, kept=self._kept())

    def _named(self, row: StoreRow) -> TeacherPick:
        if adapter_name(row.identity) is None:
            if self.adaptation == "required":
                raise UsageProblem(
                    f"The arm requires an adapted teacher, and --teacher {self.teacher} names one as it was published.",
                    hint="leave out --teacher, or --set adaptation=if-there",
                )
            return TeacherPick(row.path.name)
        facts = self._facts(row)
        if self.adaptation == "never":
            raise UsageProblem(
                f"The arm takes no adapted teacher, and --teacher {self.teacher} names one.",
                hint=f"--teacher {facts.base}, or another arm",
            )
        warned = (
            ""
            if facts.same_examples
            else " Runs with it are not comparable with arms that have the run's labels alone."
        )
        return self._take(row, facts, f"Teacher {facts.base}, {facts.line}: {facts.name}." + warned)

    def _base_of_named(self) -> str:
        """Take the base where --teacher names an adaptation that kept it as it was, and say so.

        Raises NotFoundError, with the command that makes it, where it names another one that no cache is of.
        """
        name = self.teacher or ""
        may_be = name not in KNOWN and Path(name).name == name != ""
        made = _manifest(self.workspace.adapters / name) if may_be else None
        if made is None:
            return ""
        if not made.get("untouched"):
            raise NotFoundError(
                f"The adapted teacher {name} has read nothing of {self.data.source} yet.",
                hint=f"madkit extract --adapter {name} --task {self.task}",
            )
        self.teacher = str(made["teacher"])
        return f"The adaptation {name} kept {self.teacher} as it was, so that is the teacher."

    def _take(self, row: StoreRow, facts: AdaptedTeacher, said: str) -> TeacherPick:
        return TeacherPick(row.path.name, said, facts, self._before(row))

    def _of_base(self) -> list[StoreRow]:
        return [row for row in self.adapted if self.teacher in (None, str(row.identity.get("teacher")))]

    def _untouched(self) -> str | None:
        """What to ask `choose_cache` for, where an adapted teacher is not meant."""
        if self.teacher is not None or not self.adapted:
            return self.teacher
        both = [row for row in self.plain if all(row.identity.get(side) for side in SIDES)] or self.plain
        if len(both) == 1:
            return both[0].path.name
        if both:
            return None
        facts = [self._facts(row) for row in self.adapted]
        called = facts[0].name in KNOWN  # like a teacher, whom that name means
        seen = "; ".join(f"{one.name}, {one.line}" for one in facts)
        raise CacheError(
            f"For {self.data.source} the workspace has caches of adapted teachers only: {seen}.",
            hint=f"madkit extract --teacher {facts[0].base} --task {self.task}; "
            f"or name the adapted one: --teacher {self.adapted[0].path.name if called else facts[0].name}",
        )

    def _none_fits(self) -> str:
        """Why no adapted teacher is taken, with the command that would make one; empty where none can be.

        Raises NotFoundError or ConfigError where one is required.
        """
        made = self._made_here()
        if made is not None and made.get("untouched"):
            return f"The adaptation {made['name']} of these examples kept {made['teacher']} as it was."
        if made is not None:
            why = f"The teacher adapted on these examples, {made['name']}, has read nothing of {self.data.source} yet"
            command = f"madkit extract --adapter {made['name']} --task {self.task}"
        else:
            base = self.teacher or next((str(row.identity["teacher"]) for row in self.plain), "mini")
            if self._of_one_side(base):
                if self.adaptation == "required":
                    raise ConfigError(
                        f"The arm requires an adapted teacher, and {base} reads one of images and texts alone: an "
                        "adaptation sets the one against the other.",
                        hint="--set adaptation=if-there, or another teacher",
                    )
                return ""
            others = f" ({len(self.adapted)} on others)" if self.adapted else ""
            why = f"No teacher was adapted on this run's labelled examples{others}"
            command = f"madkit adapt --teacher {base} --task {self.task} --shots {self.shots} --seed {self.seed}"
        if self.adaptation == "required":
            raise NotFoundError(f"{why}, and the arm requires one.", hint=command)
        return f"{why}, so it is taken as it is; to change that: {command}"

    def _of_one_side(self, teacher: str) -> bool:
        """Whether all caches of a teacher lack images, or lack texts."""
        mine = [row for row in self.plain if row.identity.get("teacher") == teacher]
        return bool(mine) and not any(all(row.identity.get(side) for side in SIDES) for row in mine)

    def _kept(self) -> AdaptedTeacher | None:
        made = self._made_here() if self.adaptation in ("if-there", "required") else None
        if made is None or not made.get("untouched"):
            return None
        base, train = str(made["teacher"]), str(made.get("config", {}).get("train"))
        return AdaptedTeacher(str(made["name"]), base, train, _kind(base, made), True, 0, untouched=True)

    def _made_here(self) -> Mapping[str, Any] | None:
        """The manifest of a complete adaptation on exactly these examples, cache or not."""
        for path in sorted(self.workspace.adapters.glob("*/manifest.json")):
            found = _manifest(path.parent)
            if found is not None and self._same(found) and self.teacher in (None, found.get("teacher")):
                return {**found, "name": path.parent.name}
        return None

    def _same(self, manifest: Mapping[str, Any]) -> bool:
        wanted = (self.data.source, self.data.revision, digest_of(self.ids))
        return (manifest.get("source"), manifest.get("data_revision"), manifest.get("examples")) == wanted

    def _facts(self, row: StoreRow) -> AdaptedTeacher:
        mark = _mark(row.identity)
        name, base = mark["name"], str(row.identity.get("teacher"))
        manifest = _manifest(self.workspace.adapters / name)
        if manifest is None or str(manifest.get("adapter", {}).get("sha256", ""))[:16] != mark["digest"]:
            return AdaptedTeacher(name, base, None, digest_of([base, mark])[:12], same_examples=False, outside=None)
        train = str(manifest.get("config", {}).get("train"))
        same = self._same(manifest)
        outside = 0 if same else self._outside(manifest)
        return AdaptedTeacher(name, base, train, _kind(base, manifest), same_examples=same, outside=outside)

    def _outside(self, manifest: Mapping[str, Any]) -> int | None:
        if (manifest.get("source"), manifest.get("data_revision")) != (self.data.source, self.data.revision):
            return int(manifest.get("examples_used", 0)) or None  # of another task or revision: all of them
        try:
            seen = labelled_examples(self.data, str(manifest["shots"]), int(manifest["seed"]))
        except (MadkitError, KeyError, ValueError):
            return None
        if digest_of([example.id for example in seen]) != manifest.get("examples"):
            return None
        return len({example.id for example in seen} - set(self.ids))

    def _before(self, row: StoreRow) -> str | None:
        """The cache of the same weights without the adaptation, made in the same way where there is one."""
        mark = _mark(row.identity)
        fits = [
            other
            for other in self.plain
            if all(
                digest_of([(other.identity.get(side) or {}).get("weights"), mark["digest"]])
                == (row.identity.get(side) or {}).get("weights")
                for side in SIDES
            )
        ]
        how = ("dtype", "selection", "compute_dtype")

        def likeness(other: StoreRow) -> tuple[int, str]:
            return -sum(other.identity.get(key) == row.identity.get(key) for key in how), other.path.name

        return min(fits, key=likeness).path.name if fits else None


def asked_cache(
    workspace: Workspace, data: TaskData, pick: TeacherPick, config: DistillConfig, *, unlabelled: bool
) -> TokenCache | None:
    """The cache that a probe reads of a run's teacher, where one is fitted and that is another than the run's own.

    An adapted teacher knows the gold targets of the examples that it was adapted with. A probe on its vectors would be
    right about nearly all of them, cross-fitted or not, and weights and soft labels would follow what it learnt by
    heart. The same teacher before its adaptation has seen no label.

    Args:
        workspace: where caches lie.
        data: the run's data.
        pick: the teacher.
        config: the run's configuration.
        unlabelled: whether the train split has questions that are not labelled.

    Raises CacheError where that one is needed and its cache is not there.
    """
    probed = config.probes_pool(unlabelled=unlabelled)
    if pick.adapted is None or not (config.weighs or probed) or config.confidence.teacher == "same":
        return None
    if pick.unadapted is None:
        task = data.spec.name if data.is_mini else data.name
        why, instead = (
            ("what a probe on it says of other examples is what it learnt by heart", "confidence.teacher=same")
            if probed
            else ("its own confidence in labelled examples says nothing", "mad.weighting=uniform")
        )
        raise CacheError(
            f"The teacher {pick.adapted.name} has seen labels, so {why}, and a cache of {pick.adapted.base} as it was "
            "before is not there.",
            hint=f"madkit extract --teacher {pick.adapted.base} --task {task}; or --set {instead}",
        )
    return choose_cache(workspace, data, pick.unadapted)


def _own_names(row: StoreRow) -> set[str]:
    """What names this very cache: folder, key, or the adaptation that it was made with unless that is a teacher's."""
    names = {row.path.name, row.path.name.rpartition("-")[2]}
    adapted = adapter_name(row.identity)
    return names if adapted is None or adapted in KNOWN else {*names, adapted}


def _mark(identity: Mapping[str, Any]) -> dict[str, str]:
    sides = [side for side in ((identity.get(name) or {}).get("adapter") for name in SIDES) if side]
    return {"name": str(sides[0]["name"]), "digest": str(sides[0]["digest"])}


def _kind(base: str, manifest: Mapping[str, Any]) -> str:
    """What the adaptations of a study's seeds have in common."""
    settings = _without_length(manifest.get("config", {}), int(manifest.get("items", 0)))
    return digest_of([base, manifest.get("base"), settings, manifest.get("source"), manifest.get("shots")])[:12]


def _without_length(config: Mapping[str, Any], items: int) -> dict[str, Any]:
    """The settings of an adaptation without the number of steps, where that followed from the number of items.

    Subsets of two seeds differ by an item or two, and are one experiment all the same.
    """
    optim, looks = dict(config.get("optim", {})), dict(config.get("eval", {}))
    try:
        per_epoch = math.ceil(items / min(optim["batch_size"], items))
        steps = min(
            max(round(optim["epochs"] * per_epoch), optim["min_steps"]), max(optim["max_steps"], optim["min_steps"])
        )
        if optim["steps"] == steps:
            del optim["steps"]
            if looks["every"] == max(1, steps // 10):
                del looks["every"]
    except (KeyError, TypeError, ZeroDivisionError):
        pass
    return {**config, "optim": optim, "eval": looks}


def _manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a complete adaptation; None where there is none."""
    try:
        found = read_json(folder / "manifest.json")
    except MadkitError:
        return None
    complete = isinstance(found, dict) and found.get("kind") == "adapter" and found.get("status") == "complete"
    return found if complete else None
