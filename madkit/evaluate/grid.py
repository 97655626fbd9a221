"""The runs of a workspace as a grid: which cells have a complete run, which have none, and what sets runs apart."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from madkit.core.errors import DataError, MadkitError, NotFoundError, RunError
from madkit.core.files import digest_of, read_json
from madkit.core.later_keys import LATER, OUTSIDE, without_later
from madkit.tasks.data import imported_datasets
from madkit.tasks.spec import TASKS, TaskSpec

if TYPE_CHECKING:
    from madkit.core.workspace import Workspace
    from madkit.evaluate.experiment import AboutCondition, AboutExperiment
    from madkit.evaluate.protocol import Protocol

RUN_SCHEMA = 1
IN_DOMAIN = "test"  # the suite that shifts are set against, in every data set
ARM_ORDER = (
    "finetune", "finetune-long", "kd-global", "kd-all", "mad", "mad-no-selection", "mad-no-confidence",
    "mad-no-adaptation", "affinity", "affinity-absolute", "mad-affinity", "mad-affinity-labelled", "soft-labels",
    "clip-vil",
)  # fmt: skip
_TRAIN_AGAIN = "remove the folder and train again"
PERMUTED = "-permuted"  # at the end of an arm's name: its control
_SETUP = "student_setup"
LONG = "finetune-long"  # trains for longer than other arms, which is what it is about

# Differ between seeds of one and the same experiment, or change speed and disk only.
_NOT_THE_EXPERIMENT = {"seed", "micro_tokens", "keep_checkpoints", "device", "workers", *OUTSIDE}


@dataclass(frozen=True)
class Run:
    """A complete run, as its manifest tells. `config` is flat: dotted key to value. `spec` is None where neither the
    manifest nor madkit knows the task; the data may. Of the `labelled` examples the teacher's cache had no values for
    `untaught`. `adaptation` stands for the way in which the teacher was adapted on the run's own labels, which makes
    another teacher of each seed's subset and one experiment of all; `note` is what nobody who compares it may miss.
    """

    path: Path
    task: str
    source: str
    revision: str
    is_mini: bool
    student: str
    arm: str
    shots: str
    seed: int
    teacher: str | None
    config: Mapping[str, Any] = field(hash=False)
    pre_phase_seed: int | None = None
    spec: TaskSpec | None = None
    labelled: int = 0
    untaught: int = 0
    adaptation: str = ""
    note: str = ""

    @property
    def table(self) -> tuple[str, str]:
        """Source and data revision: runs that differ here never stand in one table."""
        return self.source, self.revision

    @property
    def steps(self) -> int | None:
        """How many steps it was trained for with labels; None where its manifest does not say."""
        found = self.config.get("optim.steps")
        return int(found) if isinstance(found, int) else None

    @property
    def batch_size(self) -> int | None:
        """Labelled examples in a step; None where its manifest does not say."""
        found = self.config.get("optim.batch_size")
        return int(found) if isinstance(found, int) else None

    @property
    def experiment(self) -> str:
        """Digest of everything that was chosen except the seed: runs of one experiment are averaged."""
        settings = dict(self.config)
        if self.adaptation:
            settings |= {"cache_key": self.adaptation}
        return digest_of([*self.table, self.task, self.student, self.arm, self.shots, self.teacher, settings])

    @property
    def experiment_of_any_setup(self) -> str:
        """The same without configuration and tokenizer of a student's own folder, which earlier runs do not name."""
        return replace(self, config={key: value for key, value in self.config.items() if key != _SETUP}).experiment


@dataclass(frozen=True)
class Problem:
    """Something that kept one cell out of the table."""

    where: str
    error: str
    hint: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For the results document."""
        return {"where": self.where, "error": self.error, "hint": self.hint}


@dataclass(frozen=True)
class Group:
    """Runs of one experiment, by ascending seed; `label` is the arm, and what sets it apart where that is needed."""

    runs: tuple[Run, ...]
    label: str

    @property
    def first(self) -> Run:
        """A run that stands for all: they differ in their seeds only."""
        return self.runs[0]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Ascending."""
        return tuple(run.seed for run in self.runs)

    def condition(self) -> AboutCondition:
        """What the group shares with those that it can be compared with."""
        run = self.first
        return {
            "task": run.task,
            "source": run.source,
            "revision": run.revision,
            "student": run.student,
            "shots": run.shots,
        }

    def about(self) -> AboutExperiment:
        """What every row that tells something of the group begins with."""
        return {**self.condition(), "arm": self.first.arm, "label": self.label}


def find_runs(workspace: Workspace, protocol: Protocol) -> tuple[list[Run], list[Problem], int]:
    """Complete runs that the protocol wants, what is wrong with others, and how many are not finished.

    Raises NotFoundError where the workspace holds no run at all, or complete ones that the protocol asks nothing of,
    ConfigError where the protocol asks for a task that neither madkit nor the workspace knows.
    """
    known = dict.fromkeys([*TASKS, *imported_datasets(workspace)])
    runs: list[Run] = []
    problems: list[Problem] = []
    unfinished = 0
    outside: list[dict[str, Any]] = []
    manifests = sorted(workspace.runs.glob("*/*/manifest.json"))
    for manifest in manifests:
        if manifest.parent.name.startswith("pre-phase-"):
            continue
        try:
            run = read_run(manifest.parent)
        except MadkitError as error:
            problems.append(Problem(_short(manifest.parent), error.message, error.hint))
            continue
        if run is None:
            unfinished += 1
            continue
        known |= dict.fromkeys([run.task, run.source])
        axes: dict[str, Any] = {
            name: getattr(run, name) for name in ("task", "source", "student", "shots", "arm", "seed")
        }
        if protocol.wants(**axes):
            runs.append(run)
        else:
            outside.append(axes)
    protocol.check_tasks(known)
    if not runs and not problems and (outside or not unfinished):
        raise NotFoundError(
            f"There are no runs in {workspace.runs}{_why_outside(outside, protocol) if manifests else ''}.",
            hint="madkit evaluate --protocol full" if outside else "madkit distill --task vcr --shots 1pct",
        )
    return runs, problems, unfinished


def _why_outside(outside: Sequence[Mapping[str, Any]], protocol: Protocol) -> str:
    """That a protocol asks for none of these runs, and by which of its keys where one alone keeps all of them out."""
    said = " that this protocol asks for"
    for key, name in (("shots", "shots"), ("arms", "arm"), ("students", "student"), ("seeds", "seed")):
        asked, there = getattr(protocol, key), list(dict.fromkeys(axes[name] for axes in outside))
        if asked != "any" and there and not set(asked) & set(there):
            return f"{said}: it names {key} {', '.join(map(str, asked))}, and they have {', '.join(map(str, there))}"
    return said


def read_run(folder: Path) -> Run | None:
    """The run in a folder, None while it is not complete. Raises RunError for a manifest of another schema."""
    try:
        manifest = read_json(folder / "manifest.json")
    except DataError as error:  # half-written, or written over
        raise RunError(error.message, hint=_TRAIN_AGAIN) from None
    if not isinstance(manifest, dict):
        raise RunError(f"{folder / 'manifest.json'} is not a run manifest.", hint=_TRAIN_AGAIN)
    schema = manifest.get("schema")
    if schema != RUN_SCHEMA:
        raise RunError(
            f"The run has manifest schema {schema!r}; this madkit reads schema {RUN_SCHEMA}.",
            hint="evaluate it with the madkit that made it, or train it again",
        )
    if manifest.get("status") != "complete":
        return None
    try:
        flat = flatten(without_later(manifest["config"]))  # so that runs from before a key and since are one experiment
        flat |= {key: manifest.get(key) for key in ("student_digest", "cache_key", "regions")}
        if manifest.get(_SETUP) is not None:
            flat[_SETUP] = manifest[_SETUP]
        if _probed_the_adapted(manifest, flat):
            flat["probed"] = "the adapted teacher"
        pre_phase = flat.get("pre_phase.seed")
        arm, teacher, adaptation, note = _told(manifest)
        return Run(
            path=folder,
            task=str(manifest["task"]),
            spec=TaskSpec.from_dict(manifest["spec"]) if manifest.get("spec") else TASKS.get(str(manifest["task"])),
            source=str(manifest["source"]),
            revision=str(manifest["data_revision"]),
            is_mini=bool(manifest["is_mini"]),
            student=str(manifest["student"]),
            arm=arm,
            shots=str(manifest["shots"]),
            seed=int(manifest["seed"]),
            teacher=teacher,
            config={key: value for key, value in flat.items() if not _NOT_THE_EXPERIMENT & set(key.split("."))},
            pre_phase_seed=None if pre_phase is None else int(pre_phase),
            labelled=int(manifest.get("examples_labelled", 0)),
            untaught=int(manifest.get("examples_without_teacher", 0)),
            adaptation=adaptation,
            note=note,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(
            f"{folder / 'manifest.json'} is damaged ({type(error).__name__}: {error}).",
            hint=_TRAIN_AGAIN,
        ) from None


def _probed_the_adapted(manifest: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether soft labels or a pool's confidence came from a teacher that had learnt the labels, as they once did.

    No run of now does that unasked (`confidence.teacher: same`), and none of both kinds may be averaged.
    """
    adapted = manifest.get("adapted") or {}
    if not adapted or adapted.get("untouched") or manifest.get("confidence_cache") is not None:
        return False
    probes = any(
        config.get(f"{phase}.soft_labels.weight") or config.get(f"{phase}.objective.weighting", "uniform") != "uniform"
        for phase in ("pool", "pre_phase")
    )
    return probes and config.get("confidence.teacher") != "same"


def _told(manifest: Mapping[str, Any]) -> tuple[str, str | None, str, str]:
    """Arm, teacher, adaptation and note of a run."""
    arm, config = str(manifest["arm"]), manifest["config"]
    if config.get("permute_teacher") and not arm.endswith(PERMUTED):
        arm += PERMUTED
    teacher = None if manifest.get("teacher") is None else str(manifest["teacher"])
    adapted = manifest.get("adapted") or {}
    notes = ["teacher at inference"] if config.get("visual_input") == "teacher" else []
    if adapted and adapted["outside"] != 0:
        notes.append("teacher saw other labels")
    if adapted.get("same_examples") and (teacher == adapted["name"] or adapted.get("untouched")):
        return arm, f"{adapted['base']}, adapted ({adapted['train']})", str(adapted["kind"]), "; ".join(notes)
    return arm, teacher, "", "; ".join(notes)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested config to dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Runs of one experiment together. Two runs of one experiment and seed (trained twice) count once: the last."""
    experiments: dict[str, dict[int, Run]] = defaultdict(dict)
    runs = sorted(runs, key=lambda run: run.path.name)
    # runs from before a student's own setup was noted belong with those since, if they can only be of one setup
    setups: dict[str, set[object]] = defaultdict(set)
    for run in runs:
        setups[run.experiment_of_any_setup].add(run.config.get(_SETUP))
    for run in runs:
        one = len(setups[run.experiment_of_any_setup] - {None}) == 1
        experiments[run.experiment_of_any_setup if one else run.experiment][run.seed] = run
    groups = [tuple(by_seed[seed] for seed in sorted(by_seed)) for by_seed in experiments.values()]
    arms: dict[tuple[str, ...], list[tuple[Run, ...]]] = defaultdict(list)
    for members in groups:
        first = members[0]
        arms[*first.table, first.student, first.arm].append(members)
    labelled = [Group(members, label) for arm in arms.values() for members, label in _labels(arm)]
    return sorted(labelled, key=_order)


def _labels(arm: Sequence[tuple[Run, ...]]) -> list[tuple[tuple[Run, ...], str]]:
    """Name the experiments of one arm by their notes, and where those do not tell them apart by settings, two at most.

    Only settings count in which experiments with equally many labels differ. So arms whose settings were chosen for
    each number of labels keep their plain name, and one experiment has one name at every number of labels: a curve.
    """
    plain = [f"{members[0].arm} ({members[0].note})" if members[0].note else members[0].arm for members in arm]
    settings = [{**members[0].config, "teacher": members[0].teacher} for members in arm]
    levels: dict[str, list[int]] = defaultdict(list)
    for place, members in enumerate(arm):
        levels[members[0].shots].append(place)
    alike = [places for places in levels.values() if len({plain[place] for place in places}) < len(places)]
    if not alike:
        return list(zip(arm, plain, strict=True))
    keys = sorted({key for one in settings for key in one})
    differing = [key for key in keys if any(len({repr(settings[at].get(key)) for at in here}) > 1 for here in alike)]
    if "teacher" in differing:  # says the same in better words
        differing = [key for key in differing if key != "cache_key"]
    names = []
    for one, name in zip(settings, plain, strict=True):
        shown = ", ".join(f"{key.rpartition('.')[2]}={one.get(key, LATER.get(key))}" for key in differing[:2])
        apart = digest_of([one.get(key) for key in differing])
        names.append(f"{name} [{shown}{f' #{apart[:4]}' if len(differing) > 2 else ''}]")
    return list(zip(arm, names, strict=True))


def _order(group: Group) -> tuple[object, ...]:
    run = group.first
    return (run.task, run.is_mini, *run.table, run.student, shots_order(run.shots), arm_order(run.arm), group.label)


def arm_order(arm: str) -> tuple[int, str]:
    """Sort key: shipped arms as the documentation lists them, others after them by name."""
    of = arm.removesuffix(PERMUTED)
    return (ARM_ORDER.index(of) if of in ARM_ORDER else len(ARM_ORDER), arm)


def shots_order(shots: str) -> tuple[int, float, str]:
    """Sort key: counts of questions, then shares, then full."""
    number = re.fullmatch(r"(\d+(?:\.\d+)?)(pct)?", shots)
    if number is None:
        return (2, 0.0, shots)
    return (1 if number[2] else 0, float(number[1]), shots)


def find_baseline(group: Group, groups: Sequence[Group], arm: str) -> Group | None:
    """The baseline of a group: same data, student and shots, at least one common seed.

    Of several the one whose settings agree most with the group's, then the one with more common seeds.
    """
    here = group.first
    if here.arm == arm:
        return None
    candidates = [
        other
        for other in groups
        if other.first.arm == arm
        and (*other.first.table, other.first.student, other.first.shots) == (*here.table, here.student, here.shots)
        and set(other.seeds) & set(group.seeds)
    ]

    def closeness(other: Group) -> tuple[int, int, str]:
        theirs = other.first.config
        same = sum(1 for key, value in here.config.items() if key in theirs and theirs[key] == value)
        return same, len(set(other.seeds) & set(group.seeds)), other.label

    return max(candidates, key=closeness, default=None)


def suites_of(group: Group, scores: Iterable[tuple[Run, str]]) -> list[str]:
    """The suites on which some run of the group has scores, in the order of `scores`."""
    return list(dict.fromkeys(suite for run, suite in scores if run in group.runs))


def _short(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"
