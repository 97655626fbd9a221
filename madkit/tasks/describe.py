"""What a data set is, in figures: for `madkit data list` and `madkit data show`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from madkit.core.workspace import Workspace
from madkit.tasks.data import TaskData, every_dataset
from madkit.tasks.region_files import list_region_files
from madkit.tasks.spec import TaskSpec


def dataset_rows(workspace: Workspace) -> list[dict[str, Any]]:
    """One row per data set of a workspace: name, task, source, revision, questions per split, suites."""
    return [
        {
            "dataset": data.name,
            "task": data.spec.name,
            "source": data.source,
            "embedded": data.is_mini,
            "revision": data.revision,
            "questions": {name: entry["questions"] for name, entry in data.manifest["splits"].items()},
            "images": data.manifest.get("images"),
            "suites": data.suites(),
            "regions": has_regions(data),
            "path": str(data.root),
        }
        for data in every_dataset(workspace)
    ]


def has_regions(data: TaskData) -> bool:
    """Whether region features belong to the data set; no file is opened."""
    return bool(data.manifest.get("regions")) or bool(list_region_files(data.root))


def describe(data: TaskData) -> dict[str, Any]:
    """Everything about one data set: splits and suites with sizes and label balance, region files, id lists, notes."""
    names = [*data.splits(), *(name for name in data.suites() if name != "test"), *data.submissions()]
    return {
        "dataset": data.name,
        "task": data.spec.name,
        "title": data.manifest.get("title", data.spec.title),
        "kind": data.spec.kind,
        "source": data.source,
        "revision": data.revision,
        "path": str(data.root),
        "images_root": str(data.image_root()),
        "splits": {name: _split(data, name) for name in names},
        "regions": list_region_files(data.root) or ([data.manifest["regions"]] if data.manifest.get("regions") else []),
        "id_lists": data.named_shots(),
        "notes": list(data.manifest.get("notes", [])),
    }


def _split(data: TaskData, name: str) -> dict[str, Any]:
    about = data.about(name)
    keys = ("official", "about", "questions", "examples", "images", "labelled", "left_out", "made_by", "files")
    found = {key: about[key] for key in keys if key in about}
    return {**found, "balance": named_balance(data.spec, about.get("balance", {}))}


def named_balance(spec: TaskSpec, balance: Mapping[str, int]) -> dict[str, int]:
    """Counts under the names of the labels (the manifest counts label numbers); "" is called "(none)"."""

    def named(label: str) -> str:
        if label.isdigit() and spec.kind == "classification" and int(label) < len(spec.labels):
            return spec.labels[int(label)]
        return label or "(none)"

    return {named(label): count for label, count in balance.items()}
