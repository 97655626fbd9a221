"""The journal of a store: a line for every finished unit, in one file, or in one per process while several write.

Processes of one job never append to the same file: on network file systems two of them would overwrite each other's
lines. The first process writes ``journal.jsonl``, the others ``journal-<number>.jsonl``; whoever takes the store's lock
next moves their lines into the first file before anything is written, so that these are always older than what follows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from madkit.cache.layout import JOURNAL, MANIFEST, PLAN
from madkit.core.errors import CacheError, DataError
from madkit.core.files import append_jsonl, read_jsonl, sync_folder


def journal_file(folder: Path, process: int) -> Path:
    """Return the file that a process of a job appends to."""
    return folder / (JOURNAL if process == 0 else f"journal-{process}.jsonl")


def journal_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a store's journal; of two for a unit the later one counts. None where there is no journal.

    Raises:
        CacheError: a line is damaged. It is not left out: it may take back what an earlier one says.
    """
    for path in journal_files(folder):
        try:
            rows = read_jsonl(path)
        except DataError as error:
            raise _damaged(error.message, folder) from None
        for number, row in enumerate(rows, start=1):
            if not {"part", "unit", "files"} <= row.keys():
                raise _damaged(f"{path}, entry {number}: not the line of a unit.", folder)
            yield row


def journal_files(folder: Path) -> list[Path]:
    """Return the journals that a store has, the first process's before the others'."""
    return [path for path in (folder / JOURNAL, *_others(folder)) if path.is_file()]


def _damaged(message: str, folder: Path) -> CacheError:
    return CacheError(
        message, hint=f"remove the cache and extract again: madkit cache prune --store {folder.name} --yes"
    )


def nothing_says_how(place: object) -> CacheError:
    """Return the error of a store whose units are there without anything that says how many items each has."""
    return CacheError(
        f"{place} has finished shards, but neither {PLAN} nor {MANIFEST}, which say how many items are in each.",
        hint="bring one of the two back, or remove all of it yourself, and run the command again",
    )


def journalled_units(folder: Path) -> set[tuple[str, int]]:
    """Return the units that are done by their last line, as (part, number); their files are not looked at."""
    last = {(str(row["part"]), int(row["unit"])): row["files"] is not None for row in journal_rows(folder)}
    return {place for place, done in last.items() if done}


def append_unit(folder: Path, process: int, line: Mapping[str, Any]) -> None:
    """Append the line of a unit to a process's file."""
    append_jsonl(journal_file(folder, process), line)


def merge_journals(folder: Path) -> None:
    """Move the lines of all processes into ``journal.jsonl``.

    Killed in between, lines are there twice, which does no harm.
    """
    for path in _others(folder):
        rows = read_jsonl(path)
        if rows:
            append_jsonl(folder / JOURNAL, *rows)
        path.unlink()
        sync_folder(folder)


def _others(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("journal-*.jsonl") if path.stem.partition("-")[2].isdigit()]
    return sorted(found, key=lambda path: int(path.stem.partition("-")[2]))
