"""Folders of adaptation runs: where one lies, what its manifest says, and when there is nothing left to do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from madkit.adapt.config import OUTSIDE_DIGEST, AdaptConfig
from madkit.core.environment import environment
from madkit.core.errors import RunError, UsageProblem
from madkit.core.files import digest_of, read_json, write_json_atomic, write_text_atomic
from madkit.core.workspace import Workspace
from madkit.teachers.adapter import MANIFEST, SCHEMA, adapters_folder
from madkit.teachers.known import parse_teacher_name

CONFIG = "config.yaml"


@dataclass(frozen=True, slots=True)
class AdaptIdentity:
    """Everything that decides the numbers of a run, but the code, the machine and the configuration.

    `base` holds the digests of the teacher's weights by side, `examples` digests the ids of the training subset.
    """

    teacher: str
    base: Mapping[str, str]
    task: str
    source: str
    data_revision: str
    is_mini: bool
    shots: str
    seed: int
    examples: str

    def digest(self, config: AdaptConfig) -> str:
        """16 hex digits over the identity and the configuration."""
        values = {key: value for key, value in config.model_dump(mode="json").items() if key not in OUTSIDE_DIGEST}
        return digest_of([asdict(self), values])


class AdaptFolder:
    """One run: ``<workspace>/adapters/<name>/``."""

    def __init__(self, workspace: Workspace, identity: AdaptIdentity, config: AdaptConfig, name: str | None) -> None:
        """Find the folder of a run; nothing is created.

        Raises:
            UsageProblem: a name that cannot be a folder's.
            RunError: another run has the name.
        """
        self.identity = identity
        self.config = config
        self.digest = identity.digest(config)
        if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise UsageProblem(
                f"'{name}' cannot be the name of an adapted teacher.", hint="use letters, digits, dots and dashes"
            )
        shots = identity.shots.replace(":", "-")
        slug = parse_teacher_name(identity.teacher).slug
        self.name = name or f"{slug}-{identity.source}-{shots}-{config.train}-s{identity.seed}-{self.digest[:8]}"
        self.path: Path = adapters_folder(workspace) / self.name
        found = self.manifest()
        if found is not None and found.get("digest") != self.digest:
            raise RunError(
                f"The name '{self.name}' belongs to another adaptation (of {found.get('teacher')} on "
                f"{found.get('source')}, {found.get('shots')}, {found.get('config', {}).get('train')}).",
                hint="choose another --name, or remove the folder " + str(self.path),
            )

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

    def begin(self) -> None:
        """Write the resolved configuration and a manifest that says the run is under way."""
        write_text_atomic(self.path / CONFIG, yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False))
        self._write({"status": "running"})

    def finish(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Write the last word: the manifest with status "complete" and `facts`."""
        return self._write({"status": "complete", **facts})

    def _write(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        manifest = {
            "schema": SCHEMA,
            "kind": "adapter",
            "name": self.name,
            **asdict(self.identity),
            "digest": self.digest,
            "config": self.config.model_dump(mode="json"),
            "environment": environment(),
            **facts,
        }
        write_json_atomic(self.path / MANIFEST, manifest)
        return manifest
