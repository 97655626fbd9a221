"""A task's data in a workspace: an imported data set, or the embedded benchmark when there is none."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from madkit.core.errors import DataError, NotFoundError, UsageProblem
from madkit.core.files import read_json
from madkit.core.folders import visible
from madkit.core.registry import suggest
from madkit.core.workspace import Workspace
from madkit.tasks.example import Example
from madkit.tasks.spec import TASKS, TaskSpec, get_task

if TYPE_CHECKING:
    from madkit.regions import RegionReader
    from madkit.tasks.index.images import StoredImages
    from madkit.tasks.index.reader import ExampleTable

MANIFEST = "manifest.json"
SCHEMA = 2
SUITES = "suites"
SHOTS = "shots"
LISTS = "lists"
REGIONS = "regions.json"
REGION_INDEX = ".region-index"
SPLITS = ("train", "dev", "test")
# Official test sets, whose labels are not public: to predict, never to score.
SUBMISSIONS = ("submission", "submission-dev")

# What people call the real data of a task, where it is not the task's own name.
ALIASES = {"vqa-v2": "vqa"}
NAMES = {folder: name for name, folder in ALIASES.items()}


class TaskData:
    """The examples of one data set, decoded on demand from memory-mapped files.

    A folder holds a manifest, written last, and one Arrow file per split. Folders below `suites/` hold test suites
    that were added later, each with a manifest and a revision of its own: adding one leaves everything else as it was.

    Attributes:
        spec: the task.
        name: the data set's name, which `--task` takes: the folder's.
        source: which data it is, "vcr" or "mini-vcr"; stands in every run and table.
        revision: 16 hex digits that change with the content of train, dev and test.
        root: the manifest's folder.
        manifest: the manifest's content.
    """

    def __init__(self, root: Path, *, task: str | None = None) -> None:
        """Open the data in a folder. Raises NotFoundError or DataError for a missing or broken manifest."""
        path = root / MANIFEST
        self.root = root
        self.name = root.name
        self.manifest: dict[str, Any] = _checked(read_json(path), path)
        self.source: str = self.manifest["source"]
        self.revision: str = self.manifest["revision"]
        if task is not None and self.manifest["task"] != task:
            raise DataError(f"{path} describes the task {self.manifest['task']!r}, not {task!r}.")
        described = self.manifest.get("spec")
        self.spec: TaskSpec = get_task(self.manifest["task"]) if described is None else TaskSpec.from_dict(described)
        self._added = _added_suites(root, self.revision)
        self._examples: dict[str, ExampleTable] = {}
        self._regions: dict[str | None, RegionReader | None] = {}
        self._images: dict[Path, StoredImages] = {}
        self._files: dict[str, str] | None = None
        self._lock = threading.RLock()

    @property
    def is_mini(self) -> bool:
        """Whether this is the embedded benchmark."""
        return self.source.startswith("mini-")

    def splits(self) -> list[str]:
        """The names among train, dev and test that the data has."""
        return [name for name in SPLITS if name in self.manifest["splits"]]

    def suites(self) -> list[str]:
        """The test suites: "test" first, then the shifted ones, those that were added later last."""
        held = self.manifest["splits"]
        names = [name for name in held if name not in SPLITS and name not in SUBMISSIONS]
        return (["test"] if "test" in held else []) + names + [name for name in self._added if name not in held]

    def own_splits(self) -> list[str]:
        """What can be scored and came with the data: train, dev, test and its suites, without those added later."""
        return self.splits() + [name for name in self.suites() if name not in self._added and name not in SPLITS]

    def submissions(self) -> list[str]:
        """Official test sets without labels, which can be answered but not scored."""
        return [name for name in SUBMISSIONS if name in self.manifest["splits"]]

    def labelled(self, name: str) -> bool:
        """Whether the labels of a split or suite are known."""
        return bool(self._entry(name).get("labelled", True))

    def suite_revision(self, name: str) -> str:
        """What a suite's content is known by: the data's revision, or the suite's own where it was added later."""
        return str(self._added[name]["revision"]) if name in self._added else self.revision

    def about(self, name: str) -> dict[str, Any]:
        """The manifest's entry of a split, or the manifest of an added suite."""
        return dict(self._entry(name))

    def examples(self, name: str) -> Sequence[Example]:
        """The examples of a split or suite: a sequence that decodes each example when it is asked for it.

        Raises UsageProblem for an unknown name and DataError for a damaged file.
        """
        with self._lock:
            if name not in self._examples:
                self._entry(name)
                self._examples[name] = self._open(name)
            return self._examples[name]

    def image_root(self, name: str | None = None) -> Path:
        """The folder (or zip) that the image paths of a split or suite are relative to."""
        added = self._added.get(name or "")
        if added is None or "images_of" not in added:
            return self.root / str(self.manifest.get("images_root", "."))
        return self.root / SUITES / str(name) / str(added.get("images_root", "."))

    def regions(self, suite: str | None = None) -> RegionReader | None:
        """The region features of the images (one reader, kept open), None where the data has none.

        Args:
            suite: the split or suite whose images are meant. An added suite with images of its own (GD-VCR's, beside
                VCR) has the features that were added to it; else those of the data set that its images came with; else
                it is looked for in this data set's.
        """
        home, own_images = self._home_of_regions(suite)
        key = suite if own_images else None
        with self._lock:
            if key not in self._regions:
                from madkit.tasks.region_files import open_region_files

                owner = self._added[str(suite)]["images_of"] if own_images else self.name
                self._regions[key] = open_region_files(
                    home,
                    self.manifest if home == self.root else {},
                    lambda: {**(self.image_files() if home == self.root else {}), **self.image_files(key)},
                    hint=f"name all files with features: madkit data regions add {owner} PATH",
                    indexes=self.region_indexes,
                )
            return self._regions[key]

    @property
    def region_indexes(self) -> Path:
        """Where indexes of region files are kept that cannot lie beside these: beside the data sets, which may share
        files, so that an import that replaces a data set leaves them.
        """
        return self.root.parent / REGION_INDEX

    def region_digest(self, suite: str | None = None) -> str | None:
        """What the region features of a split or suite are known by; None for those that came with the data."""
        from madkit.tasks.region_files import added_digest

        return added_digest(self._home_of_regions(suite)[0])

    def _home_of_regions(self, suite: str | None) -> tuple[Path, bool]:
        """The folder that says which region files a suite has, and whether the suite has images of its own."""
        added = self._added.get(suite or "")
        if added is None or "images_of" not in added:
            return self.root, False
        for home in (self.root / SUITES / str(suite), self.root.parent / str(added["images_of"])):
            if (home / REGIONS).is_file():
                return home, True
        return self.root, True

    def image_files(self, suite: str | None = None) -> dict[str, str]:
        """Image id -> file below `image_root`, of every image that came with the data, or of one added suite."""
        images = self._stored_images(self.root if suite is None else self.root / SUITES / suite)
        return {images.id(row): images.file(row) for row in range(len(images))}

    def named_shots(self) -> list[str]:
        """Names of the imported id lists."""
        return sorted(path.stem for path in (self.root / SHOTS).glob("*.json"))

    def _entry(self, name: str) -> dict[str, Any]:
        entries = self.manifest["splits"]
        if name in entries:
            return dict(entries[name])
        if name in self._added:
            return self._added[name]
        names = [*entries, *self._added]
        if name == SPLITS[0]:  # a default, or what is trained on: not a name that anybody got wrong
            raise UsageProblem(
                f"{self.source} has no train split.",
                hint=f"import it with one to train on it; to be looked at and answered are: {', '.join(names)}",
            )
        raise UsageProblem(
            f"{self.source} has no split or test suite {name!r}.{suggest(name, names)}",
            hint=f"use one of: {', '.join(names)}",
        )

    def _open(self, name: str) -> ExampleTable:
        from madkit.tasks.index.reader import ExampleTable

        if name in self.manifest["splits"]:
            return ExampleTable(self.root / f"{name}.arrow", self._stored_images(self.root), self.spec.name)
        home = self.root / SUITES / name
        return ExampleTable(home / "examples.arrow", self._stored_images(home), self.spec.name)

    def _stored_images(self, home: Path) -> StoredImages:
        from madkit.tasks.index.images import NAME, StoredImages

        if home not in self._images:
            root = self.image_root(None if home == self.root else home.name)
            borrowed = home != self.root and "images_of" not in self._added[home.name]
            files = self._own_files if borrowed else None
            self._images[home] = StoredImages(home / f"{NAME}.arrow", root, files)
        return self._images[home]

    def _own_files(self) -> dict[str, str]:
        if self._files is None:
            self._files = self.image_files()
        return self._files


def open_task(workspace: Workspace, name: str, *, build: bool = True, part: str = "full") -> TaskData:
    """Open a data set: an imported one when the workspace holds it, else the embedded benchmark.

    Args:
        workspace: where the data lies.
        name: "vcr", "snli-ve", "vqa", or whatever else has been imported into the workspace.
        build: whether to make the embedded benchmark when it is absent (NotFoundError otherwise).
        part: which part of the embedded benchmark; "auto" takes the full one when it exists, else a part that
            exists, and builds the full one when there is nothing.

    Raises:
        UsageProblem: no such task or data set.
        NotFoundError: there is no data and `build` is False.
        DataError: the data's manifest is broken.
    """
    name = check_task_name(workspace, name)
    imported = workspace.data / name
    if (imported / MANIFEST).is_file():
        return TaskData(imported, task=name if name in TASKS else None)
    source = f"mini-{name}"
    folder = _mini_folder(workspace, source, part)
    if not (folder / MANIFEST).is_file():
        if not build:
            raise NotFoundError(
                f"The workspace {workspace.root} holds no data for {name}.",
                hint=f"madkit data import {NAMES.get(name, name)} PATH, or, for the embedded benchmark, "
                f"madkit extract --teacher mini --task {name}",
            )
        from madkit.tasks.mini.build import build_mini

        build_mini(folder, source, part="full" if part == "auto" else part)
    return TaskData(folder, task=name)


def check_task_name(workspace: Workspace, name: str) -> str:
    """The data set that a name means. Raises UsageProblem, with the nearest name, for one that does not exist."""
    name = ALIASES.get(name, name)
    imported = imported_datasets(workspace)
    if name in TASKS or name in imported:
        return name
    known = list(dict.fromkeys([*TASKS, *imported]))
    raise UsageProblem(
        f"There is no task or imported data set named {name!r}.{suggest(name, known)}",
        hint=f"use one of: {', '.join(known)}; madkit data import brings in others",
    )


def imported_datasets(workspace: Workspace) -> list[str]:
    """Names of the data sets that have been imported into a workspace."""
    return [path.parent.name for path in visible(workspace.data, f"*/{MANIFEST}")]


def datasets_to_extract(workspace: Workspace, wanted: Sequence[str] = ()) -> list[str]:
    """The data sets that a command without `--task` means: those imported, or the embedded benchmark's three tasks.

    Raises UsageProblem for a name that does not exist.
    """
    if wanted:
        return list(dict.fromkeys(check_task_name(workspace, name) for name in wanted))
    return imported_datasets(workspace) or list(TASKS)


def find_dataset(workspace: Workspace, source: str, revision: str) -> TaskData | None:
    """The data set of that source and revision, None where the workspace does not hold it."""
    for data in every_dataset(workspace):
        if (data.source, data.revision) == (source, revision):
            return data
    return None


def every_dataset(workspace: Workspace) -> Iterator[TaskData]:
    """Every data set of a workspace: imported ones, then what there is of the embedded benchmark."""
    for path in [*visible(workspace.data, f"*/{MANIFEST}"), *visible(workspace.data, f"mini/*/{MANIFEST}")]:
        yield TaskData(path.parent)


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
        raise DataError(f"{path}: 'splits' must map names to entries.")
    return manifest


def _added_suites(root: Path, revision: str) -> dict[str, dict[str, Any]]:
    """Manifests of the suites that were added to this revision of the data."""
    found: dict[str, dict[str, Any]] = {}
    for path in visible(root / SUITES, f"*/{MANIFEST}"):
        manifest = read_json(path)
        if not isinstance(manifest, dict) or not isinstance(manifest.get("revision"), str):
            raise DataError(f"{path} is no manifest of a test suite.", hint=f"delete the folder {path.parent}")
        if manifest.get("schema") == SCHEMA and manifest.get("parent_revision") in (revision, None):
            found[path.parent.name] = manifest
    return found


def questions_of(examples: Iterable[Example]) -> dict[str, list[Example]]:
    """Question id -> its examples, in order of appearance."""
    questions: dict[str, list[Example]] = {}
    for example in examples:
        questions.setdefault(example.question_id, []).append(example)
    return questions
