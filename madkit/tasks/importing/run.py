"""`madkit data import`: find, read, index; nothing is left half-imported."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from madkit.core.console import info, progress, warn
from madkit.core.errors import DataError, UsageProblem
from madkit.core.files import FileLock, read_json
from madkit.core.folders import plain_path, replacing, visible
from madkit.core.interrupts import StopSignals
from madkit.core.workspace import Workspace
from madkit.tasks.data import LISTS, MANIFEST, SHOTS, SUITES, TaskData
from madkit.tasks.importing import IMPORTERS, FoundFiles, ImportOptions, ImportPlan
from madkit.tasks.importing.write import MissingImages, total_bytes, write_dataset
from madkit.tasks.region_files import PIXELS
from madkit.tasks.spec import TASKS
from madkit.tasks.suites import write_suite

_MB = 1_000_000


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import made. `unchanged`: the same content had been imported before."""

    data: TaskData | None
    unchanged: bool = False
    suites: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


def import_data(workspace: Workspace, name: str, path: Path, options: ImportOptions | None = None) -> Imported:
    """Import a benchmark from its owners' files.

    Args:
        workspace: where the data set goes, as `data/<name>`.
        name: one of IMPORTERS.
        path: a folder that holds the files somewhere, zipped or not; a file for "custom".
        options: see ImportOptions.

    Raises:
        UsageProblem: an unknown name, options that do not fit.
        NotFoundError: files that are needed are not there.
        DataError: a file that breaks its format, or images that are missing. The workspace is as it was before.
    """
    options = options or ImportOptions()
    if not 0 <= options.dev_cut < 1:
        raise UsageProblem(f"The share of the development split must be 0 to below 1, found {options.dev_cut:g}.")
    importer = IMPORTERS.get(name)
    if name != "custom" and (options.kind or options.name):
        raise UsageProblem(
            f"--kind and --name are for questions of your own; {name} is a benchmark.",
            hint="leave them out, or: madkit data import custom FILE --kind KIND --name NAME",
        )
    path = plain_path(path)
    if options.images is not None:
        options = replace(options, images=plain_path(options.images))
    info(f"Looking through {path}")
    plan = importer(FoundFiles(path, options.images, without_images=options.without_images), options)
    home = workspace.data / _folder_name(name, plan)
    data, unchanged = None, False
    if plan.splits:
        with FileLock(workspace.data / f".{home.name}.lock", what=f"the data set {home.name}"):
            unchanged = _make(home, plan, options)
        data = TaskData(home)
    suites = _attach(workspace, plan, options, home.name)
    if data is None and not suites:
        raise DataError(
            f"{path} holds test suites of {plan.attach_to}, which this workspace does not have.",
            hint=f"first: madkit data import {plan.attach_to} PATH",
        )
    return Imported(data, unchanged, tuple(suites), tuple(dict.fromkeys(plan.notes)))


def _folder_name(name: str, plan: ImportPlan) -> str:
    folder = str(IMPORTERS.info(name)["dataset"]) or plan.source
    taken = folder in TASKS or folder in IMPORTERS or folder == "mini" or folder.startswith("mini-")
    if plan.spec is not None and taken:
        raise UsageProblem(
            f"The name {folder!r} is taken by a benchmark.", hint="give your task another name: --name NAME"
        )
    return folder


def _make(home: Path, plan: ImportPlan, options: ImportOptions) -> bool:
    """Write the data set beside its place, then move it there. Returns whether the same content was there already."""
    cut = options.dev_cut
    with replacing(home) as folder, StopSignals() as stop:
        if plan.prepare is not None:
            plan = plan.prepare(folder)
        if plan.cut_dev and not cut:
            plan = _dev_is_test(plan)
        elif not plan.cut_dev and plan.spec is None and cut != ImportOptions().dev_cut:  # own tasks cut by themselves
            warn(f"Nothing is cut from train of {plan.source} for a development split, so --dev-cut has no effect.")
        with progress(f"Reading {plan.source}", total_bytes(plan.splits) // _MB, "MB") as bar:
            meter = _Meter(bar.advance, stop)
            manifest = write_dataset(
                folder,
                plan,
                dev_cut=cut,
                allow_missing=options.allow_missing,
                check_images=not options.without_images,
                advance=meter.advance,
            )
        old = read_json(home / MANIFEST) if (home / MANIFEST).is_file() else None
        same = isinstance(old, dict) and old.get("revision") == manifest["revision"]
        if isinstance(old, dict):
            keep_additions(home, folder, same=same)
    return same


class _Meter:
    """Turns bytes into whole megabytes for the progress bar, and stops between two pieces when asked to."""

    def __init__(self, advance: Any, stop: StopSignals) -> None:
        self._advance, self._stop = advance, stop
        self._bytes = self._shown = 0

    def advance(self, n: int) -> None:
        if self._stop.requested:
            raise self._stop.error("run the same command again to import it.", how="with nothing imported")
        self._bytes += n
        if self._bytes // _MB > self._shown:
            self._advance(self._bytes // _MB - self._shown)
            self._shown = self._bytes // _MB


def keep_additions(home: Path, folder: Path, *, same: bool) -> None:
    """Carry over what was added before: region files always, suites and id lists where they still fit.

    Features that madkit made of the data's own boxes stay those of the boxes as they were, which is said.
    """
    if (home / PIXELS).is_file() and not same:
        warn(
            "The data changed, and its pixel features are kept: if boxes or pictures changed, make them again: madkit "
            f"data regions make {home.name}"
        )
    for file in visible(home, "regions*"):
        try:
            os.link(file, folder / file.name)  # pixel features are large, and nobody writes into them
        except OSError:
            shutil.copy2(file, folder / file.name)
    for name in (SUITES, SHOTS, LISTS):
        if not (home / name).is_dir():
            continue
        if same:
            shutil.copytree(home / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns(".*"))
        else:
            made = [path.name for path in visible(home / name, "*")]
            if made:
                warn(f"The data changed, so its {name} are dropped and have to be made again: {', '.join(made)}.")


def _dev_is_test(plan: ImportPlan) -> ImportPlan:
    """With no cut, the owners' evaluation split serves as dev and as test, and every reader of the manifest is told."""
    test = next((split for split in plan.splits if split.name == "test"), None)
    if test is None:
        return plan
    note = (
        f"The development split is {test.official} itself, the split that is reported: scores on it are not held out."
    )
    warn(note)
    return replace(plan, splits=[*plan.splits, replace(test, name="dev")], notes=[*plan.notes, note])


def _attach(workspace: Workspace, plan: ImportPlan, options: ImportOptions, name: str) -> list[Path]:
    """Add the plan's suites to the data set they belong to, where the workspace holds it."""
    if plan.attach_to is None:
        return []
    if not (workspace.data / plan.attach_to / MANIFEST).is_file():
        plan.notes.append(
            f"{plan.attach_to} is not in this workspace yet. It gets {', '.join(suite.name for suite in plan.suites)} "
            "when this is imported again behind it."
        )
        return []
    data = TaskData(workspace.data / plan.attach_to)
    made = []
    for suite in plan.suites:
        missing = MissingImages(allow=options.allow_missing)
        found = suite.choose(data) if suite.choose is not None else suite.read(lambda _: None)
        examples = [one for one in found if options.without_images or missing.has(one, suite.name)]
        missing.check()
        if not examples:
            warn(f"The suite {suite.name} has no examples, so it is not made.")
            continue
        made_by = {"import": plan.source, "official": suite.official, "files": [str(path) for path in suite.files]}
        made.append(
            write_suite(
                data,
                suite.name,
                examples,
                made_by=made_by,
                about=suite.about,
                labelled=suite.labelled,
                images_root=plan.images_root if suite.choose is None else None,
                images_of=name if suite.choose is None else None,
            )
        )
    return made
