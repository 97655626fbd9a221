"""What became of the stores of an extraction."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from madkit.extract.choices import Choice
from madkit.extract.items import ItemsMissing


@dataclass(frozen=True, slots=True)
class StoreReport:
    """What became of one store.

    Attributes:
        path: its folder; of a store at a URL its mirror.
        items: images and texts in it.
        bytes: bytes of its files.
        computed: items encoded now.
        skipped: items that were there already.
        task: name of the task.
        dataset: what `--task` calls the data, which may be one of several of that task.
        images: images in it.
        texts: texts in it.
        windowed: texts longer than the teacher's limit, read in overlapping windows.
        seconds: how long it took now.
        absent: images that could not be read and texts without tokens; the store has no values for them.
        url: where it lies, where that is no folder.
        choices: what this extraction chose by itself, and why; nothing where nothing was to do.
    """

    path: Path
    items: int
    bytes: int
    computed: int
    skipped: int
    task: str = ""
    dataset: str = ""
    images: int = 0
    texts: int = 0
    windowed: int = 0
    seconds: float = 0.0
    absent: int = 0
    url: str | None = None
    choices: tuple[Choice, ...] = ()

    def as_row(self) -> dict[str, Any]:
        """Return plain values for JSON; ``path`` is the URL of a store that has one."""
        row = asdict(self)
        url = row.pop("url")
        return {**row, "path": url or str(self.path)}


class SomeMissing(ItemsMissing):
    """What the last task's `ItemsMissing` says, with what has become of every task.

    Attributes:
        reports: of the stores that were completed.
        unfinished: a row for each of the others: `task`, `dataset`, and the facts of its `ItemsMissing`.
    """

    def __init__(self, error: ItemsMissing, reports: list[StoreReport], unfinished: list[dict[str, Any]]) -> None:
        super().__init__(error.message, hint=error.hint)
        self.facts = error.facts
        self.reports = reports
        self.unfinished = unfinished
