"""Import of GD-VCR: VCR-style questions about film scenes of four regions of the world, for testing only.

Its rationales repeat its answers, so there are answer questions alone. Beside the 886 questions of `val.jsonl` its
owners publish 86 of a simpler kind (`val_addition_single.jsonl`), which their numbers leave out: a suite
apart.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from madkit.core.errors import NotFoundError
from madkit.tasks.formats.source_lines import iter_json_lines
from madkit.tasks.importing.found import FoundFiles
from madkit.tasks.importing.plan import ImportOptions, ImportPlan, SplitPlan
from madkit.tasks.importing.vcr import images_root, is_gd_vcr, reader

_ADDITION = "val_addition_single.jsonl"
_DOWNLOAD = "download val.jsonl and MC-VCR_sample.zip from github.com/WadeYin9712/GD-VCR and give their folder"


def plan(files: FoundFiles, options: ImportOptions) -> ImportPlan:
    """The plan for GD-VCR below a folder, or for one file of its format.

    The data set has the split "test" and the suites "test-gd-vcr-<region>" and "test-gd-vcr-addition"; VCR, where it
    is imported, gets them too, with all questions as "test-gd-vcr".

    Raises:
        NotFoundError: none of its annotation files is there, or no folder or zip holds the images.
        DataError: a line that cannot be read.
    """
    main, addition = _files(files)
    images = images_root(files, [path for path in (main, addition) if path is not None], "MC-VCR_sample.zip")
    suites: list[SplitPlan] = []
    notes: list[str] = []
    if main is not None:
        suites.append(SplitPlan("test-gd-vcr", main.name, reader(main, images, options, notes), (main,)))
        for region in _regions(main):
            read = reader(main, images, options, notes, region=region)
            suites.append(SplitPlan(f"test-gd-vcr-{region}", main.name, read, (main,), about=f"region {region}"))
    if addition is not None:
        read = reader(addition, images, options, notes)
        suites.append(SplitPlan("test-gd-vcr-addition", addition.name, read, (addition,)))
    # What is "test-gd-vcr" beside VCR's own test split is the test split of the data set itself.
    splits = [replace(suites[0], name="test"), *suites[1:]]
    return ImportPlan(
        task="vcr",
        source="gd-vcr",
        title="Geo-Diverse Visual Commonsense Reasoning",
        splits=splits,
        suites=suites,
        images_root=images,
        attach_to="vcr",
        notes=notes,
    )


def _files(files: FoundFiles) -> tuple[Path | None, Path | None]:
    """The main and the additional annotation file; a single file that the user names is the main one."""
    if files.root.is_file() and files.root.suffix == ".jsonl":
        return files.root, None
    candidates = files.matching(r"(gd_?vcr_?)?val\.jsonl")
    mine = [path for path in candidates if is_gd_vcr(path)]
    main = files.one(r"(gd_?vcr_?)?val\.jsonl", "GD-VCR's annotations") if len(mine) > 1 else next(iter(mine), None)
    addition = files.one(r".*addition.*\.jsonl", "GD-VCR's additional questions")
    if main is None and addition is None:
        raise NotFoundError(f"There is no val.jsonl of GD-VCR below {files.root}.", hint=_DOWNLOAD)
    return main, addition


def _regions(path: Path) -> list[str]:
    return sorted({str(row["region"]) for _, row in iter_json_lines(path) if row.get("region")})
