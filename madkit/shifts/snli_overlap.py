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
from collections.abc import Iterator
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
    """Write `lists/snli-overlap-dev.tsv` and `-test.tsv` below the data's folder; `snli-overlap.json` has the counts.

    Each row of a list is a pair of SNLI-VE: its pairID, whether that id is in SNLI's train split ("yes" or "no"), and
    whether its premise and hypothesis are there together ("" where the premise is not known: SNLI-VE's index holds no
    premises, so they are taken from the owner's files, or from SNLI's dev and test files beside the train file).

    Raises NotFoundError without SNLI's train file, DataError for lines that break SNLI's format and for data whose
    pairIDs are not SNLI's.
    """
    files = _find(data, options)
    splits = [split for split in SPLITS if split in data.splits()]
    own = [path for split in splits for path in _own_files(data, split)]
    recipe = {
        "shift": "snli-overlap",
        "version": _VERSION,
        "of": data.source,
        "parent_revision": data.revision,
        "snli": {part: [str(path), archives.size_of(path)] for part, path in files.items()},
        "premises": [str(path) for path in own],
    }
    folder = data.root / LISTS
    done = _finished(folder, recipe)
    if done is not None:
        info(f"The overlap of {data.source} with SNLI is listed already; nothing to do.")
        return done
    seen = _read(files, own)
    found = {split: [_row(one.id, seen) for one in data.examples(split)] for split in splits}
    if not any(row.pair in seen.snli_ids for rows in found.values() for row in rows):
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
    where, named = "", None
    if options.snli is None:
        paths = [path for split in data.manifest["splits"] for path in _own_files(data, split)]
    else:
        root = options.snli.expanduser().absolute()
        where = f" below {root}"
        if not root.exists():
            raise NotFoundError(f"There is nothing at {root}.", hint=_hint(data))
        if root.is_file() and root.suffix.lower() != ".zip":
            named = root  # the train file, whatever its name; the others may lie beside it
            beside = [root.with_name(_NAME.format(part)) for part in _PARTS[1:]]
            paths = [path for path in beside if path.is_file()]
        else:
            paths = list(archives.walk(root))
    found = {} if named is None else {"train": named}
    for path in paths:
        for part in _PARTS:
            if path.name == _NAME.format(part):
                found.setdefault(part, path)
    if "train" not in found:
        raise NotFoundError(
            f"The overlap needs SNLI's own {_NAME.format('train')}, which is not there{where}.", hint=_hint(data)
        )
    return {part: found[part] for part in _PARTS if part in found}


def _own_files(data: TaskData, split: str) -> list[Path]:
    """The owner's JSONL files of a split that are still there."""
    files = data.manifest["splits"][split].get("files", ())
    paths = [data.root / str(file["path"]) for file in files]
    return [path for path in paths if path.suffix.lower() == ".jsonl" and archives.exists(path)]


def _hint(data: TaskData) -> str:
    return f"madkit data suite {data.name} snli-overlap --snli PATH/snli_1.0.zip"


@dataclass(slots=True)
class _Seen:
    """What the files hold: SNLI's pairIDs, those of its train split, digests of sentences (train's, and by pairID)."""

    snli_ids: set[str] = field(default_factory=set)
    train_ids: set[str] = field(default_factory=set)
    train_texts: set[bytes] = field(default_factory=set)
    texts: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Row:
    pair: str
    in_train: bool
    text_in_train: bool | None


def _read(snli: dict[str, Path], own: list[Path]) -> _Seen:
    seen = _Seen()
    own = [path for path in own if path not in snli.values()]
    total = sum(archives.size_of(path) for path in (*snli.values(), *own))
    with progress("Reading SNLI", total, unit="bytes") as bar:
        for part, path in snli.items():
            for pair, text in _pairs(path, bar.advance, strict=True):
                seen.snli_ids.add(pair)
                seen.texts[pair] = text
                if part == "train":
                    seen.train_ids.add(pair)
                    seen.train_texts.add(text)
        for path in own:
            for pair, text in _pairs(path, bar.advance, strict=False):
                seen.texts.setdefault(pair, text)
    return seen


def _pairs(path: Path, advance: Advance, *, strict: bool) -> Iterator[tuple[str, bytes]]:
    """(pairID, digest of premise and hypothesis) of every line; lines that lack one are passed over unless `strict`."""
    for place, row in iter_json_lines(path, advance):
        lacking = [key for key in ("sentence1", "sentence2") if not isinstance(row.get(key), str)]
        if lacking and strict:
            place.fail(f"the key '{lacking[0]}' is missing or no string")
        if not lacking:
            both = "\n".join(normalised(row[key]) for key in ("sentence1", "sentence2"))
            digest = blake2b(both.encode("utf-8", "surrogatepass"), digest_size=12).digest()
            yield need_string(row, "pairID", place), digest


def normalised(text: str) -> str:
    """A sentence without what two copies of it may differ in: case, spacing, punctuation, Unicode form."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"\w+", plain))


def _row(pair: str, seen: _Seen) -> _Row:
    text = seen.texts.get(pair)
    return _Row(pair, pair in seen.train_ids, None if text is None else text in seen.train_texts)


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
