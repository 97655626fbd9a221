"""What a card tells of a run, gathered from its manifest: where it comes from, what taught it, under which terms.

Names of files on the machine that trained it stay there: of a path only its last part is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from madkit.core.errors import MadkitError
from madkit.core.files import read_json
from madkit.share.names import UNKNOWN
from madkit.teachers.known import KNOWN

if TYPE_CHECKING:
    from madkit.core.workspace import Workspace
    from madkit.evaluate.grid import Run
    from madkit.share.scores import Score
    from madkit.students.families import Family
    from madkit.students.heads import HeadSpec
    from madkit.tasks.spec import TaskSpec

NO_CHECKPOINT = "no checkpoint"  # what students.start calls weights that were drawn
# What the owners of the real data say, as docs/data.md tells it.
DATA_TERMS = {
    "vcr": "VCR's own licence agreement; its images must not be passed on",
    "snli-ve": "SNLI-VE: BSD-2; SNLI: CC BY-SA 4.0; Flickr30k: on request, for research and education",
    "vqa": "questions and answers CC BY 4.0; photos under their owners' licences",
}
MINI_TERMS = "drawn by program, part of madkit"
OWN_TERMS = "the owner's"
_EMBEDDED = "mini"
_VERSIONS = ("madkit", "python", "torch", "transformers", "tokenizers", "accelerate", "safetensors", "numpy", "gpu")


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything a card is written from.

    `manifest` is the run's, cleaned of paths; `started_from` is what the student's first weights were (a checkpoint's
    name on the hub, None where that is not known or they are embedded).
    """

    run: Run
    spec: TaskSpec
    manifest: Mapping[str, Any]
    family: Family
    head: HeadSpec
    region_dim: int
    parameters: int
    scores: tuple[Score, ...]
    licence: str
    started_from: str | None = None

    @property
    def student(self) -> str:
        """Name of the student."""
        return str(self.manifest["student"])

    @property
    def teacher(self) -> str | None:
        """Name of the teacher, None where nothing of one was read."""
        found = self.manifest.get("teacher")
        return None if found is None else str(found)

    @property
    def data_terms(self) -> str:
        """Terms of the data in a clause."""
        return MINI_TERMS if self.run.is_mini else DATA_TERMS.get(self.run.task, OWN_TERMS)


def public_manifest(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A run's manifest without anything of the machine's file system and without its host's details."""
    kept = {key: value for key, value in manifest.items() if key != "environment"}
    kept["student"] = public_name(str(manifest["student"]))
    for key in ("teacher", "cache_key"):
        if manifest.get(key) is not None:
            kept[key] = public_name(str(manifest[key]))
    kept["config"] = _cleaned(manifest.get("config") or {})
    if manifest.get("adapted"):
        kept["adapted"] = _adapted(manifest["adapted"])
    if manifest.get("teachers"):  # several at once
        kept["teachers"] = [
            {
                **_cleaned(one),
                "name": public_name(one["name"]),
                "cache": public_name(one["cache"]),
                "adapted": _adapted(one["adapted"]) if one.get("adapted") else None,
            }
            for one in manifest["teachers"]
        ]
        told = kept["config"].get("teachers", {})
        kept["config"] |= {"teachers": {public_name(name): settings for name, settings in told.items()}}
    environment = manifest.get("environment") or {}
    kept["environment"] = {key: environment.get(key) for key in _VERSIONS if key in environment}
    return kept


def _adapted(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest says of an adapted teacher, its names cleaned."""
    names = {key: public_name(str(facts[key])) for key in ("name", "base") if facts.get(key) is not None}
    return {**_cleaned(facts), **names}


def public_name(name: str) -> str:
    """The name with every path in it cut down to its last part: `local:/home/me/clip` becomes `local:clip`.

    Several teachers are named with commas between them, the two of a joined one with a plus sign.
    """
    return ", ".join("+".join(_shortened(part) for part in one.split("+")) for one in name.split(", "))


def _shortened(name: str) -> str:
    scheme, colon, rest = name.rpartition(":")
    if scheme == "local" or rest.startswith(("/", "./", "../", "~")):
        return f"{scheme}{colon}{Path(rest).name}"
    return name


def _cleaned(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _cleaned(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_cleaned(one) for one in value]
    return public_name(value) if isinstance(value, str) and value.startswith(("/", "./", "../", "~")) else value


def default_licence(workspace: Workspace, run: Run, manifest: Mapping[str, Any]) -> str:
    """`apache-2.0`, madkit's own, where student, data and teacher are all embedded in it; `unknown` otherwise."""
    from madkit.students.load import SHIPPED  # torch: not where a folder is pushed as it is

    embedded = run.is_mini and all(base == _EMBEDDED for _, base in teachers_of(manifest))
    own = run.student in SHIPPED or _beginning(workspace, run.student) in (*SHIPPED, NO_CHECKPOINT)
    return "apache-2.0" if embedded and own else UNKNOWN


def teachers_of(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and base of every teacher of a run; the two differ where a teacher was adapted."""
    rows = manifest.get("teachers") or []
    if not rows and manifest.get("teacher") is not None:
        rows = [{"name": manifest["teacher"], "adapted": manifest.get("adapted")}]
    return [(str(row["name"]), str((row.get("adapted") or {}).get("base") or row["name"])) for row in rows]


def teacher_licence(name: str | None) -> str | None:
    """What is known of a teacher's licence, in a clause; None without a teacher."""
    if name is None:
        return None
    parts = [part for one in name.split(", ") for part in one.split("+")]
    known = [(part, KNOWN[part].licence if part in KNOWN else UNKNOWN) for part in parts]
    return "; ".join(licence if len(known) == 1 else f"{part}: {licence}" for part, licence in known)


def first_weights(workspace: Workspace, student: str) -> str | None:
    """The hub's name of the checkpoint that a student began with, as its folder in the workspace tells."""
    source = _beginning(workspace, student)
    plain = source.count("/") == 1 and not source.startswith((".", "/", "~")) and not Path(source).exists()
    return source if plain else None


def _beginning(workspace: Workspace, student: str) -> str:
    """What `students.start` wrote down about a student's first weights; "" where nothing is known."""
    try:
        return str(read_json(workspace.root / "students" / student / "beginning.json").get("source", ""))
    except (MadkitError, AttributeError):
        return ""
