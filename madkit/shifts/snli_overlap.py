"""Which dev and test pairs of SNLI-VE lie in SNLI's train split.

SNLI-VE deals SNLI out anew by image, so most of its dev and test pairs are pairs that any text model tuned on SNLI was
trained on, labels included. The lists name them, for teachers of that kind. A pair lies in SNLI's train split when its
pairID does; a second column tells whether the same two sentences do, under whatever id.
"""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from madkit.core import archives
from madkit.core.console import info, progress
from madkit.core.errors import DataError, MadkitError, NotFoundError
from madkit.core.files import read_json, write_json_atomic, write_text_atomic
from madkit.core.workspace import Workspace
from madkit.shifts.interface import Made, ShiftOptions
from madkit.tasks.data import TaskData
from madkit.tasks.formats.source_lines import Advance, iter_json_lines, need_string

LISTS = "lists"
SPLITS = ("dev", "test")
_VERSION = 1
_PARTS = ("train", "dev", "test")
_NAME = "snli_1.0_{}.jsonl"
_COLUMNS = ("pairID", "in_snli_train", "text_in_snli_train")


def build(workspace: Workspace, data: TaskData, options: ShiftOptions) -> list[Made]:
    """Write `lists/snli-overlap-dev.tsv` and `-test.tsv` below the data's folder, and `snli-overlap.json` with the counts.

    Each row of a list is a pair of SNLI-VE: its pairID, whether that id is in SNLI's train split ("yes" or "no"), and
    whether its premise and hypothesis are there together ("" where the premise is not known: SNLI-VE's index holds no
    premises, so they are taken from SNLI's dev and test files where those lie beside the train file).

    Raises NotFoundError without SNLI's train file, DataError for lines that break SNLI's format and for data whose
    pairIDs are not SNLI's.
    """
    files = _find(data, options)
    recipe = {
        "shift": "snli-overlap",
        "version": _VERSION,
        "of": data.source,
        "parent_revision": data.revision,
        "snli": {part: [str(path), archives.size_of(path)] for part, path in files.items()},
    }
    folder = data.root / LISTS
    done = _finished(folder, recipe)
    if done is not None:
        info(f"The overlap of {data.source} with SNLI is listed already; nothing to do.")
        return done
    seen = _read(files)
    found = {split: [_row(one.id, seen) for one in data.examples(split)] for split in SPLITS if split in data.splits()}
    if not any(row.known for rows in found.values() for row in rows):
        raise DataError(
            f"No dev or test pair of {data.source} has the pairID of a pair of SNLI.",
            hint="import SNLI-VE from snli_ve_*.jsonl or from SNLI itself: other forms of it have no pairIDs",
        )
    for split, rows in found.items():
        write_text_atomic(folder / f"snli-overlap-{split}.tsv", _table(rows))
    counts = {split: _counts(rows) for split, rows in found.items()}
    write_json_atomic(folder / "snli-overlap.json", {**recipe, "counts": counts})
    made = _made(folder, counts)
    for split, numbers in counts.items():
        info(
            f"{numbers['in SNLI train']:,} of {numbers['pairs']:,} {split} pairs of {data.source} lie in SNLI's train "
            "split."
        )
    return made


def _find(data: TaskData, options: ShiftOptions) -> dict[str, Path]:
    """SNLI's files by split: where the user says, else those that the data was imported from."""
    if options.snli is not None:
        root = options.snli.expanduser().absolute()
        if not root.exists():
            raise NotFoundError(f"There is nothing at {root}.", hint=_hint(data))
        beside = root.parent if root.is_file() and root.suffix.lower() != ".zip" else root
        paths: Iterable[Path] = archives.walk(beside)
    else:
        root = data.root
        split_entries: Iterable[dict[str, Any]] = data.manifest["splits"].values()
        paths = [data.root / str(file["path"]) for entry in split_entries for file in entry.get("files", ())]
        paths = [path for path in paths if archives.exists(path)]
    wanted = {_NAME.format(part): part for part in _PARTS}
    found: dict[str, Path] = {}
    for path in paths:
        part = wanted.get(path.name)
        if part is not None:
            found.setdefault(part, path)
    if options.snli is not None and root.is_file() and root.suffix.lower() != ".zip":
        found["train"] = root  # whatever the user named it
    if "train" not in found:
        where = f" below {root}" if options.snli is not None else ""
        raise NotFoundError(f"The overlap needs SNLI's own {_NAME.format('train')}, which is not there{where}.",
                            hint=_hint(data))  # fmt: skip
    return {part: found[part] for part in _PARTS if part in found}


def _hint(data: TaskData) -> str:
    return f"madkit data suite {data.name} snli-overlap --snli PATH/snli_1.0.zip"


@dataclass(slots=True)
class _Seen:
    """What SNLI's files hold: ids of train pairs, digests of their sentences, and the latter of every known id."""

    train_ids: set[str] = field(default_factory=set)
    train_texts: set[bytes] = field(default_factory=set)
    texts: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Row:
    pair: str
    in_train: bool
    text_in_train: bool | None
    known: bool


def _read(files: dict[str, Path]) -> _Seen:
    seen = _Seen()
    total = sum(archives.size_of(path) for path in files.values())
    with progress("Reading SNLI", total // 1_000_000, unit="MB") as bar:
        told = read = 0

        def advance(n: int) -> None:
            nonlocal told, read
            read += n
            if read // 1_000_000 > told:
                bar.advance(read // 1_000_000 - told)
                told = read // 1_000_000

        for part, path in files.items():
            for pair, text in _pairs(path, advance):
                seen.texts[pair] = text
                if part == "train":
                    seen.train_ids.add(pair)
                    seen.train_texts.add(text)
    return seen


def _pairs(path: Path, advance: Advance) -> Iterator[tuple[str, bytes]]:
    """(pairID, digest of premise and hypothesis) of every line."""
    for place, row in iter_json_lines(path, advance):
        texts = [row.get(key) for key in ("sentence1", "sentence2")]
        for key, text in zip(("sentence1", "sentence2"), texts, strict=True):
            if not isinstance(text, str):
                place.fail(f"the key '{key}' is missing or no string")
        joined = "\n".join(normalised(str(text)) for text in texts)
        yield (
            need_string(row, "pairID", place),
            blake2b(joined.encode("utf-8", "surrogatepass"), digest_size=12).digest(),
        )


def normalised(text: str) -> str:
    """A sentence without what two copies of it may differ in: case, spacing, punctuation, Unicode form."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"\w+", plain))


def _row(pair: str, seen: _Seen) -> _Row:
    text = seen.texts.get(pair)
    return _Row(pair, pair in seen.train_ids, None if text is None else text in seen.train_texts, text is not None)


def _counts(rows: list[_Row]) -> dict[str, int]:
    return {
        "pairs": len(rows),
        "in SNLI train": sum(row.in_train for row in rows),
        "text in SNLI train": sum(row.text_in_train is True for row in rows),
        "premise unknown": sum(row.text_in_train is None for row in rows),
    }


def _table(rows: list[_Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(_COLUMNS)
    word = {True: "yes", False: "no", None: ""}
    writer.writerows([row.pair, word[row.in_train], word[row.text_in_train]] for row in rows)
    return text.getvalue()


def _finished(folder: Path, recipe: dict[str, Any]) -> list[Made] | None:
    try:
        held = read_json(folder / "snli-overlap.json")
    except MadkitError:
        return None
    if not isinstance(held, dict) or {key: held.get(key) for key in recipe} != json.loads(json.dumps(recipe)):
        return None
    made = _made(folder, held["counts"])
    return made if all(one.path.is_file() for one in made) else None


def _made(folder: Path, counts: dict[str, dict[str, int]]) -> list[Made]:
    return [
        Made("list", f"snli-overlap-{split}", folder / f"snli-overlap-{split}.tsv", numbers)
        for split, numbers in counts.items()
    ]
