"""A folder of one piece of work: its configuration, and a manifest that is rewritten last and says how far it came."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import pydantic
import yaml

from madkit.core.environment import environment
from madkit.core.files import read_json, write_json_atomic, write_text_atomic

MANIFEST = "manifest.json"
CONFIG = "config.yaml"


class ManifestFolder(ABC):
    """Base of the folders that `distill` and `adapt` fill.

    Attributes:
        path: the folder; nothing is created before :meth:`begin`.
        config: the resolved configuration.
        schema: version of the manifest.
        kind: what the folder holds, as its manifest says.
    """

    schema: ClassVar[int] = 1
    kind: ClassVar[str]
    path: Path
    config: pydantic.BaseModel

    @abstractmethod
    def described(self) -> Mapping[str, Any]:
        """What the manifest says from the start: the identity, and its digest."""

    def manifest(self) -> dict[str, Any] | None:
        """The manifest, or None before the work has begun."""
        path = self.path / MANIFEST
        if not path.exists():
            return None
        found = read_json(path)
        return found if isinstance(found, dict) else None

    def complete(self) -> dict[str, Any] | None:
        """The manifest of work that is complete, else None."""
        found = self.manifest()
        return found if found is not None and found.get("status") == "complete" else None

    def surroundings(self) -> Mapping[str, Any]:
        """What the manifest says of the machine and the programs."""
        return {"environment": environment()}

    def begin(self, facts: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Write the resolved configuration and a manifest that says the work is under way, with `facts`."""
        write_text_atomic(self.path / CONFIG, yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False))
        self._write({"status": "running", **facts})

    def finish(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Write the last word: the manifest with status "complete" and `facts`."""
        return self._write({"status": "complete", **facts})

    def _write(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        manifest = {
            "schema": self.schema,
            "kind": self.kind,
            **self.described(),
            "config": self.config.model_dump(mode="json"),
            **self.surroundings(),
            **facts,
        }
        write_json_atomic(self.path / MANIFEST, manifest)
        return manifest
