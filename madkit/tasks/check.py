"""`madkit data check`: does what was imported still agree with the files it came from, and are they all readable?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from madkit.core import archives
from madkit.core.archives import Listing
from madkit.core.errors import MadkitError
from madkit.core.seeds import permutation
from madkit.tasks.data import TaskData
from madkit.tasks.example import Example
from madkit.tasks.importing.write import sha256_of

if TYPE_CHECKING:
    from PIL import Image

    from madkit.regions import RegionReader
    from madkit.regions.declared import Size

SIZES = "images' sizes"
_SHOWN = 5
Advance = Callable[[int], None]


@dataclass(slots=True)
class Finding:
    """One check: what was looked at, how many, what was wrong and what is worth a note (a few of them)."""

    what: str
    looked_at: int = 0
    wrong: int = 0
    first: list[str] = field(default_factory=list)
    noted: int = 0
    notes: list[str] = field(default_factory=list)

    def complain(self, problem: str) -> None:
        """Count one more thing that is wrong."""
        self.wrong += 1
        if len(self.first) < _SHOWN:
            self.first.append(problem)

    def note(self, said: str) -> None:
        """Count one more thing that is not wrong, but may not be meant."""
        self.noted += 1
        if len(self.notes) < _SHOWN:
            self.notes.append(said)

    def as_row(self) -> dict[str, Any]:
        """Plain values for JSON."""
        found = {"looked_at": self.looked_at, "wrong": self.wrong, "first": list(self.first)}
        return {"check": self.what, **found, "noted": self.noted, "notes": list(self.notes)}


def check_dataset(
    data: TaskData, *, deep: bool = False, sample: int = 200, advance: Advance | None = None
) -> list[Finding]:
    """Check a data set against its files.

    Owners' files are compared by size (by SHA-256 with `deep`), every image is looked for and a sample is decoded (all
    with `deep`) and compared with the size that the data say, every example is read and its tags and boxes are
    compared, and the region features of every image are looked for and a sample is read (all with `deep`).

    Args:
        data: the data set.
        deep: look at everything instead of a sample.
        sample: images and region entries to open where not `deep`.
        advance: called with 1 for each check that is done.
    """
    findings = [_source_files(data, deep)]
    done = advance or (lambda _: None)
    done(1)
    names = [*data.splits(), *(name for name in data.suites() if name != "test"), *data.submissions()]
    examples, by_split, sizes = _examples(data, names)
    images = {image: path for held in by_split.values() for image, path in held.items()}
    findings += examples
    done(1)
    findings.append(_image_files(images.values()))
    chosen = _sample(sorted(images), len(images) if deep else sample, data.revision)
    findings += _decoding([(images[name], sizes.get(name, ())) for name in chosen])
    done(1)
    findings += _regions(data, by_split, deep, sample)
    done(1)
    return findings


def _source_files(data: TaskData, deep: bool) -> Finding:
    finding = Finding("owners' files" + (" (SHA-256)" if deep else " (size)"))
    # one file may have made several splits
    files = {file["path"]: file for entry in data.manifest["splits"].values() for file in entry.get("files", [])}
    for file in files.values():
        finding.looked_at += 1
        path = data.root / file["path"]
        if not archives.exists(path):
            finding.complain(f"{path} is gone")
        elif archives.size_of(path) != file["bytes"] or (deep and sha256_of(path) != file["sha256"]):
            finding.complain(f"{path} has changed since the import")
    return finding


def _examples(
    data: TaskData, names: Sequence[str]
) -> tuple[list[Finding], dict[str, dict[str, Path]], dict[str, set[Size]]]:
    """The findings, by split the files of its images under their ids, and the sizes that the data say of images."""
    readable, tags = Finding("examples"), Finding("tags and boxes")
    by_split: dict[str, dict[str, Path]] = {}
    sizes: dict[str, set[Size]] = {}
    for name in names:
        images = by_split.setdefault(name, {})
        try:
            for example in data.examples(name):
                readable.looked_at += 1
                images[example.image.id] = example.image.path
                if example.width:
                    sizes.setdefault(example.image.id, set()).add((example.width, example.height))
                _check_tags(example, name, tags)
                if example.label is None and example.answers is None and data.labelled(name):
                    readable.complain(f"{name}: {example.id} has no label")
        except MadkitError as error:
            readable.complain(f"{name}: {error.message}")
    return [readable, tags], by_split, sizes


def _check_tags(example: Example, split: str, finding: Finding) -> None:
    for segment in (*example.context, *example.candidates):
        for tag in segment.tags:
            finding.looked_at += 1
            if not 0 <= tag.start < tag.end <= len(segment.text) or max(tag.boxes) >= len(example.boxes):
                finding.complain(f"{split}: {example.id} has a tag outside its text or its boxes")


def _image_files(paths: Iterable[Path]) -> Finding:
    finding, listing = Finding("image files"), Listing()
    for path in paths:
        finding.looked_at += 1
        if not listing.exists(path):
            finding.complain(f"{path} is missing")
    return finding


def _decoding(images: Sequence[tuple[Path, Iterable[Size]]]) -> list[Finding]:
    """Decode images, and compare each with the sizes that the data say of it."""
    from PIL import Image

    finding, sized = Finding("images decoded"), Finding(SIZES)
    for path, sizes in images:
        finding.looked_at += 1
        try:
            with Image.open(BytesIO(archives.read_bytes(path))) as image:
                image.load()
                for size in sorted(sizes):
                    _check_size(image, size, path, sized)
        except MadkitError as error:
            finding.complain(error.message)
        except (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError) as error:
            finding.complain(f"{path} cannot be decoded ({error})")
    return [finding, sized] if sized.looked_at else [finding]


def _check_size(image: Image.Image, size: Size, path: Path, finding: Finding) -> None:
    from madkit.regions.declared import Fit, difference, fit_of

    finding.looked_at += 1
    fit, said = fit_of(image, size), difference(image, size, str(path))
    if fit is Fit.NONE:
        finding.complain(said)
    elif fit is Fit.SCALED:
        finding.note(f"{said}: its boxes are read as those of a copy of that size")
    elif fit is Fit.TURNED:
        finding.note(
            f"{said}: its boxes are read as those of the picture that its EXIF note turns; teachers do not turn"
        )


def _regions(data: TaskData, by_split: dict[str, dict[str, Path]], deep: bool, sample: int) -> list[Finding]:
    """Added suites may have features of their own, so each image is looked for where its split's students read it."""
    covered, sound = Finding("images with region features"), Finding("region features read")
    asked: dict[RegionReader, dict[str, str]] = {}  # by reader: image -> a split that has it
    for split, images in by_split.items():
        try:
            reader = data.regions(split)
        except MadkitError as error:
            covered.complain(f"{split}: {error.message}")
            continue
        if reader is not None:
            asked.setdefault(reader, {}).update((image, split) for image in images)
    for reader, wanted in asked.items():
        known = set(reader.ids())
        for image, split in wanted.items():
            covered.looked_at += 1
            if image not in known:
                covered.complain(f"{image} ({split}) has none")
        for image in _sample(sorted(known & wanted.keys()), len(wanted) if deep else sample, data.revision):
            sound.looked_at += 1
            try:
                regions = reader.get(image)
                if not len(regions.boxes) or not np.isfinite(regions.features).all():
                    sound.complain(f"{image} has no usable regions")
            except MadkitError as error:
                sound.complain(error.message)
    return [covered, sound] if covered.looked_at or covered.wrong else []


def _sample(names: Sequence[str], count: int, revision: str) -> list[str]:
    if count >= len(names):
        return list(names)
    return [names[place] for place in permutation(len(names), "check", revision)[:count].tolist()]
