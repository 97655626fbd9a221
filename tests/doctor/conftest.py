"""A workspace made by hand: a cache, a run and an adapted teacher, all whole."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from madkit.cli.main import main
from madkit.core.workspace import Workspace
from madkit.doctor.findings import Finding
from madkit.doctor.probe import _zarr
from madkit.tasks.data import every_dataset

MANIFEST: dict[str, Any] = {
    "schema": 1, "kind": "run", "task": "snli-ve", "source": "mini-snli-ve", "data_revision": "r", "is_mini": True,
    "student": "mini-uniter", "arm": "mad", "shots": "1pct", "seed": 3, "teacher": "mini", "cache_key": "mini-x-0",
    "config": {"arm": "mad"}, "status": "complete",
}  # fmt: skip


def write_student(folder: Path) -> None:
    folder.mkdir(parents=True)
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    (folder / "config.json").write_text("{}")
    (folder / "vocab.txt").write_text("[PAD]\n")


class MadeWorkspace:
    def __init__(self, root: Path) -> None:
        self.workspace = Workspace.at(root)
        self.store = root / "cache" / "doctor-vcr-000000000000"
        self.store.parent.mkdir(parents=True)
        assert _zarr(self.store)["ok"]
        self.run = root / "runs" / "mini-snli-ve" / "mini-uniter-mad-1pct-s3-00000000"
        write_student(self.run / "student")
        self.say()
        self.adapter = root / "adapters" / "mine"
        self.adapter.mkdir(parents=True)
        (self.adapter / "adapter.safetensors").write_text("x")
        self.say_adapter()

    def say(self, **other: Any) -> None:
        (self.run / "manifest.json").write_text(json.dumps({**MANIFEST, **other}))

    def add_data(self) -> None:
        """The data that the run learnt on: one question of one's own."""
        folder = self.workspace.root.parent / "mine"
        folder.mkdir()
        Image.new("RGB", (8, 8)).save(folder / "a.png")
        line = {"split": "test", "image": "a.png", "text": "x", "choices": ["a", "b"], "label": 0}
        (folder / "mine.jsonl").write_text(json.dumps(line) + "\n")
        where = ["--name", "mine", "--workspace", str(self.workspace.root)]
        assert main(["data", "import", "custom", str(folder / "mine.jsonl"), "--kind", "multiple-choice", *where]) == 0
        (data,) = every_dataset(self.workspace)
        self.say(task="mine", source=data.source, data_revision=data.revision, is_mini=False)

    def say_adapter(self, **other: Any) -> None:
        facts = {"status": "complete", "teacher": "mini", "task": "vcr", "shots": "5pct", "seed": 1, **other}
        (self.adapter / "manifest.json").write_text(json.dumps(facts))


@pytest.fixture
def made(tmp_path: Path) -> MadeWorkspace:
    return MadeWorkspace(tmp_path / "ws")


def one(findings: list[Finding], name: str) -> Finding:
    (found,) = [finding for finding in findings if finding.name == name]
    return found
