"""Arms by name: shipped configurations, each a YAML file that can be copied out, edited and given back by its path."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from madkit.core.config import flat, key_parts, load_config, read_yaml
from madkit.core.errors import ConfigError, NotFoundError, UsageProblem
from madkit.core.registry import suggest

if TYPE_CHECKING:
    from madkit.distill.settings.config import DistillConfig

FOLDER = Path(__file__).parent / "arms"
PERMUTED = "-permuted"  # at the end of an arm's name: its control, as run folders and tables call it
TAUGHT = ("mad", "pre_phase", "pool")  # sections that an arm may lack; one of their settings switches them on
# Baselines, naive distillation, the method and its ablations, what goes beyond it, the teacher as the student's eyes.
ORDER = (
    "finetune", "finetune-long", "kd-global", "kd-all", "mad", "mad-no-selection", "mad-no-confidence",
    "mad-no-adaptation", "affinity", "affinity-absolute", "mad-affinity", "mad-affinity-labelled", "soft-labels",
    "clip-vil",
)  # fmt: skip


def arm_names() -> list[str]:
    """The shipped arms, in the order in which comparisons list them."""
    found = {path.stem for path in FOLDER.glob("*.yaml")}
    return [name for name in ORDER if name in found] + sorted(found - set(ORDER))


def arm_path(arm: str) -> Path:
    """The YAML file of an arm: a shipped name, its control's ("mad-permuted"), or the path of a file.

    Raises UsageProblem, with the nearest name, for a name that is not shipped, NotFoundError for a missing file.
    """
    if (shipped := arm.removesuffix(PERMUTED)) in arm_names():
        return FOLDER / f"{shipped}.yaml"
    path = Path(arm).expanduser()
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise NotFoundError(f"There is no arm configuration {path}.")
        return path
    raise UsageProblem(
        f"There is no arm '{arm}'.{suggest(arm, arm_names())}",
        hint=f"one of: {', '.join(arm_names())}; or the path of a YAML file.",
    )


def load_arm(
    arm: str, overrides: Mapping[str, Any] | None = None, *, below: Mapping[str, Any] | None = None
) -> DistillConfig:
    """The typed configuration of an arm with `overrides` (dotted keys) on top, and a recipe's settings `below` it.

    An override of None is a value: it takes a section away, or leaves a number to be measured.

    A setting of a section that the arm lacks switches that section on, but not in a shipped arm without a teacher: a
    baseline stays one. "mad-permuted" is `mad` with `permute_teacher`. A file of one's own that names no arm gets the
    stem of its name.

    Raises UsageProblem, NotFoundError or ConfigError; the last lists every wrong key at once.
    """
    _refuse_to_teach(arm, overrides or {})
    from madkit.distill.settings.config import ARM_NAME, DistillConfig

    path = arm_path(arm)
    values = dict(overrides or {})
    if arm == f"{path.stem}{PERMUTED}":
        values["permute_teacher"] = True
    config = load_config(DistillConfig, path, values, below=below, nulls=True)
    if config.arm:
        return config
    if not re.fullmatch(ARM_NAME, path.stem):
        raise ConfigError(
            f"{path} names no arm, and '{path.stem}' cannot be the name of one.",
            hint="write into it: arm: NAME, in small letters, digits and dashes",
        )
    return config.model_copy(update={"arm": path.stem})


def meant_for(arm: str, settings: Mapping[str, Any], arms: Iterable[str]) -> dict[str, Any]:
    """Those of `settings`, which several `arms` share, that are for `arm`; by their whole keys (`flat`).

    What concerns a teacher (`TAUGHT`, and `teachers`) is not for a plain baseline beside an arm that is none: it would
    make the baseline the arm. A setting of a section that some of them have in their files is for those alone; where
    none has it, it is for all that are no baseline, as for a single one.

    Raises as `arm_path` and `read_yaml`.
    """
    others = [other for other in arms if not _plain(other)]
    if others and _plain(arm):
        not_its = {*TAUGHT, "teachers"}
    else:
        not_its = {section for other in others for section in _taught(other)} - _taught(arm)
    return {key: value for key, value in flat(settings).items() if section_of(key) not in not_its}


def left_out(settings: Mapping[str, Any], arms: Iterable[str]) -> dict[str, list[str]]:
    """The settings that are not for all of the `arms` that share them (`meant_for`), with those that go without."""
    arms = list(dict.fromkeys(arms))
    theirs = {arm: meant_for(arm, settings, arms) for arm in arms}
    without = {key: [arm for arm in arms if key not in theirs[arm]] for key in flat(settings)}
    return {key: found for key, found in without.items() if found}


def section_of(key: str) -> str:
    """The section that a setting belongs to: what is said of a teacher's own `mad` is for arms with a `mad`."""
    parts = key_parts(key)
    return "mad" if parts[0] == "teachers" and parts[2:3] == ("mad",) else parts[0]


def _taught(arm: str) -> set[str]:
    values = read_yaml(arm_path(arm))
    return {section for section in TAUGHT if values.get(section) is not None}


def _plain(arm: str) -> bool:
    """Whether it is a shipped baseline: without a teacher, and meant to stay so under its name."""
    path = arm_path(arm)
    return path.parent == FOLDER and not _taught(arm) and read_yaml(path).get("visual_input") != "teacher"


def _refuse_to_teach(arm: str, settings: Mapping[str, Any]) -> None:
    """Refuse settings that would make a shipped baseline something else under its own name."""
    if not _plain(arm):
        return
    wrong = [
        key
        for key, value in settings.items()
        if key_parts(key)[0] in TAUGHT and (key not in TAUGHT or value is not None)
    ]
    if wrong:
        be, it = ("is", "it") if len(wrong) == 1 else ("are", "them")
        raise ConfigError(
            f"{arm} is plain fine-tuning, without a teacher: {', '.join(wrong)} {be} not for it.",
            hint=f"take another arm, or set {it} in one of your own: madkit config init {arm_path(arm).stem} "
            "mine.yaml, then --arm mine.yaml",
        )


def parse_overrides(pairs: list[str]) -> dict[str, Any]:
    """``["mad.k_text=8", "optim.clip=0"]`` as a mapping; values are read as YAML.

    Raises UsageProblem for text without ``=`` or a value that YAML cannot read.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UsageProblem(f"'--set {pair}' is not key=value.", hint="for example: --set optim.learning_rate=2e-4")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UsageProblem(
                f"The value of '--set {pair}' is not valid YAML.", hint="quote it: --set 'key=[1, 2]'"
            ) from None
        values[key] = value  # YAML 1.1 reads 3e-4 as text; the schema turns it into a number
    return values
