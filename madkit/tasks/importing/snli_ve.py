"""SNLI-VE: the owners' three JSONL files, ALBEF's three JSON lists, or SNLI 1.0 itself with Flickr30k's image lists.

SNLI-VE is SNLI dealt out anew by image: of the pairs with an agreed label about Flickr30k photos, those about the
photos of one list are test, those about the last 1,000 of another are dev, the rest is train. The owners distribute a
generator in place of the files; `FromSnli` deals the same pairs in the same order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from madkit.core.archives import open_binary
from madkit.core.errors import DataError, NotFoundError
from madkit.tasks.example import Example
from madkit.tasks.formats.snli_ve import NO_GOLD, VISUAL_GENOME, Pair, examples_of, iter_pairs, iter_snli_ve
from madkit.tasks.formats.source_lines import Place
from madkit.tasks.importing.found import FoundFiles
from madkit.tasks.importing.plan import Advance, ImportOptions, ImportPlan, SplitPlan
from madkit.tasks.spec import SNLI_VE_LABELS

SPLITS = ("train", "dev", "test")
EXTENSIONS = (".jpg", ".png", ".jpeg")
DEV_IMAGES = 1000  # the last of the train_val list

# Pairs per label that the owners publish.
PUBLISHED: Mapping[str, Mapping[str, int]] = {
    "train": {"entailment": 176_932, "neutral": 176_045, "contradiction": 176_550},
    "dev": {"entailment": 5_959, "neutral": 5_960, "contradiction": 5_939},
    "test": {"entailment": 5_973, "neutral": 5_964, "contradiction": 5_964},
}

_NAMES = {"train": "train", "dev": "(?:dev|val)", "test": "test"}
_LAYOUTS = (
    ("the owners' file", r"snli[-_]ve[-_]{}\.jsonl"),
    ("the list of ALBEF or LAVIS", r"(?:snli[-_])?ve[-_]{}\.json"),
)
_SNLI = r"snli_1\.0_{}\.jsonl"
_TRAIN_VAL = r"flickr30k_train_val\.(?:lst|txt)"
_TEST = r"flickr30k_test\.(?:lst|txt)"


def plan(files: FoundFiles, options: ImportOptions) -> ImportPlan:
    """Say how the files found make SNLI-VE.

    Raises:
        NotFoundError: none of the layouts is there, one is there in part, or there are no photos.
        UsageProblem: several files could be meant.
        DataError: a list of images, or the first pair of a file, breaks its format.
    """
    made = ImportPlan("snli-ve", "snli-ve", "Visual Entailment (SNLI-VE)", [], files.root)
    for what, pattern in _LAYOUTS:
        found = {split: files.one(pattern.format(_NAMES[split]), f"{what} of {split}") for split in SPLITS}
        held = {split: path for split, path in found.items() if path is not None}
        if not held:
            continue
        if len(held) < len(SPLITS):
            lacking = ", ".join(split for split in SPLITS if split not in held)
            raise NotFoundError(
                f"{files.root} holds {', '.join(path.name for path in held.values())}, but no file for {lacking}.",
                hint="put the three files of SNLI-VE into one folder and give that folder",
            )
        made.images_root, extension = photos(files, (pair.image for pair in iter_pairs(held["train"])))
        checks = Checks(made.notes, PUBLISHED)
        for split, path in held.items():
            read = _reader(path, made.images_root, extension, checks.of(split, path.name))
            made.splits.append(SplitPlan(split, path.name, read, (path,)))
        return made
    return _from_snli(files, made)


def _reader(path: Path, images: Path, extension: str, check: Check) -> Callable[[Advance], Iterator[Example]]:
    def read(advance: Advance) -> Iterator[Example]:
        counts: dict[str, int] = {}
        pairs = iter_snli_ve(path, images, extension=extension, counts=counts, labelled=True, advance=advance)
        return check(pairs, counts)

    return read


def _from_snli(files: FoundFiles, made: ImportPlan) -> ImportPlan:
    sources = [files.one(_SNLI.format(split), f"SNLI's {split} file") for split in SPLITS]
    lists = [
        files.one(_TRAIN_VAL, "the list of train and dev images"),
        files.one(_TEST, "the list of test images"),
    ]
    if not any(sources):
        raise NotFoundError(
            f"There is no SNLI-VE below {files.root}: neither snli_ve_train.jsonl, snli_ve_dev.jsonl and "
            "snli_ve_test.jsonl nor snli_1.0_train.jsonl with Flickr30k's lists of images.",
            hint="give the folder that holds them, or snli_1.0.zip and the two .lst files in one folder",
        )
    names = [*(f"snli_1.0_{split}.jsonl" for split in SPLITS), "flickr30k_train_val.lst", "flickr30k_test.lst"]
    lacking = [name for name, path in zip(names, [*sources, *lists], strict=True) if path is None]
    if lacking:
        raise NotFoundError(
            f"To make SNLI-VE from SNLI, {', '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} missing below "
            f"{files.root}.",
            hint="the lists of images are in the data folder of the SNLI-VE repository, SNLI's files in snli_1.0.zip",
        )
    snli = [path for path in sources if path is not None]
    train_val, test = (path for path in lists if path is not None)
    deal = FromSnli(snli, train_val, test, made.notes)
    made.images_root, extension = photos(files, deal.images["test"])
    checks = Checks(made.notes, PUBLISHED)
    for split in SPLITS:
        # Whichever split is read first reads all of SNLI.
        sizes = {"train": (*snli, train_val), "dev": (train_val,), "test": (test,)}[split]
        read = _dealt(deal, split, made.images_root, extension, checks.of(split, f"SNLI-VE's {split} split"))
        made.splits.append(SplitPlan(split, f"SNLI 1.0 and {sizes[-1].name}", read, sizes))
    return made


def _dealt(
    deal: FromSnli, split: str, images: Path, extension: str, check: Check
) -> Callable[[Advance], Iterator[Example]]:
    def read(advance: Advance) -> Iterator[Example]:
        return check(examples_of(deal.pairs(split, advance), images, extension=extension), {})

    return read


class FromSnli:
    """SNLI's pairs dealt out by image, in the order in which the owners' generator writes them.

    That order is by image as the lists have them, and by SNLI's train, dev, test within an image, so that the data's
    revision is the same whichever way SNLI-VE came to the user.

    Args:
        snli: SNLI's train, dev and test JSONL.
        train_val: list of images, the last 1,000 of which are dev.
        test: list of images.
        notes: receives what was left out, once the files have been read.

    Raises DataError for lists that break their format, overlap or are too short.
    """

    def __init__(self, snli: Iterable[Path], train_val: Path, test: Path, notes: list[str]) -> None:
        self._snli = tuple(snli)
        self._notes = notes
        both, tested = read_image_list(train_val), read_image_list(test)
        if len(both) <= DEV_IMAGES:
            Place(train_val).fail(f"the list has {len(both)} images, but its last {DEV_IMAGES:,} alone are dev")
        twice = next((image for image in tested if image in both), None)
        if twice is not None:
            Place(test, tested[twice]).fail(f"the image {twice} stands in {train_val.name} too, on line {both[twice]}")
        names = list(both)
        self.images = {"train": names[:-DEV_IMAGES], "dev": names[-DEV_IMAGES:], "test": list(tested)}
        self._by_image: dict[str, list[Pair]] | None = None

    def pairs(self, split: str, advance: Advance | None = None) -> Iterator[Pair]:
        """The pairs of a split, which are handed out once. Raises DataError for lines that break SNLI's format."""
        if self._by_image is None:
            self._by_image = self._read(advance)
        for image in self.images[split]:
            yield from self._by_image.pop(image, ())

    def _read(self, advance: Advance | None) -> dict[str, list[Pair]]:
        wanted = {image: image for images in self.images.values() for image in images}
        found: dict[str, list[Pair]] = {image: [] for image in wanted}
        counts: Counter[str] = Counter()
        source_of: dict[str, Path] = {}
        unlisted = 0
        for path in self._snli:
            for pair in iter_pairs(path, counts=counts, labelled=True, advance=advance):
                first = source_of.setdefault(pair.id, path)
                if first is not path:
                    Place(path).fail(f"'pairID' {pair.id!r} stands in {first.name} too")
                if pair.image in found:
                    # one string per image, not one per pair
                    found[pair.image].append(Pair(pair.id, wanted[pair.image], pair.hypothesis, pair.label))
                else:
                    unlisted += 1
        self._notes.append(f"Made from SNLI 1.0. {_left_out(counts)}")
        if unlisted:
            self._notes.append(f"{unlisted:,} pairs of SNLI are about images that are in neither list; left out.")
        return found


def read_image_list(path: Path) -> dict[str, int]:
    """Image ids of a list, one on each line, as id -> line number. Raises DataError for other lines and repetitions."""
    found: dict[str, int] = {}
    with open_binary(path) as stream:
        for number, raw in enumerate(stream, 1):
            text = raw.decode("utf-8-sig", "replace").strip()
            if not text:
                continue
            image = text.removesuffix(".jpg")
            if not image.isdecimal() or not image.isascii():
                Place(path, number).fail(f"an image id is needed, found {text[:40]!r}")
            first = found.setdefault(image, number)
            if first != number:
                Place(path, number).fail(f"the image {image} was used before, on line {first}")
    if not found:
        Place(path).fail("the list is empty")
    return found


def photos(files: FoundFiles, images: Iterable[str]) -> tuple[Path, str]:
    """(folder or zip of the photos, extension of their names), found by the first images that examples are about.

    Raises NotFoundError where none of them is there.
    """
    tried: dict[str, None] = {}
    for image in images:
        if image in tried:
            continue
        for extension in EXTENSIONS:
            folder = files.folder_of(f"{image}{extension}")
            if folder is not None:
                return folder, extension
        tried[image] = None
        if len(tried) == 20:  # some may be missing, but not the first twenty of a folder that is the right one
            break
    packed = files.matching(r".*flickr.*\.(?:tar|tar\.gz|tgz)")
    where = files.images or files.root
    raise NotFoundError(
        f"The photos of Flickr30k are not below {where} (looked for {next(iter(tried), '?')}.jpg).",
        hint=f"unpack {packed[0].name} first" if packed else "say where they are, a folder or a zip: --images DIR",
    )


Check = Callable[[Iterable[Example], Mapping[str, int]], Iterator[Example]]


class Checks:
    """Passes examples on, and notices a pair that stands in two splits and counts that are not the published ones.

    Args:
        notes: receives what the user should know.
        published: split -> label -> number of pairs; or split -> {"": pairs in all}.
    """

    def __init__(self, notes: list[str], published: Mapping[str, Mapping[str, int]]) -> None:
        self._notes = notes
        self._published = published
        self._split_of: dict[str, str] = {}

    def of(self, split: str, name: str) -> Check:
        """The check of one split; `name` is what errors call its file."""

        def check(examples: Iterable[Example], counts: Mapping[str, int]) -> Iterator[Example]:
            found: Counter[str] = Counter()
            for example in examples:
                other = self._split_of.setdefault(example.id, split)
                if other != split:
                    raise DataError(
                        f"{name}: the pair {example.id!r} is in the {other} split too.",
                        hint="give the files of one version of the data, each split once",
                    )
                found[SNLI_VE_LABELS[example.label or 0]] += 1
                yield example
            if counts:
                self._notes.append(f"{name}: {_left_out(counts)}")
            self._compare(split, found)

        return check

    def _compare(self, split: str, found: Mapping[str, int]) -> None:
        published = self._published.get(split)
        if published is None or published == found or published == {"": sum(found.values())}:
            return
        labels = [label for label in published if label]
        detail = ", ".join(f"{label} {found.get(label, 0):,} for {published[label]:,}" for label in labels)
        self._notes.append(
            f"The {split} split has {sum(found.values()):,} pairs, published are {sum(published.values()):,}"
            + (f" ({detail})." if detail else ".")
        )


def _left_out(counts: Mapping[str, int]) -> str:
    return (
        f"Left out are {counts.get(NO_GOLD, 0):,} pairs without an agreed label and "
        f"{counts.get(VISUAL_GENOME, 0):,} about images of Visual Genome."
    )
