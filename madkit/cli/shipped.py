"""The configurations that madkit ships: arms, recipes and protocols by name, and what a user's own file is."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from madkit.core.errors import RunError, UsageProblem
from madkit.core.files import write_text_atomic
from madkit.core.registry import suggest

if TYPE_CHECKING:
    from madkit.core.config import StrictModel

KINDS = ("arm", "recipe", "protocol")
SUFFIXES = (".yaml", ".yml")
# How a copy is used: the command in which its path stands.
USE = {
    "arm": "madkit distill --task vcr --arm {path}",
    "recipe": "madkit distill --task {task} --student {student} --recipe {path}",
    "protocol": "madkit evaluate --protocol {path}",
}


@dataclass(frozen=True, slots=True)
class Shipped:
    """A configuration: what it is called, its kind, and its file."""

    name: str
    kind: str
    path: Path

    @property
    def text(self) -> str:
        """Its file; of an arm's control ("mad-permuted") the arm's, with what makes it the control."""
        text = self.path.read_text(encoding="utf-8")
        if not self.is_control:
            return text
        text = re.sub(r"^arm: .*$", f"arm: {self.name}", text, count=1, flags=re.MULTILINE)
        return f"{text}permute_teacher: true\n"

    @property
    def is_control(self) -> bool:
        """Whether it is the control of a shipped arm, which has no file of its own."""
        from madkit.distill.settings.arms import PERMUTED

        return self.kind == "arm" and self.name == f"{self.path.stem}{PERMUTED}"

    @property
    def about(self) -> str:
        """A line about it; empty where it says nothing."""
        from madkit.core.config import read_yaml

        values = read_yaml(self.path)
        if self.kind == "recipe":
            return f"{values.get('student')} on {values.get('task')}: {values.get('published')}"
        return str(values.get("description" if self.kind == "arm" else "about", ""))

    def as_row(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"name": self.name, "kind": self.kind, "about": self.about, "path": str(self.path)}


def shipped() -> list[Shipped]:
    """All of them: arms in the order of comparisons, then recipes, then protocols. A name is that of one kind only."""
    from madkit.distill.settings.arms import arm_names, arm_path
    from madkit.distill.settings.recipes import FOLDER as RECIPES
    from madkit.distill.settings.recipes import recipe_names
    from madkit.evaluate import protocol as protocols

    files = [("arm", name, arm_path(name)) for name in arm_names()]
    files += [("recipe", name, RECIPES / f"{name}.yaml") for name in recipe_names()]
    folder = Path(protocols.__file__).parent / "protocols"
    files += [("protocol", name, folder / f"{name}.yaml") for name in protocols.names()]
    return [Shipped(name, kind, path) for kind, name, path in files]


def find(name: str) -> Shipped:
    """The shipped configuration of a name, an arm's control ("mad-permuted"), or a file of the user's own by its path.

    Raises UsageProblem with the nearest name, NotFoundError for a missing file, ConfigError for one that is not YAML.
    """
    path = Path(name).expanduser()
    if path.suffix in SUFFIXES:
        if not path.is_file():
            from madkit.core.config import missing_file

            raise missing_file(path)
        return Shipped(path.stem, kind_of(path), path)
    from madkit.distill.settings.arms import PERMUTED, arm_names, arm_path, load_arm

    known = shipped()
    for one in known:
        if one.name == name:
            return one
    if name.endswith(PERMUTED) and name.removesuffix(PERMUTED) in arm_names():
        load_arm(name)  # says so where nothing is distilled, and so nothing can be permuted
        return Shipped(name, "arm", arm_path(name))
    raise UsageProblem(
        f"There is no configuration '{name}'.{suggest(name, [one.name for one in known])}",
        hint="see what there is: madkit config list",
    )


def kind_of(path: Path) -> str:
    """What a file of the user's own is, by the keys at its top: those of one kind are not those of another."""
    from madkit.core.config import read_yaml

    keys = set(read_yaml(path))
    if "recipe" in keys:
        return "recipe"
    of_arm, of_protocol = (len(keys & set(_schema(kind).model_fields)) for kind in ("arm", "protocol"))
    return "protocol" if of_protocol > of_arm else "arm"


def load(one: Shipped) -> StrictModel:
    """Its typed configuration. Raises ConfigError, which lists every wrong key at once."""
    if one.kind == "arm":
        from madkit.distill.settings.arms import load_arm

        if one.is_control:
            return load_arm(one.name).model_copy(update={"arm": one.name})
        return load_arm(str(one.path))
    from madkit.core.config import load_config

    return load_config(_schema(one.kind), one.path, {})


def copy_out(name: str, path: Path | None, *, force: bool) -> tuple[Shipped, Path]:
    """Write a copy to be edited, comments and all, under a name of its own.

    Args:
        name: of a shipped configuration.
        path: a YAML file, or a folder; None: ``my-NAME.yaml`` here.
        force: replace a file that is there.

    Raises:
        UsageProblem: no such configuration, a file that is there, or a path that could not be given back.
        RunError: it cannot be written.
    """
    one = find(name)
    target = (path or Path()).expanduser()
    if path is None or target.is_dir():
        target = target / f"my-{one.name}.yaml"
    if target.suffix not in SUFFIXES:
        raise UsageProblem(f"{target} does not end in .yaml.", hint=f"madkit config init {name} {target}.yaml")
    if target.exists() and not force:
        raise UsageProblem(f"{target} exists.", hint="name another file, or replace it: --force")
    own = re.sub(r"[^a-z0-9]+", "-", target.stem.lower()).strip("-") or f"my-{one.name}"
    text = one.text
    if one.kind != "protocol":  # a protocol goes by its file's name
        text = re.sub(rf"^{one.kind}: .*$", f"{one.kind}: {own}", text, count=1, flags=re.MULTILINE)
    try:
        write_text_atomic(target, f"# A copy of madkit's {one.kind} {one.name}, to be edited.\n{text}")
    except OSError as error:
        raise RunError(f"{target} cannot be written ({error.strerror or error}).") from None
    return one, target


def how_to_use(one: Shipped, path: Path) -> str:
    """The command that takes a copy."""
    if one.kind != "recipe":
        return USE[one.kind].format(path=path)
    values: Any = load(one)
    return USE["recipe"].format(path=path, task=values.task, student=values.student)


def _schema(kind: str) -> type[StrictModel]:
    if kind == "arm":
        from madkit.distill.settings.config import DistillConfig

        return DistillConfig
    if kind == "recipe":
        from madkit.distill.settings.recipes import Recipe

        return Recipe
    from madkit.evaluate.protocol import Protocol

    return Protocol


def only(kind: str | None) -> Iterable[Shipped]:
    """The shipped ones of a kind, or all. Raises UsageProblem for a kind that does not exist."""
    if kind is not None and kind not in KINDS:
        raise UsageProblem(f"There is no kind '{kind}'.{suggest(kind, KINDS)}", hint=f"one of: {', '.join(KINDS)}")
    return [one for one in shipped() if kind in (None, one.kind)]
