"""e-SNLI-VE: SNLI-VE with corrected labels, as a data set of its own and as two test suites of SNLI-VE.

Pairs were dropped besides being relabelled, so a score on e-SNLI-VE's test split differs from one on SNLI-VE's for two
reasons. The two suites have the same pairs, those that both files hold, and differ in nothing but the labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from madkit.core.errors import DataError, NotFoundError
from madkit.tasks.data import TaskData
from madkit.tasks.example import Example
from madkit.tasks.formats.e_snli_ve import iter_e_snli_ve, iter_pairs
from madkit.tasks.formats.snli_ve import Pair
from madkit.tasks.importing.found import FoundFiles
from madkit.tasks.importing.plan import Advance, ImportOptions, ImportPlan, SplitPlan
from madkit.tasks.importing.snli_ve import SPLITS, Check, Checks, photos

CORRECTED = "test-corrected-labels"
ORIGINAL = "test-original-labels"

# Pairs of e-ViL's files; nobody has published the number of its train pairs in a form that could be checked.
PUBLISHED: Mapping[str, Mapping[str, int]] = {
    "dev": {"contradiction": 5_643, "entailment": 5_254, "neutral": 3_442},
    "test": {"contradiction": 5_721, "entailment": 5_218, "neutral": 3_801},
}

_CSV = r"e[-_]?snli[-_]?ve[-_]{}\.csv"
_TSV = r"e[-_]?v?snli(?:[-_]?ve)?[-_]{}(?:[-_][12])?\.tsv"


def plan(files: FoundFiles, options: ImportOptions) -> ImportPlan:
    """Say how the files found make e-SNLI-VE, and the suites of SNLI-VE.

    With a test file alone there are the suites and no data set.

    Raises:
        NotFoundError: there are no files, or no photos for a data set of its own.
        UsageProblem: several files could be meant.
    """
    found = {split: _files(files, split) for split in SPLITS}
    test = found["test"]
    if not test:
        raise NotFoundError(
            f"There is no e-SNLI-VE below {files.root}: esnlive_test.csv (or esnli_ve_test.tsv) is missing.",
            hint="give the folder that holds esnlive_train.csv, esnlive_dev.csv and esnlive_test.csv",
        )
    made = ImportPlan("snli-ve", "e-snli-ve", "e-SNLI-VE (corrected labels)", [], files.root, attach_to="snli-ve")
    if all(found.values()):
        made.images_root, extension = photos(files, (pair.image for pair in iter_pairs(test[0])))
        published = PUBLISHED if test[0].suffix.lower() == ".csv" else {}
        checks = Checks(made.notes, published)
        for split, paths in found.items():
            names = " and ".join(path.name for path in paths)
            read = _reader(paths, made.images_root, extension, checks.of(split, names))
            made.splits.append(SplitPlan(split, names, read, paths))
    else:
        lacking = " and ".join(split for split, paths in found.items() if not paths)
        made.notes.append(f"There is no {lacking} file, so only the test suites of snli-ve are made.")
    corrected = _Corrected(test, made.notes)
    made.suites = [
        SplitPlan(CORRECTED, test[0].name, _unread, test, about=_ABOUT_CORRECTED, choose=corrected.relabelled),
        SplitPlan(ORIGINAL, test[0].name, _unread, test, about=_ABOUT_ORIGINAL, choose=corrected.original),
    ]
    return made


_ABOUT_CORRECTED = "SNLI-VE's test pairs that e-SNLI-VE kept, with e-SNLI-VE's corrected labels"
_ABOUT_ORIGINAL = "the pairs of test-corrected-labels with SNLI-VE's own labels, so that only the labels differ"


def _files(files: FoundFiles, split: str) -> tuple[Path, ...]:
    """The files of a split: the CSV, else the TSV, whose train split comes in two parts."""
    table = files.one(_CSV.format(split), f"e-SNLI-VE's {split} file")
    if table is not None:
        return (table,)
    parts = sorted(files.matching(_TSV.format(split)), key=lambda path: path.name)
    whole = [path for path in parts if not path.stem.endswith(("1", "2"))]
    if whole or not parts:
        return tuple(whole[:1])
    if len(parts) != 2:
        raise NotFoundError(
            f"{parts[0]} is one of two parts, the other one is not below {files.root}.",
            hint=f"put both parts of the {split} file into one folder",
        )
    return tuple(parts)


def _reader(
    paths: tuple[Path, ...], images: Path, extension: str, check: Check
) -> Callable[[Advance], Iterator[Example]]:
    def every(advance: Advance, counts: dict[str, int]) -> Iterator[Example]:
        seen: dict[str, Path] = {}
        for path in paths:
            for example in iter_e_snli_ve(path, images, extension=extension, counts=counts, advance=advance):
                if seen.setdefault(example.id, path) is not path:
                    raise DataError(
                        f"{path}: 'pairID' {example.id!r} stands in {seen[example.id].name} too.",
                        hint="give each part of the file once",
                    )
                yield example

    def read(advance: Advance) -> Iterator[Example]:
        counts: dict[str, int] = {}
        return check(every(advance, counts), counts)

    return read


def _unread(advance: Advance) -> Iterator[Example]:
    raise AssertionError("these suites are chosen from the data set that they are added to")


class _Corrected:
    """The pairs of SNLI-VE's test split that have a corrected label."""

    def __init__(self, paths: tuple[Path, ...], notes: list[str]) -> None:
        self._paths = paths
        self._notes = notes
        self._said = False

    def relabelled(self, data: TaskData) -> Iterator[Example]:
        """SNLI-VE's examples with e-SNLI-VE's labels."""
        for example, pair in self._both(data):
            yield replace(example, label=pair.label)

    def original(self, data: TaskData) -> Iterator[Example]:
        """The same examples as they are."""
        for example, _ in self._both(data):
            yield example

    def _both(self, data: TaskData) -> list[tuple[Example, Pair]]:
        corrected = {pair.id: pair for path in self._paths for pair in iter_pairs(path)}
        found = [(one, corrected[one.id]) for one in data.examples("test") if one.id in corrected]
        if not self._said:
            self._said = True
            self._notes.append(self._summary(len(data.examples("test")), len(corrected), found))
        return found

    def _summary(self, tested: int, corrected: int, found: list[tuple[Example, Pair]]) -> str:
        if not found:
            return (
                f"None of the {corrected:,} pairs of {self._paths[0].name} has the pairID of one of SNLI-VE's "
                f"{tested:,} test pairs (lists of ALBEF or LAVIS have no pairIDs), so no suite is made from them."
            )
        changed = sum(example.label != pair.label for example, pair in found)
        reworded = sum(" ".join(example.context[0].text.split()) != " ".join(pair.hypothesis.split())
                       for example, pair in found)  # fmt: skip
        rest = f"{tested - len(found):,} pairs of SNLI-VE and {corrected - len(found):,} of e-SNLI-VE"
        return (
            f"{len(found):,} test pairs are in both SNLI-VE and e-SNLI-VE, {changed:,} of them with another label"
            + (f" and {reworded:,} with another wording (SNLI-VE's is used)" if reworded else "")
            + f"; {rest} are in one file only."
        )
