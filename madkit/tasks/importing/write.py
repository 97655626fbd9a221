"""From a plan to a data set's folder: every split in one pass, the manifest last."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from madkit.core import archives
from madkit.core.archives import Listing
from madkit.core.errors import DataError
from madkit.core.files import digest_of, write_json_atomic
from madkit.tasks.data import MANIFEST, SCHEMA
from madkit.tasks.example import Example
from madkit.tasks.formats.source_lines import many_small_objects
from madkit.tasks.importing.plan import Advance, ImportPlan, SplitPlan, image_of
from madkit.tasks.index.images import ImageTable
from madkit.tasks.index.writer import ExampleWriter

_SHOWN = 5


class MissingImages:
    """Notices images whose files are absent. With `allow`, examples about them are left out and counted."""

    def __init__(self, *, allow: bool) -> None:
        self.allow = allow
        self.images = 0
        self.left_out: Counter[str] = Counter()
        self.first: list[Path] = []
        self.absent = 0
        self._known: dict[Path, bool] = {}
        self._listing = Listing()

    def has(self, example: Example, split: str) -> bool:
        """Whether the example's image is there."""
        path = example.image.path
        there = self._known.get(path)
        if there is None:
            there = self._known[path] = self._listing.exists(path)
            self.images += 1
            if not there:
                self.absent += 1
                if len(self.first) < _SHOWN:
                    self.first.append(path)
        if not there:
            self.left_out[split] += 1
        return there

    def check(self) -> None:
        """Raise DataError with the count and the first five where images are absent and that is not allowed."""
        if self.absent and not self.allow:
            shown = ", ".join(map(str, self.first)) + (", ..." if self.absent > _SHOWN else "")
            raise DataError(
                f"{self.absent:,} of {self.images:,} images are missing: {shown}.",
                hint="check the folder of the images (--images DIR), or add --allow-missing to leave out "
                f"the {sum(self.left_out.values()):,} examples about them",
            )


def total_bytes(splits: list[SplitPlan]) -> int:
    """Bytes that reading the splits will consume."""
    return sum(archives.size_of(path) for split in splits for path in split.files)


@many_small_objects()
def write_dataset(
    folder: Path,
    plan: ImportPlan,
    *,
    dev_cut: float = 0.0,
    allow_missing: bool = False,
    check_images: bool = True,
    advance: Advance | None = None,
    extra: Mapping[str, Any] | None = None,
    revision: str | None = None,
) -> dict[str, Any]:
    """Write the index files of a plan's splits and, last, the manifest; returns the manifest.

    Args:
        folder: where; it should be new.
        plan: the splits; `suites` and `attach_to` are not looked at.
        dev_cut: share of train's groups that becomes "dev" where the plan asks for a cut.
        allow_missing: leave examples whose images are absent out, instead of failing.
        check_images: whether to look for the image files.
        advance: receives the bytes consumed.
        extra: further keys of the manifest.
        revision: where it is not to be computed from the content.

    Raises DataError for files that break their format, for absent images, and where one image id names two files.
    """
    images = ImageTable(plan.images_root)
    missing = MissingImages(allow=allow_missing) if check_images else None
    entries: dict[str, dict[str, Any]] = {}
    digests: dict[str, str] = {}
    cut = dev_cut if plan.cut_dev else 0.0
    for split in plan.splits:
        names = [split.name] + (["dev"] if split.name == "train" and cut else [])
        writers = _read(split, names, folder, images, plan.cut_group, cut, missing, advance)
        if missing is not None:
            missing.check()
        if plan.cut_group is not image_of and not all(writer.count for writer in writers.values()):
            # too few groups to cut between (one film): questions about one image still stay together
            if missing is not None:
                missing.left_out[split.name] = 0  # counted anew
            writers = _read(split, names, folder, images, image_of, cut, missing, None)
        for name, writer in writers.items():
            if not writer.count:
                cut_away = len(writers) > 1
                share = f" with a cut of {cut:g}" if cut_away else ""
                raise DataError(
                    f"The split {name} of {plan.source} has no examples{share}.",
                    hint="choose another share: --dev-cut 0.2" if cut_away else _EMPTY,
                )
            digests[name] = writer.write()
            entries[name] = _entry(split, name, writer, folder, cut)
            if missing is not None and missing.left_out[split.name] and name == split.name:
                entries[name]["left_out"] = {"image missing": missing.left_out[split.name]}
    images.check_ids()
    images.write(folder)
    ordered = {name: entries[name] for name in sorted(entries, key=_order)}
    manifest = {
        "schema": SCHEMA,
        "task": plan.task,
        "source": plan.source,
        "title": plan.title,
        **({} if plan.spec is None else {"spec": plan.spec.to_dict()}),
        "revision": revision or digest_of([plan.source, plan.task, {name: digests[name] for name in ordered}]),
        "images_root": _place(plan.images_root, folder),
        "images": len(images),
        "splits": ordered,
        "notes": list(dict.fromkeys(plan.notes)),  # a split may be read twice
        **(extra or {}),
    }
    write_json_atomic(folder / MANIFEST, manifest)
    return manifest


def _read(
    split: SplitPlan,
    names: list[str],
    folder: Path,
    images: ImageTable,
    group: Callable[[Example], str],
    cut: float,
    missing: MissingImages | None,
    advance: Advance | None,
) -> dict[str, ExampleWriter]:
    writers = {name: ExampleWriter(folder, name, images) for name in names}
    for example in split.read(advance or (lambda _: None)):
        if missing is not None and not missing.has(example, split.name):
            continue
        held = len(writers) > 1 and in_cut(group(example), cut)
        writers["dev" if held else split.name].add(example)
    return writers


_EMPTY = "check that the files and the folder of the images belong together"
_ORDER = ("train", "dev", "test")


def _order(name: str) -> int:
    return _ORDER.index(name) if name in _ORDER else len(_ORDER)


def _entry(split: SplitPlan, name: str, writer: ExampleWriter, folder: Path, cut: float) -> dict[str, Any]:
    held_out = name != split.name
    official = split.official
    if held_out:
        official = f"{100 * cut:.3g} % of {split.official}"
    elif split.name == "train" and cut:
        official = f"{split.official} without dev"
    return {
        "official": official,
        "examples": writer.count,
        "questions": writer.questions,
        "images": len(writer.image_rows),
        "labelled": split.labelled,
        "balance": dict(sorted(writer.balance.items())) if split.labelled else {},
        "files": [_file(path, folder) for path in split.files],
        **({"about": split.about} if split.about else {}),
    }


def _file(path: Path, folder: Path) -> dict[str, Any]:
    return {"path": _place(path, folder), "bytes": archives.size_of(path), "sha256": sha256_of(path)}


def sha256_of(path: Path) -> str:
    """SHA-256 of a file or of a member of a zip, 64 hex digits."""
    digest = hashlib.sha256()
    with archives.open_binary(path) as stream:
        for piece in iter(lambda: stream.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()


def _place(path: Path, folder: Path) -> str:
    """A path as it stands in the manifest: relative inside the data set's own folder, absolute outside."""
    if path == folder:
        return "."
    return str(path.relative_to(folder)) if folder in path.parents else str(path.absolute())


@lru_cache(maxsize=64)  # the examples of a group come together, or nearly so
def in_cut(group: str, share: float) -> bool:
    """Whether a group of examples belongs to the development split that is cut from train.

    A pure function of the group's name: it needs no second look at the data, and a larger share contains a smaller one.
    """
    number = int.from_bytes(hashlib.sha256(f"madkit development split\0{group}".encode()).digest()[:8], "big")
    return number < share * 2.0**64
