"""What a workspace holds: data, caches, runs, students and adapted teachers, each whole, half-made or damaged.

Nothing is locked or written: whether a lock is held is read from the kernel's own table.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from madkit.cache.layout import LOCK, MANIFEST
from madkit.cache.manage import list_stores
from madkit.cache.reader import extract_command, missing_files
from madkit.core.console import counted
from madkit.core.errors import MadkitError
from madkit.core.files import read_json, read_jsonl
from madkit.core.folders import visible
from madkit.doctor.findings import Finding, failed, first_line, passed, warned
from madkit.doctor.weights import not_finite
from madkit.evaluate.grid import Run, read_run
from madkit.evaluate.origin import find_data

if TYPE_CHECKING:
    from madkit.core.workspace import Workspace

DATA, CACHES, RUNS, ADAPTERS, REST = "data", "caches", "runs", "adapters", "leftovers"
WEIGHTS = "model.safetensors"
TOKENIZERS = ("vocab.txt", "tokenizer.json")
# What atomic writers leave beside their target when they are killed (core/files.py, core/folders.py).
_LEFT = (".tmp", ".new", ".old")
_PLACES = ("cache", "runs", "adapters", "students", "reports")


def check_workspace(workspace: Workspace, *, deep: bool = False) -> list[Finding]:
    """Everything about a workspace that can be told without reading it whole; `deep`: students' weights are."""
    return [
        *check_data(workspace),
        *check_caches(workspace),
        *check_runs(workspace, deep=deep),
        *check_adapters(workspace),
        *check_leftovers(workspace),
    ]


def check_data(workspace: Workspace) -> list[Finding]:
    """Whether every data set opens, with as many examples as it says and its images where they were."""
    from madkit.tasks.data import MANIFEST as DATA_MANIFEST
    from madkit.tasks.data import TaskData
    from madkit.tasks.spec import TASKS

    found, good = [], []
    places = [*visible(workspace.data, f"*/{DATA_MANIFEST}"), *visible(workspace.data, f"mini/*/{DATA_MANIFEST}")]
    for path in places:
        name = path.parent.name
        mend = f"remove {shlex.quote(str(path.parent))} and make it again: madkit data import"
        if path.parent.parent.name == "mini":
            task = next((task for task in TASKS if name.startswith(f"mini-{task}")), "")
            again = "madkit demo" if name.endswith("-demo") else f"madkit extract --teacher mini --task {task}"
            mend = f"rm -r {shlex.quote(str(path.parent))} && {again}"
        try:
            data = TaskData(path.parent)
            wrong = []
            for split in [*data.splits(), *data.suites(), *data.submissions()]:
                said, there = data.about(split).get("examples"), len(data.examples(split))
                if said is not None and said != there:
                    wrong.append(f"{split} holds {there:,} of {said:,} examples")
            if wrong:
                found.append(failed(DATA, name, "; ".join(wrong), mend))
            elif not data.image_root().exists():
                said = f"its images are gone from {data.image_root()}"
                found.append(failed(DATA, name, said, f"put them back; madkit data check {name}"))
            else:
                good.append(name)
        except (MadkitError, OSError, KeyError) as error:
            found.append(failed(DATA, name, first_line(error), mend))
    if good:
        found.append(passed(DATA, "data sets", ", ".join(good)))
    return found or [passed(DATA, "data sets", "none yet; the embedded benchmark is made when it is needed")]


def check_caches(workspace: Workspace) -> list[Finding]:
    """Whether every cache is complete and none of its files is missing or short."""
    if workspace.cache_url is not None:
        return [passed(CACHES, "caches", f"at {workspace.cache_url}, not looked at: madkit cache verify")]
    found, good = [], []
    held = held_locks()
    for row in list_stores(workspace):
        path = Path(str(row.path))
        if path.name.startswith("."):
            continue
        if row.state == "complete":
            try:
                bad = missing_files(path, read_json(path / MANIFEST))
            except (MadkitError, KeyError, TypeError) as error:
                bad = [first_line(error)]
            if bad:
                more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
                found.append(failed(CACHES, path.name, f"{bad[0]}{more}", f"madkit cache repair {path.name}"))
            else:
                good.append(path.name)
        elif row.state == "unfinished":
            if is_held(path / LOCK, held):
                found.append(passed(CACHES, path.name, "is being made just now"))
            else:
                mend = extract_command(row.identity, same=True)
                found.append(warned(CACHES, path.name, "its extraction is unfinished", mend))
        elif row.state == "another version":
            mend = "read it with that version, or make another: madkit extract"
            found.append(warned(CACHES, path.name, "another version of madkit wrote it", mend))
        else:
            found.append(
                failed(CACHES, path.name, "it cannot be read", f"madkit cache prune --store {path.name} --yes")
            )
    if good:
        said = f"{len(good)} complete, no file missing: {', '.join(good)}"
        found.append(passed(CACHES, "caches", said))
    return found or [passed(CACHES, "caches", "none yet")]


def check_runs(workspace: Workspace, *, deep: bool = False) -> list[Finding]:
    """Whether every run is complete with a whole student, or can go on; and whether its data is still there."""
    found, held = [], held_locks()
    tables: dict[tuple[str, str], list[Run]] = {}
    whole = going = 0
    for path in sorted(workspace.runs.glob("*/*/manifest.json")):
        folder = path.parent
        name = f"{folder.parent.name}/{folder.name}"
        if folder.name.startswith("pre-phase-"):
            continue  # made by the runs that need one, and again where it is not whole
        try:
            manifest = read_json(path)
            run = read_run(folder)
        except MadkitError as error:
            found.append(failed(RUNS, name, first_line(error), error.hint or f"remove {folder} and train it again"))
            continue
        again = distill_command(folder, manifest)
        if run is None:
            if is_held(folder / ".lock", held):
                going += 1
            else:
                found.append(warned(RUNS, name, "it was stopped before its end; it goes on", again))
            continue
        wrong = student_problem(folder / "student")
        if wrong is not None:
            mend = f"rm {shlex.quote(str(path))} && {again}"
            found.append(failed(RUNS, name, wrong, mend))
            continue
        tables.setdefault(run.table, []).append(run)
        tensor = not_finite(folder / "student" / WEIGHTS, whole=deep)
        if tensor is not None:
            mend = f"rm {shlex.quote(str(path))} && {again}{_slower(manifest)}"
            found.append(failed(RUNS, name, f"its student's weights are NaN or infinite ({tensor})", mend))
            continue
        results = folder / "results.jsonl"
        try:
            if results.is_file():
                read_jsonl(results)
        except MadkitError as error:
            mend = f"rm {shlex.quote(str(results))} && madkit evaluate"
            found.append(failed(RUNS, name, first_line(error), mend))
            continue
        whole += 1
    found += _data_gone(workspace, tables)
    if going:
        found.append(passed(RUNS, "under way", f"{going}"))
    if whole or not found:
        found.append(passed(RUNS, "runs", f"{whole} complete, their students whole" if whole else "none yet"))
    return found


def _slower(manifest: dict[str, Any]) -> str:
    """What to add to a run's command, so that it learns more slowly."""
    config = manifest.get("config")
    rate = (config.get("optim") or {}).get("learning_rate") if isinstance(config, dict) else None
    return f" --set optim.learning_rate={rate / 2:g}" if isinstance(rate, float) else ""


def _data_gone(workspace: Workspace, tables: dict[tuple[str, str], list[Run]]) -> Iterator[Finding]:
    """A warning for every revision of data that runs were trained on and the workspace no longer holds."""
    for (source, revision), runs in tables.items():
        try:
            there = find_data(workspace, runs[0]) is not None
        except MadkitError:  # it is there, and cannot be opened: the data's own finding
            continue
        if not there:
            said = (
                f"revision {revision} of {source} is gone, on which {counted(len(runs), 'runs')} learnt: what was "
                "answered stays in tables, and nothing else can be asked"
            )
            mend = "put that data back, or train again on the data that is there"
            if runs[0].is_mini:
                mend = f"madkit extract --teacher mini --task {runs[0].task}"
            yield warned(RUNS, f"{source} {revision}", said, mend)


def distill_command(folder: Path, manifest: dict[str, Any]) -> str:
    """The command that goes on with a run: its resolved configuration lies in its folder."""
    given = {"task": manifest.get("task"), "shots": manifest.get("shots"), "seed": manifest.get("seed")}
    if not manifest.get("is_mini"):
        given["task"] = manifest.get("source")
    student, teachers = manifest.get("student"), manifest.get("cache_key")
    words = [f"--{name} {value}" for name, value in given.items() if value is not None]
    default = bool(manifest.get("is_mini")) and student == "mini-uniter"  # on other data a student has to be named
    words += [f"--student {student}"] if student and not default else []
    words += [f"--teacher {name}" for name in str(teachers).split(", ")] if teachers else []
    return f"madkit distill {' '.join(words)} --config {shlex.quote(str(folder / 'config.yaml'))}"


def student_problem(folder: Path) -> str | None:
    """What is wrong with the files of a student, None for a whole one. The weights' header is read, and their size.

    Format: https://github.com/huggingface/safetensors, 8 bytes with the header's length, the header (JSON with
    `data_offsets` of every tensor), the tensors.
    """
    if not folder.is_dir():
        return "its student is gone"
    if not (folder / "config.json").is_file():
        return "its student has no config.json"
    if not any((folder / name).is_file() for name in TOKENIZERS):
        return "its student has no vocabulary"
    path = folder / WEIGHTS
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= size - 8:
                return f"{WEIGHTS} is not a safetensors file"
            header = json.loads(file.read(length))
        end = max((one["data_offsets"][1] for name, one in header.items() if name != "__metadata__"), default=0)
    except FileNotFoundError:
        return f"its student has no {WEIGHTS}"
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return f"{WEIGHTS} cannot be read"
    return None if size == 8 + length + end else f"{WEIGHTS} has {size:,} bytes instead of {8 + length + end:,}"


def check_adapters(workspace: Workspace) -> list[Finding]:
    """Whether every adapted teacher is complete, its file there."""
    found, whole = [], 0
    held = held_locks()
    for path in sorted(workspace.adapters.glob("*/manifest.json")):
        folder = path.parent
        remove = f"rm -r {shlex.quote(str(folder))}"
        try:
            manifest = read_json(path)
            complete = manifest.get("status") == "complete"
            again = (
                f"madkit adapt --teacher {manifest.get('teacher')} --task {manifest.get('task')} "
                f"--shots {manifest.get('shots')} --seed {manifest.get('seed')} "
                f"--config {shlex.quote(str(folder / 'config.yaml'))} --name {folder.name}"
            )
        except (MadkitError, AttributeError) as error:
            found.append(failed(ADAPTERS, folder.name, first_line(error), remove))
            continue
        if not complete:
            if is_held(folder / ".lock", held):
                found.append(passed(ADAPTERS, folder.name, "is being made just now"))
            else:
                found.append(warned(ADAPTERS, folder.name, "it was stopped before its end; it goes on", again))
        elif not manifest.get("untouched") and not (folder / "adapter.safetensors").is_file():
            found.append(failed(ADAPTERS, folder.name, "its adapter.safetensors is gone", f"{remove} && {again}"))
        else:
            whole += 1
    if whole:
        found.append(passed(ADAPTERS, "adapters", f"{whole} complete"))
    return found


def check_leftovers(workspace: Workspace) -> list[Finding]:
    """Locks and temporary files of processes that were killed."""
    held, locks, left = held_locks(), 0, []
    for path in _hidden(workspace.root):
        if path.name.endswith(".lock"):
            locks += not is_held(path, held)
        elif path.name.endswith(_LEFT):
            left.append(path)
    found = []
    if locks:
        said = f"{locks} of processes that were killed, held by nobody; the next process takes them over"
        found.append(passed(REST, "locks", said))
    if left:
        size = sum(_size(path) for path in left) / 1e6
        said = f"{len(left)} of processes that were killed, {size:,.1f} MB (or of one that is writing just now)"
        mend = "rm -r " + " ".join(shlex.quote(str(path)) for path in left[:4]) + (" ..." if len(left) > 4 else "")
        found.append(warned(REST, "temporary files", said, mend))
    return found


def _hidden(root: Path) -> Iterator[Path]:
    """Hidden files and folders below the places that madkit writes to; what is in a hidden folder is not looked at."""
    for place in _PLACES:
        for base, folders, files in os.walk(root / place):
            for name in [*folders, *files]:
                if name.startswith("."):
                    yield Path(base) / name
            folders[:] = [name for name in folders if not name.startswith(".")]


def _size(path: Path) -> int:
    try:
        if path.is_dir():
            return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        return path.stat().st_size
    except OSError:
        return 0


def held_locks() -> set[int] | None:
    """Inodes of all files that a process of this machine holds a lock on; None where the kernel does not tell."""
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    return {int(line.split()[-3].rpartition(":")[2]) for line in lines if "->" not in line}


def is_held(path: Path, held: set[int] | None) -> bool:
    """Whether a lock file is held; where the kernel does not tell, an existing one counts as held."""
    try:
        return held is None or path.stat().st_ino in held
    except OSError:
        return False
