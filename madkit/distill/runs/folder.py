"""Run folders: where a run lies, what its manifest says, and when there is nothing left to do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from madkit.core.environment import environment
from madkit.core.errors import RunError
from madkit.core.files import digest_of, sha256_file
from madkit.core.later_keys import OUTSIDE, without_later
from madkit.core.manifest_folder import MANIFEST as MANIFEST
from madkit.core.manifest_folder import ManifestFolder
from madkit.core.workspace import Workspace
from madkit.distill.runs.compute import code_identity
from madkit.distill.settings.config import DistillConfig

SCHEMA = 1
# Keys that came later than the first runs stand in madkit.core.later_keys.LATER, with the default that means as before.


class RunBusy(RunError):
    """Another process trains this run."""


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """Everything that decides the numbers of a run, but the code and the machine.

    `student` is a readable name, `student_digest` stands for its initial weights; `teacher` and `cache_key` are None
    for arms without one. `examples` digests the ids of the labelled subset, `regions` the region features where they
    were added to the data (None: they came with it), `confidence_cache` is another cache that the teacher's confidence
    and soft labels come from (None: `cache_key`), `student_setup` stands for the student's configuration and tokenizer
    (None: those of a student that ships with madkit or that it made).
    """

    task: str
    source: str
    data_revision: str
    is_mini: bool
    student: str
    student_digest: str
    arm: str
    shots: str
    seed: int
    teacher: str | None
    cache_key: str | None
    examples: str
    regions: str | None = None
    confidence_cache: str | None = None
    student_setup: str | None = None

    def digest(self, config: DistillConfig) -> str:
        """16 hex digits over the identity and the configuration."""
        values = {key: value for key, value in config.model_dump(mode="json").items() if key not in OUTSIDE}
        if config.answers is not None:
            values["answers"] = sha256_file(Path(config.answers))
        values = without_later(values)
        later = ("regions", "confidence_cache", "student_setup")
        own = {key: value for key, value in asdict(self).items() if key not in later or value is not None}
        return digest_of([own, values])


def slug(name: str) -> str:
    """`name` as a piece of a folder name: the last part of a path, lower case, without odd characters."""
    return re.sub(r"[^a-z0-9.]+", "-", Path(name).name.lower()).strip("-.") or "student"


class RunFolder(ManifestFolder):
    """One run: ``<workspace>/runs/<source>/<student>-<arm>-<shots>-s<seed>-<digest8>/``."""

    schema = SCHEMA
    kind = "run"
    config: DistillConfig

    def __init__(
        self, path: Path, identity: RunIdentity, config: DistillConfig, spec: Mapping[str, Any] | None = None
    ) -> None:
        self.path = path
        self.identity = identity
        self.config = config
        self.spec = spec

    @classmethod
    def of(
        cls,
        workspace: Workspace,
        identity: RunIdentity,
        config: DistillConfig,
        spec: Mapping[str, Any] | None = None,
    ) -> RunFolder:
        """The folder of a run; nothing is created. `spec` describes the task in the manifest, for runs that outlive
        their data; it follows from the data's revision and so is no part of the identity.
        """
        shots = identity.shots.replace(":", "-")
        name = f"{slug(identity.student)}-{identity.arm}-{shots}-s{identity.seed}"
        digest = identity.digest(config)[:8]
        return cls(workspace.runs / identity.source / f"{name}-{digest}", identity, config, spec)

    def described(self) -> dict[str, Any]:
        """Identity, task and digest."""
        spec = {"spec": dict(self.spec)} if self.spec is not None else {}
        return {**asdict(self.identity), **spec, "digest": self.identity.digest(self.config)}

    def surroundings(self) -> dict[str, Any]:
        """The code that trains, and the environment."""
        return {"code": code_identity(), "environment": environment()}
