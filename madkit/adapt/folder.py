"""Folders of adaptation runs: where one lies, what its manifest says, and when there is nothing left to do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from madkit.adapt.config import OUTSIDE_DIGEST, AdaptConfig
from madkit.core.errors import RunError, UsageProblem
from madkit.core.files import digest_of
from madkit.core.manifest_folder import ManifestFolder
from madkit.core.workspace import Workspace
from madkit.teachers.adapter import SCHEMA, adapters_folder
from madkit.teachers.known import KNOWN, parse_teacher_name


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


class AdaptFolder(ManifestFolder):
    """One run: ``<workspace>/adapters/<name>/``."""

    schema = SCHEMA
    kind = "adapter"
    config: AdaptConfig

    def __init__(self, workspace: Workspace, identity: AdaptIdentity, config: AdaptConfig, name: str | None) -> None:
        """Find the folder of a run; nothing is created.

        Raises:
            UsageProblem: a name that cannot be a folder's, or is a teacher's own.
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
        if name in (slug, *KNOWN):  # --teacher would mean two
            raise UsageProblem(
                f"'{name}' is the name of a teacher as it was published, and an adapted one needs another.",
                hint=f"leave out --name, or choose one such as --name {slug}-{identity.source}",
            )
        self.name = name or f"{slug}-{identity.source}-{shots}-{config.train}-s{identity.seed}-{self.digest[:8]}"
        self.path: Path = adapters_folder(workspace) / self.name
        found = self.manifest()
        if found is not None and found.get("digest") != self.digest:
            raise RunError(
                f"The name '{self.name}' belongs to another adaptation (of {found.get('teacher')} on "
                f"{found.get('source')}, {found.get('shots')}, {found.get('config', {}).get('train')}).",
                hint="choose another --name, or remove the folder " + str(self.path),
            )

    def described(self) -> dict[str, Any]:
        """Name, identity and digest."""
        return {"name": self.name, **asdict(self.identity), "digest": self.digest}
