"""VCR by the source of its films: train on LSMDC, test on MovieClips, and the reverse.

VCR's images come from two collections, and the first folder of `img_fn` says which: `lsmdc_...` or `movieclips_...`.
Two data sets are made, each with train, dev and test of one source and the other source's test questions as a suite.
They hold indexes only; annotation files and images stay where they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from madkit.core.console import info
from madkit.core.errors import DataError, MadkitError, UsageProblem
from madkit.core.files import FileLock, read_json
from madkit.core.folders import replacing
from madkit.core.workspace import Workspace
from madkit.shifts.interface import Made, ShiftOptions
from madkit.tasks.data import MANIFEST, REGIONS, TaskData
from madkit.tasks.example import Example
from madkit.tasks.importing.plan import Advance, ImportPlan, SplitPlan
from madkit.tasks.importing.run import keep_additions
from madkit.tasks.importing.write import write_dataset
from madkit.tasks.region_files import share_region_files

SOURCES = {"lsmdc": "lsmdc_", "movieclips": "movieclips_"}
_TITLES = {"lsmdc": "LSMDC", "movieclips": "MovieClips"}
_SPLITS = ("train", "dev", "test")
_VERSION = 1


def build(workspace: Workspace, data: TaskData, options: ShiftOptions) -> list[Made]:
    """Make the data sets <name>-lsmdc and <name>-movieclips.

    Raises:
        UsageProblem: the data is itself one of them, or the embedded benchmark, whose images have no source.
        DataError: images of one of the sources are missing, so there is nothing to shift to.
    """
    if data.is_mini:
        raise UsageProblem(
            f"The images of {data.source} come from no film, so there are no two sources to train and test on.",
            hint="import VCR first: madkit data import vcr PATH",
        )
    if "derived_from" in data.manifest:
        raise UsageProblem(f"{data.name} holds one source already.", hint="use the data set that it was made from")
    names = {source: f"{data.name}-{source}" for source in SOURCES}
    made_by = {"shift": "source", "version": _VERSION, "of": data.name, "parent_revision": data.revision}
    done = {source: _finished(workspace.data / name, made_by, data) for source, name in names.items()}
    if all(done.values()):
        info(f"{' and '.join(names.values())} are there already; nothing to make.")
    else:
        _check(data)
    return [_made(done[source] or _write(workspace.data / names[source], data, source, made_by)) for source in SOURCES]


def source_of(example: Example) -> str | None:
    """Which collection an example's image is from, None for neither."""
    return next((source for source, prefix in SOURCES.items() if example.image.id.startswith(prefix)), None)


def _finished(home: Path, made_by: dict[str, Any], data: TaskData) -> TaskData | None:
    """What was made from this revision, unless the owners' files were imported from another place since."""
    try:
        found = TaskData(home)
    except MadkitError:
        return None
    same = found.manifest.get("derived_from") == made_by
    return found if same and found.image_root() == data.image_root() else None


def _made(data: TaskData) -> Made:
    return Made(
        "dataset", data.name, data.root, {name: int(data.about(name)["questions"]) for name in data.manifest["splits"]}
    )


def _check(data: TaskData) -> None:
    for split in ("train", "test"):
        if split not in data.splits():
            raise DataError(
                f"{data.source} has no split {split}, so a change of source cannot be made.",
                hint="import VCR with train.jsonl and val.jsonl",
            )
    for split in data.splits():
        found = {source_of(example) for example in data.examples(split)}
        for source, prefix in SOURCES.items():
            if source not in found:
                raise DataError(
                    f"The split {split} of {data.source} has no image whose folder begins with '{prefix}', so there is "
                    f"nothing from {_TITLES[source]}.",
                    hint=f"cut a larger development split: madkit data import {data.name} PATH --dev-cut 0.2"
                    if split == "dev"
                    else "give VCR's own train.jsonl and val.jsonl, which have both",
                )


def _write(home: Path, data: TaskData, source: str, made_by: dict[str, Any]) -> TaskData:
    other = next(name for name in SOURCES if name != source)
    splits = [_split(data, split, split, source) for split in _SPLITS if split in data.splits()] + [
        _split(data, "test", f"test-{other}", other)
    ]
    plan = ImportPlan(
        task=data.spec.name,
        source=home.name,
        title=f"{data.manifest.get('title', data.name)}, {_TITLES[source]} only",
        splits=splits,
        images_root=data.image_root(),
        notes=[f"Made from {data.name}: {_TITLES[source]} is trained on, {_TITLES[other]} is the shifted test."],
    )
    lock = FileLock(home.with_name(f".{home.name}.lock"), what=f"the data set {home.name}")
    with lock, replacing(home) as folder:
        manifest = write_dataset(folder, plan, check_images=False, extra={"derived_from": made_by})
        old = read_json(home / MANIFEST) if (home / MANIFEST).is_file() else {}
        same = old.get("revision") == manifest["revision"]
        if old:
            keep_additions(home, folder, same=same)
        if not same or not (folder / REGIONS).is_file():
            share_region_files(data, folder)
    return TaskData(home)


def _split(data: TaskData, split: str, name: str, source: str) -> SplitPlan:
    entry = data.about(split)

    def read(advance: Advance) -> Iterator[Example]:
        return (example for example in data.examples(split) if source_of(example) == source)

    files = tuple(data.root / str(file["path"]) for file in entry.get("files", []))
    return SplitPlan(name, f"{entry.get('official', split)}, {_TITLES[source]}", read, files, about=_TITLES[source])
