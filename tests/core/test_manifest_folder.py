"""Folders of work: what their manifest says before, while and after, in an order that stays."""

from __future__ import annotations

import json
from pathlib import Path

import pydantic
import yaml

from madkit.core.manifest_folder import ManifestFolder


class Settings(pydantic.BaseModel):
    steps: int = 3
    rate: float = 0.5


class Work(ManifestFolder):
    schema = 2
    kind = "work"

    def __init__(self, path: Path) -> None:
        self.path, self.config = path, Settings()

    def described(self) -> dict[str, object]:
        return {"name": "w", "digest": "00ff"}

    def surroundings(self) -> dict[str, object]:
        return {"environment": {"python": "3"}}


def test_a_manifest_says_how_far_the_work_came(tmp_path: Path) -> None:
    work = Work(tmp_path / "deep" / "work")
    assert work.manifest() is None
    assert work.complete() is None
    assert not work.path.exists()
    work.begin({"threads": 1})
    assert yaml.safe_load((work.path / "config.yaml").read_text()) == {"steps": 3, "rate": 0.5}
    begun = work.manifest()
    assert begun is not None
    assert list(begun) == ["schema", "kind", "name", "digest", "config", "environment", "status", "threads"]
    assert (begun["schema"], begun["kind"], begun["status"]) == (2, "work", "running")
    assert work.complete() is None
    assert work.finish({"score": 0.25}) == work.complete()
    assert json.loads((work.path / "manifest.json").read_text())["score"] == 0.25


def test_what_is_no_manifest_is_none(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("[1]")
    assert Work(tmp_path).manifest() is None
    (tmp_path / "manifest.json").write_text('{"status": "running"}')
    assert Work(tmp_path).complete() is None
