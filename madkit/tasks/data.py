"""A task's data in a workspace: the imported benchmark, or the embedded one when there is none."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from madkit.core.console import info
from madkit.core.errors import DataError, NotFoundError
from madkit.core.files import read_json
from madkit.core.registry import suggest
from madkit.core.workspace import Workspace
from madkit.tasks.example import Example
from madkit.tasks.spec import TaskSpec, get_task

if TYPE_CHECKING:
    from madkit.regions import RegionReader

MANIFEST = "manifest.json"
SCHEMA = 1
_SPLITS = ("train", "dev", "test")


class TaskData:
    """The examples of one task, read on demand from the files that a manifest names.

    A manifest lies beside the data and is written last, so that a folder with a manifest is complete. Its `splits` map
    a name to a file format and paths relative to the manifest's folder.

    Attributes:
        spec: the task.
        source: which data it is, "vcr" or "mini-vcr"; stands in every run and table.
        revision: 16 hex digits that change with the data.
        root: the manifest's folder.
        manifest: the manifest's content.
    """

    def __init__(self, root: Path, *, task: str | None = None) -> None:
        """Open the data in a folder. Raises NotFoundError or DataError for a missing or broken manifest."""
        path = root / MANIFEST
        manifest = read_json(path)
        self.root = root
        self.manifest: dict[str, Any] = _checked(manifest, path)
        self.source: str = manifest["source"]
        self.revision: str = manifest["revision"]
        if task is not None and manifest["task"] != task:
            raise DataError(f"{path} describes the task {manifest['task']!r}, not {task!r}.")
        self.spec: TaskSpec = get_task(manifest["task"])
        self._examples: dict[str, list[Example]] = {}
        self._regions: RegionReader | None = None
        self._lock = threading.RLock()

    @property
    def is_mini(self) -> bool:
        """Whether this is the embedded benchmark."""
        return self.source.startswith("mini-")

    def splits(self) -> list[str]:
        """The names among train, dev and test that the data has."""
        return [name for name in _SPLITS if name in self.manifest["splits"]]

    def suites(self) -> list[str]:
        """The test suites: "test" first, then the shifted ones in the manifest's order."""
        names = [name for name in self.manifest["splits"] if name not in _SPLITS]
        return (["test"] if "test" in self.manifest["splits"] else []) + names

    def examples(self, name: str) -> list[Example]:
        """The examples of a split or suite; read once, then kept. The list is shared: do not change it.

        Raises NotFoundError for an unknown name and DataError for a file that breaks its format.
        """
        with self._lock:
            if name not in self._examples:
                self._examples[name] = self._read(name)
            return self._examples[name]

    def regions(self) -> RegionReader | None:
        """The region features of the images (one reader, kept open), None where the data has none."""
        entry = self.manifest.get("regions")
        if entry is None:
            return None
        with self._lock:
            if self._regions is None:
                from madkit.regions import open_regions

                self._regions = open_regions(str(entry["format"]), self.root / str(entry["path"]))
            return self._regions

    def _read(self, name: str) -> list[Example]:
        entries = self.manifest["splits"]
        if name not in entries:
            raise NotFoundError(
                f"{self.source} has no split or test suite {name!r}.{suggest(name, entries)}",
                hint=f"use one of: {', '.join(entries)}",
            )
        return _read_split(self.root, entries[name], f"{self.root / MANIFEST}, splits, {name}")


def open_task(workspace: Workspace, name: str, *, build: bool = True, part: str = "full") -> TaskData:
    """Open a task's data: the imported benchmark when the workspace holds it, else the embedded benchmark.

    Args:
        workspace: where the data lies.
        name: "vcr", "snli-ve" or "vqa".
        build: whether to make the embedded benchmark when it is absent (NotFoundError otherwise).
        part: which part of the embedded benchmark; "auto" takes the full one when it exists, else a part that
            exists, and builds the full one when there is nothing.

    Raises:
        UsageProblem: no such task.
        NotFoundError: there is no data and `build` is False.
        DataError: the data's manifest is broken.
    """
    spec = get_task(name)
    imported = workspace.data / spec.name
    if (imported / MANIFEST).is_file():
        return TaskData(imported, task=spec.name)
    source = f"mini-{spec.name}"
    folder = _mini_folder(workspace, source, part)
    if not (folder / MANIFEST).is_file():
        if not build:
            raise NotFoundError(
                f"The workspace {workspace.root} holds no data for {spec.name}.",
                hint=f"make the embedded benchmark: madkit extract --teacher mini --task {spec.name}",
            )
        from madkit.tasks.mini.build import build_mini

        build_mini(folder, source, part="full" if part == "auto" else part)
    return TaskData(folder, task=spec.name)


def _mini_folder(workspace: Workspace, source: str, part: str) -> Path:
    home = workspace.data / "mini"
    if part not in ("full", "auto"):
        return home / f"{source}-{part}"
    full = home / source
    if part == "auto" and not (full / MANIFEST).is_file():
        parts = sorted(path.parent for path in home.glob(f"{source}-*/{MANIFEST}"))
        if parts:
            return parts[0]
    return full


def _checked(manifest: object, path: Path) -> dict[str, Any]:
    if not isinstance(manifest, dict):
        raise DataError(f"{path} holds no JSON object.")
    if manifest.get("schema") != SCHEMA:
        raise DataError(
            f"{path} has schema {manifest.get('schema')!r}, this version of madkit reads {SCHEMA}.",
            hint=f"delete the folder {path.parent} and run the command again",
        )
    for key in ("task", "source", "revision"):
        if not isinstance(manifest.get(key), str):
            raise DataError(f"{path}: the key '{key}' is missing or no string.")
    splits = manifest.get("splits")
    if not isinstance(splits, dict) or not splits or not all(isinstance(entry, dict) for entry in splits.values()):
        raise DataError(f"{path}: 'splits' must map names to file entries.")
    regions = manifest.get("regions")
    if regions is not None and not (isinstance(regions, dict) and {"format", "path"} <= regions.keys()):
        raise DataError(f"{path}: 'regions' needs 'format' and 'path'.")
    return manifest


def _read_split(root: Path, entry: Mapping[str, Any], place: str) -> list[Example]:
    """Read the files of one manifest entry with the reader of their format."""

    def path(key: str) -> Path:
        value = entry.get(key)
        if not isinstance(value, str):
            raise DataError(f"{place}: the key '{key}' is missing or no string.")
        return root / value

    match entry.get("format"):
        case "vcr":
            from madkit.tasks.formats.vcr import read_vcr

            return read_vcr(path("annotations"), path("images"))
        case "snli-ve":
            from madkit.tasks.formats.snli_ve import read_snli_ve

            counts: dict[str, int] = {}
            examples = read_snli_ve(
                path("annotations"), path("images"), extension=entry.get("extension", ".jpg"), counts=counts
            )
            if counts:
                info(f"{path('annotations').name}: {sum(counts.values())} pairs left out ({counts}).")
            return examples
        case "vqa":
            from madkit.tasks.formats.vqa import COCO_PATTERN, read_vqa

            return read_vqa(
                path("questions"),
                path("annotations") if entry.get("annotations") is not None else None,
                path("images"),
                pattern=entry.get("pattern", COCO_PATTERN),
                subset=entry.get("subset"),
            )
        case other:
            raise DataError(f"{place}: unknown format {other!r}; known are vcr, snli-ve, vqa.")
