"""What an importer says about the files it found: which splits they make, and how each is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from madkit.tasks.example import Example
from madkit.tasks.spec import TaskSpec

if TYPE_CHECKING:
    from madkit.tasks.data import TaskData

# Called with the number of bytes of owners' files that were consumed, for the progress bar.
Advance = Callable[[int], None]
Read = Callable[[Advance], Iterator[Example]]


def image_of(example: Example) -> str:
    """What stays together when a development split is cut: the questions about one image."""
    return example.image.id


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """One split or test suite.

    `name` is madkit's ("train", "dev", "test", "submission", "test-..."), `official` the owners' ("val2014"). `read`
    yields the examples; `files` are what it reads, so that changes can be noticed. `labelled` is False for official
    test sets. `choose`, for suites alone and in place of `read`, makes the examples from the data set that the suite is
    added to.
    """

    name: str
    official: str
    read: Read
    files: tuple[Path, ...]
    labelled: bool = True
    about: str = ""
    choose: Callable[[TaskData], Iterator[Example]] | None = None


@dataclass(slots=True)
class ImportPlan:
    """A data set to be made.

    `task` is the task's name and `source` what stands in tables. `cut_dev`: whether the development split is cut from
    train, because the owners' labelled evaluation split is reported as "test"; `cut_group` says what stays together.
    `suites` are added to the data set `attach_to` when the workspace holds it. `spec` describes a user's own task.
    `images_root` is where most images lie; paths are stored relative to it. `prepare`, where images have to be written
    first, puts them into the data set's own folder, which it is given, and returns the plan that reads them there.
    """

    task: str
    source: str
    title: str
    splits: list[SplitPlan]
    images_root: Path
    suites: list[SplitPlan] = field(default_factory=list)
    attach_to: str | None = None
    cut_dev: bool = False
    cut_group: Callable[[Example], str] = image_of
    spec: TaskSpec | None = None
    notes: list[str] = field(default_factory=list)
    prepare: Callable[[Path], ImportPlan] | None = None


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """What the user said besides the path.

    `images`: folder or zip of the images. `without_images`: they are not at hand and not looked for, only their region
    features will be used. `allow_missing`: leave examples without image file out instead of failing.
    `dev_cut`: share of the train images that becomes the development split where one has to be cut; 0 for none.
    `name`, `kind`: of a user's own task.
    """

    images: Path | None = None
    allow_missing: bool = False
    without_images: bool = False
    dev_cut: float = 0.05
    name: str | None = None
    kind: str | None = None
