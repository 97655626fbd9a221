"""Run folders: where a run lies, what its manifest says, and when there is nothing left to do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from madkit.core.environment import environment
from madkit.core.errors import RunError
from madkit.core.files import digest_of, read_json, sha256_file, write_json_atomic, write_text_atomic
from madkit.core.later_keys import OUTSIDE, without_later
from madkit.core.workspace import Workspace
from madkit.distill.compute import code_identity
from madkit.distill.config import DistillConfig

SCHEMA = 1
MANIFEST = "manifest.json"
# Keys that came later than the first runs stand in madkit.core.later_keys.LATER, with the default that means as before.


class RunBusy(RunError):
    """Another process trains this run."""


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """Everything that decides the numbers of a run, but the code and the machine.

    `student` is a readable name, `student_digest` stands for its initial weights; `teacher` and `cache_key` are None
    for arms without one. `examples` digests the ids of the labelled subset, `regions` the region features where they
    were added to the data (None: they came with it), `confidence_cache` is another cache that the teacher's confidence
    comes from (None: `cache_key`).
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

    def digest(self, config: DistillConfig) -> str:
        """16 hex digits over the identity and the configuration."""
        values = {key: value for key, value in config.model_dump(mode="json").items() if key not in OUTSIDE}
        if config.answers is not None:
            values["answers"] = sha256_file(Path(config.answers))
        values = without_later(values)
        later = ("regions", "confidence_cache")
        own = {key: value for key, value in asdict(self).items() if key not in later or value is not None}
        return digest_of([own, values])


def slug(name: str) -> str:
    """`name` as a piece of a folder name: the last part of a path, lower case, without odd characters."""
    return re.sub(r"[^a-z0-9.]+", "-", Path(name).name.lower()).strip("-.") or "student"


class RunFolder:
    """One run: ``<workspace>/runs/<source>/<student>-<arm>-<shots>-s<seed>-<digest8>/``."""

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

    def manifest(self) -> dict[str, Any] | None:
        """The manifest, or None before the run has begun."""
        path = self.path / MANIFEST
        if not path.exists():
            return None
        found = read_json(path)
        return found if isinstance(found, dict) else None

    def complete(self) -> dict[str, Any] | None:
        """The manifest of a run that is complete, else None."""
        found = self.manifest()
        return found if found is not None and found.get("status") == "complete" else None

    def begin(self, facts: dict[str, Any]) -> None:
        """Write the resolved configuration and a manifest that says the run is under way, with `facts`."""
        text = yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False)
        write_text_atomic(self.path / "config.yaml", text)
        self._write({"status": "running", **facts})

    def finish(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Write the last word: the manifest with status "complete" and `facts`."""
        return self._write({"status": "complete", **facts})

    def _write(self, facts: dict[str, Any]) -> dict[str, Any]:
        manifest = {
            "schema": SCHEMA,
            "kind": "run",
            **asdict(self.identity),
            **({"spec": dict(self.spec)} if self.spec is not None else {}),
            "digest": self.identity.digest(self.config),
            "config": self.config.model_dump(mode="json"),
            "code": code_identity(),
            "environment": environment(),
            **facts,
        }
        write_json_atomic(self.path / MANIFEST, manifest)
        return manifest
