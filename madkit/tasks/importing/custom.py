"""Import of users' own data: a JSONL file, a folder of one file per split, or a saved Hugging Face dataset.

All lines are read once before anything is written: what every line must share (classes, number of choices) is known
then, and a mistake in the last line costs no more than one in the first.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from madkit.core import archives
from madkit.core.console import progress
from madkit.core.errors import DataError, NotFoundError, UsageProblem
from madkit.core.registry import suggest
from madkit.tasks.example import Example
from madkit.tasks.formats.custom import ImageFiles, LineReader
from madkit.tasks.formats.custom_lines import (
    HIDDEN,
    KINDS,
    MOST_CLASSES,
    Header,
    LinePlace,
    iter_lines,
    known_split,
    read_header,
    split_of,
    task_kind,
)
from madkit.tasks.formats.source_lines import Row, UniqueIds, many_small_objects
from madkit.tasks.importing.custom_hf import SavedDataset
from madkit.tasks.importing.found import FoundFiles
from madkit.tasks.importing.plan import Advance, ImportOptions, ImportPlan, SplitPlan
from madkit.tasks.spec import TaskKind, custom_spec

_SPLIT_FILE = r"(train|dev|val|valid|validation|test|test[-_].+|submission)\.(jsonl|ndjson)"
_LINES_FILE = r".+\.(jsonl|ndjson)"
_ORDER = ("train", "dev", "test")
_LOOKED_AT = 50  # names of images that are tried in the folders where images may be
_SHOW_EVERY = 1000
_DOCS = "docs/custom.md describes the file"


@dataclass(frozen=True, slots=True)
class Source:
    """Lines of one file: `split` is theirs where the file's name says so. `files` are what is read for them."""

    path: Path
    split: str | None
    read: Callable[[Advance], Iterator[tuple[LinePlace, Row]]]
    files: tuple[Path, ...]


@dataclass(slots=True)
class Given:
    """What the user pointed at, before any line of it has been read."""

    name: str
    base: Path
    sources: list[Source]
    header: Header
    notes: list[str]
    saved: SavedDataset | None = None


@dataclass(slots=True)
class SplitFacts:
    """What is known of a split after all lines have been read once."""

    sources: list[Source] = field(default_factory=list)
    ids: UniqueIds = field(default_factory=lambda: UniqueIds("id"))
    images: dict[str, None] = field(default_factory=dict)
    labels: Counter[str] = field(default_factory=Counter)
    first: dict[str, LinePlace] = field(default_factory=dict)


def plan(files: FoundFiles, options: ImportOptions) -> ImportPlan:
    """The plan for a user's own data; every line has been checked.

    Raises:
        UsageProblem: no kind, an impossible name, several files of which none is named like a split.
        NotFoundError: no file with lines.
        DataError: a line that breaks the format, with file, line and key.
    """
    given = _given(files, options)
    name = _task_name(given, options)
    kind = _kind(given, options)
    images = ImageFiles(_images_root(given, options))
    if given.saved is not None:
        images = given.saved.image_files(images.root)
    facts, reader = _survey(given, name, kind, images)
    labels: tuple[str, ...] = ()
    if kind == "classification":
        labels = given.header.labels or _classes(facts)
    made = ImportPlan(
        task=name,
        source=name,
        title=name,
        splits=[],
        images_root=images.root,
        spec=custom_spec(name, kind, labels=labels, n_candidates=reader.n_candidates),
        notes=[*given.notes, *_notes(reader, given)],
    )
    dev = _held_out(facts, options)
    made.cut_dev = "train" in facts and "dev" not in facts and not dev

    def with_images(images: ImageFiles) -> ImportPlan:
        splits = []
        for split in sorted(facts, key=_place_of):
            read = _reader(facts[split], split, name, kind, images, labels, dev if split == "train" else None)
            files = tuple(path for source in facts[split].sources for path in source.files)
            if split == "train" and dev:
                splits.append(SplitPlan("train", "train without dev", read(False), files))
                splits.append(SplitPlan("dev", f"{options.dev_cut:.3g} of train", read(True), files))
            else:
                splits.append(SplitPlan(split, split, read(False), files, labelled=split != HIDDEN))
        return replace(made, splits=splits)

    saved = given.saved
    if saved is None or not saved.exported:
        return with_images(images)

    def prepare(folder: Path) -> ImportPlan:
        root = saved.export(folder)
        return replace(with_images(saved.image_files(images.root, root)), images_root=root, prepare=None)

    return replace(with_images(images), prepare=prepare)


def _place_of(split: str) -> tuple[int, str]:
    return (_ORDER.index(split) if split in _ORDER else len(_ORDER), split)


# -- what is there ----------------------------------------------------------------------------------------------------


def _given(files: FoundFiles, options: ImportOptions) -> Given:
    root = files.root
    if SavedDataset.is_at(root):
        saved = SavedDataset(root, options.kind, options.images)
        sources = [Source(part.folder, part.split, saved.reader_of(part), part.files) for part in saved.parts]
        return Given(root.name, root, sources, Header(None, saved.labels), saved.notes, saved)
    if root.is_file() and not archives.is_folder(root):
        return _of_files([root], root.stem, root.parent, [])
    found = files.matching(_SPLIT_FILE)
    if found:
        folder = min((path.parent for path in found), key=lambda path: len(path.parts))
        chosen = [path for path in found if path.parent == folder]
        others = [path.name for path in files.matching(_LINES_FILE) if path.parent == folder and path not in chosen]
        notes = [f"not read, because no split is called so: {', '.join(others)}"] if others else []
        return _of_files(chosen, root.stem if root.is_file() else root.name, folder, notes)
    lines = files.matching(_LINES_FILE)
    if len(lines) > 1:
        raise UsageProblem(
            f"{root} holds {len(lines)} JSONL files, none named like a split: "
            f"{', '.join(path.name for path in lines[:4])}.",
            hint="give one file, or name them train.jsonl, dev.jsonl, test.jsonl, test-SOMETHING.jsonl",
        )
    if not lines:
        raise NotFoundError(
            f"There is neither a JSONL file nor a saved Hugging Face dataset in {root}.",
            hint=f"give FILE.jsonl, or a folder with train.jsonl; {_DOCS}",
        )
    return _of_files(lines, lines[0].stem, lines[0].parent, [])


def _of_files(paths: list[Path], name: str, base: Path, notes: list[str]) -> Given:
    # One file says in its lines what belongs to which split; of several, each is one split.
    alone = len(paths) == 1 and re.fullmatch(_SPLIT_FILE, paths[0].name) is None
    sources, headers, splits = [], [], dict[str, Path]()
    for path in paths:
        split = None if alone else known_split(path.name.rpartition(".")[0])
        if split is not None:
            if split in splits:
                raise UsageProblem(f"{splits[split]} and {path} are both the split {split}.", hint="keep one of them")
            splits[split] = path
        sources.append(Source(path, split, _lines_of(path), (path,)))
        headers.append(read_header(path))
    header = headers[0]
    for path, other in zip(paths[1:], headers[1:], strict=True):
        for key in ("kind", "labels"):
            ours, theirs = getattr(header, key), getattr(other, key)
            if theirs is not None and ours is not None and ours != theirs:
                LinePlace(path, 1).fail(f"'{key}' of the header differs from that in {paths[0]}")
        header = Header(header.kind or other.kind, header.labels or other.labels)
    if known_split(name) is not None:  # "train.jsonl" alone names no task, its folder does
        name = base.name
    return Given(name, base, sources, header, notes)


def _lines_of(path: Path) -> Callable[[Advance], Iterator[tuple[LinePlace, Row]]]:
    return lambda advance: iter_lines(path, advance)


def _task_name(given: Given, options: ImportOptions) -> str:
    wanted = given.name if options.name is None else options.name
    plain = re.sub(r"[^a-z0-9]+", "-", wanted.lower()).strip("-")
    if options.name is not None and options.name != plain:
        raise UsageProblem(
            f"The name {options.name!r} is not made of small letters, digits and single hyphens.",
            hint=f"--name {plain}" if plain else "--name my-task",
        )
    if not plain:
        raise UsageProblem(f"No name for the task can be made from {given.name!r}.", hint="--name my-task")
    return plain


def _kind(given: Given, options: ImportOptions) -> TaskKind:
    said = options.kind or given.header.kind
    names = ", ".join(KINDS)
    if said is None:
        raise UsageProblem("The kind of the task is not known.", hint=f"--kind {' or --kind '.join(KINDS)}")
    kind = task_kind(said)
    if kind is None:
        raise UsageProblem(f"There is no kind of task {said!r}.{suggest(said, KINDS)}", hint=f"use one of: {names}")
    if given.header.kind not in (None, kind):
        raise UsageProblem(
            f"The file's header says that the task is {given.header.kind}, not {kind}.", hint="leave out --kind"
        )
    return kind


def _images_root(given: Given, options: ImportOptions) -> Path:
    """What names of images are relative to: the user's folder, else the first of two where the images are found."""
    if options.images is not None:
        return options.images
    names = [
        row["image"]
        for source in given.sources
        for _, row in islice(source.read(lambda _: None), _LOOKED_AT)
        if isinstance(row.get("image"), str) and row["image"].strip() and "\0" not in row["image"]
    ]
    places = (given.base, given.base / "images")
    return next((place for place in places if any(archives.exists(place / name) for name in names)), given.base)


# -- the first reading ------------------------------------------------------------------------------------------------


def _survey(given: Given, name: str, kind: TaskKind, images: ImageFiles) -> tuple[dict[str, SplitFacts], LineReader]:
    """Read every line once: facts of every split, and the reader, which knows what the lines share."""
    reader = LineReader(name, kind, images, given.header.labels)
    facts: dict[str, SplitFacts] = {}
    says: LinePlace | None = None  # the first line that names its split, and the first that does not
    silent: LinePlace | None = None
    with many_small_objects(), progress(f"Checking {name}", None, "lines") as bar:
        for source in given.sources:
            for number, (place, row) in enumerate(source.read(lambda _: None), 1):
                if number % _SHOW_EVERY == 0:
                    bar.advance(_SHOW_EVERY)
                split = split_of(row, place, source.split)
                says, silent = (says or place, silent) if split else (says, silent or place)
                if says and silent:
                    silent.fail(f"the key 'split' is missing, and {says} has it: give it in all lines, or in none")
                split = split or "train"
                known = facts.setdefault(split, SplitFacts())
                if source not in known.sources:
                    known.sources.append(source)
                example = reader.example(row, place, split)
                known.ids.add(example.id, place)
                known.images[example.image.id] = None
                if kind == "classification" and isinstance(row.get("label"), str):
                    label = row["label"].strip()
                    known.labels[label] += 1
                    known.first.setdefault(label, place)
    return facts, reader


def _classes(facts: dict[str, SplitFacts]) -> tuple[str, ...]:
    """The names that the train split uses, sorted; a name that only another split uses is taken for a mistake."""
    learned = facts.get("train")
    if learned is None:
        names = sorted({label for split in facts.values() for label in split.labels})
    else:
        names = sorted(learned.labels)
        for split, known in facts.items():
            for label, place in known.first.items():
                if label not in learned.labels:
                    near = suggest(label, names)
                    place.fail(
                        f"'label' {label!r} of the split {split} does not occur in train{near and '.' + near}",
                        hint='correct it, or name all classes in a first line {"madkit": 1, "labels": [...]}',
                    )
    if len(names) < 2:
        raise DataError(
            f"A classification task needs two classes, and {'all lines have' if names else 'no line has'} "
            f"{f'the label {names[0]!r}' if names else 'a label'}.",
            hint='name all classes in a first line {"madkit": 1, "labels": ["NAME", "NAME"]}',
        )
    if len(names) > MOST_CLASSES:
        raise DataError(f"The labels have {len(names):,} different names, so they are no classes.", hint="--kind vqa")
    return tuple(names)


def _held_out(facts: dict[str, SplitFacts], options: ImportOptions) -> frozenset[str]:
    """The train images whose questions become dev where the files have none; none are cut with a share of 0.

    Own data may be small, so the share is met exactly, with one image at least: the images whose names' digests come
    first.
    """
    if "train" not in facts or "dev" in facts:
        return frozenset()
    images = list(facts["train"].images)
    if not options.dev_cut:
        if "test" not in facts:
            raise UsageProblem(
                "Without a split dev in the files, nothing is left to develop on.", hint="leave out --dev-cut 0"
            )
        return frozenset()
    if len(images) < 2:
        raise DataError(
            "The split train has one image, so no development split can be cut from it by image.",
            hint="give lines of the split dev",
        )
    count = min(max(1, round(options.dev_cut * len(images))), len(images) - 1)

    def rank(image: str) -> bytes:
        return hashlib.sha256(f"madkit development split\0{image}".encode()).digest()

    return frozenset(sorted(images, key=rank)[:count])


def _notes(reader: LineReader, given: Given) -> Iterable[str]:
    unit = "row" if given.saved is not None else "line"
    if reader.unnamed:
        yield (
            f"{reader.unnamed:,} {unit}s have no id and are called {unit}-N after their place: a {unit} that is put in "
            "renames those behind it"
        )
    if reader.few_answers:
        yield (
            f"{reader.few_answers:,} questions have fewer than four answers: an answer's score is the share of "
            "annotators who gave it, not VQA's min(1, n/3)"
        )


# -- the second reading -----------------------------------------------------------------------------------------------


def _reader(
    facts: SplitFacts,
    split: str,
    name: str,
    kind: TaskKind,
    images: ImageFiles,
    labels: tuple[str, ...],
    held: frozenset[str] | None,
) -> Callable[[bool], Callable[[Advance], Iterator[Example]]]:
    """What reads a split; where images are `held` out, the questions about those (True) or about the others (False)."""

    def choose(wanted: bool) -> Callable[[Advance], Iterator[Example]]:
        def read(advance: Advance) -> Iterator[Example]:
            reader = LineReader(name, kind, images, labels or None)
            for source in facts.sources:
                for place, row in source.read(advance):
                    if (split_of(row, place, source.split) or "train") != split:
                        continue
                    example = reader.example(row, place, split)
                    if not held or (example.image.id in held) is wanted:
                        yield example

        return read

    return choose
