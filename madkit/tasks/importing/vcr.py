"""Import of VCR: `vcr1annots.zip` and `vcr1images.zip`, unpacked or not.

The owners' validation split is the one that results are reported on ("test"); a development split is cut from train.
Their test split has no labels: it becomes "submission", with a rationale question for each of the four answers, as the
leaderboard's file needs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from madkit.core.archives import exists
from madkit.core.errors import NotFoundError, UsageProblem
from madkit.tasks.example import Example
from madkit.tasks.formats.source_lines import iter_json_lines
from madkit.tasks.formats.vcr import examples_of_row, iter_vcr
from madkit.tasks.formats.vcr_metadata import MetadataFiles
from madkit.tasks.importing.found import FoundFiles
from madkit.tasks.importing.plan import Advance, ImportOptions, ImportPlan, Read, SplitPlan

_OFFICIAL = {"train": "train", "val": "test", "test": "submission"}
_PUBLISHED = {"train": 212_923, "val": 26_534, "test": 25_263}
# How many lines are looked at for one whose image can be found: with missing images it need not be the first.
_LOOKED_AT = 200

_DOWNLOAD = (
    "agree to the terms at visualcommonsense.com, download vcr1annots.zip and vcr1images.zip, and give their folder"
)


def plan(files: FoundFiles, options: ImportOptions) -> ImportPlan:
    """The plan for VCR below a folder.

    Raises:
        NotFoundError: neither train.jsonl nor val.jsonl is there, or no folder or zip holds the images.
        UsageProblem: val.jsonl is GD-VCR's file of that name.
    """
    found = {official: path for official in _OFFICIAL if (path := _annotations(files, official)) is not None}
    if not found.keys() & {"train", "val"}:
        raise NotFoundError(
            f"There are no annotations of VCR below {files.root}: neither train.jsonl nor val.jsonl.", hint=_DOWNLOAD
        )
    images = images_root(files, found.values(), "vcr1images.zip")
    missing = [official for official in _OFFICIAL if official not in found]
    notes = [f"{official}.jsonl is not there, so there is no split '{_OFFICIAL[official]}'." for official in missing]
    notes += [note for official, path in found.items() if (note := _of_another_split(path, official)) is not None]
    splits = [
        SplitPlan(
            name=_OFFICIAL[official],
            official=official,
            read=_read_split(official, path, images, options, notes),
            files=(path,),
            labelled=official != "test",
        )
        for official, path in found.items()
    ]
    return ImportPlan(
        task="vcr",
        source="vcr",
        title="Visual Commonsense Reasoning",
        splits=splits,
        images_root=images,
        cut_dev="train" in found,
        cut_group=film_of,
        notes=notes,
    )


def _of_another_split(annotations: Path, official: str) -> str | None:
    """What to say of a file whose first question belongs to another split by its id, as where files were exchanged."""
    for _, row in islice(iter_json_lines(annotations), 1):
        theirs = str(row.get("annot_id", "")).partition("-")[0]
        if theirs in _OFFICIAL and theirs != official:
            return (
                f"{annotations.name} begins with a question of {theirs} ({row['annot_id']}), so the files may be "
                f"exchanged: '{_OFFICIAL[official]}' is not what others call it."
            )
    return None


def _read_split(official: str, path: Path, images: Path, options: ImportOptions, notes: list[str]) -> Read:
    """As `reader`, and `notes` receives another number of questions than the published one."""
    read_all = reader(path, images, options, notes, conditioned=official == "test", labelled=official != "test")

    def read(advance: Advance) -> Iterator[Example]:
        count, last = 0, ""
        for example in read_all(advance):
            count += example.question_id != last
            last = example.question_id
            yield example
        if count != _PUBLISHED[official]:
            notes.append(f"{path.name} has {count:,} questions; VCR's {official} has {_PUBLISHED[official]:,}.")

    return read


def film_of(example: Example) -> str:
    """The folder of the example's image: one film, or one clip. The owners' splits share no film either."""
    return example.image.id.rpartition("/")[0]


def reader(
    annotations: Path,
    images: Path,
    options: ImportOptions,
    notes: list[str],
    *,
    conditioned: bool = False,
    labelled: bool = True,
    region: str | None = None,
) -> Read:
    """What reads one split; `region` keeps the examples of one region of GD-VCR.

    Missing images are left to whoever runs the plan. Missing metadata of an image that is there are an error, or, with
    `allow_missing`, an image without boxes. `notes` receives how many questions are about images without boxes.
    """

    def read(advance: Advance) -> Iterator[Example]:
        examples = iter_vcr(
            annotations,
            images,
            require_metadata=not options.allow_missing,
            allow_missing_images=True,
            conditioned=conditioned,
            labelled=labelled,
            advance=advance,
        )
        return _counted(examples if region is None else (one for one in examples if one.form == region))

    def _counted(examples: Iterable[Example]) -> Iterator[Example]:
        without: dict[str, None] = {}
        for example in examples:
            if not example.width and (options.without_images or exists(example.image.path)):
                without[example.question_id] = None
            yield example
        if without and region is None:
            notes.append(
                f"{annotations.name}: {len(without):,} questions are about images without metadata, so they have no "
                "boxes, and their texts name classes without saying which box."
            )

    return read


def is_gd_vcr(annotations: Path) -> bool:
    """Whether a file of VCR's format is GD-VCR's: its lines name a region of the world."""
    return any("region" in row and "video_name" in row for _, row in islice(iter_json_lines(annotations), 1))


def images_root(files: FoundFiles, annotations: Iterable[Path], archive: str) -> Path:
    """The folder or zip that `metadata_fn` and `img_fn` of the annotation files' lines are relative to.

    Raises NotFoundError, naming a file that was looked for and the `archive` that holds it, when nothing below the
    folder has it, and DataError for a line that breaks the format: a wrong file is named before images are asked for.
    """
    names: dict[str, None] = {}
    no_images = MetadataFiles(files.root, required=False)
    for path in annotations:
        for place, row in islice(iter_json_lines(path), _LOOKED_AT):
            examples_of_row(row, place, no_images)
            names[row["metadata_fn"]] = names[row["img_fn"]] = None
    for name in names:
        folder = files.folder_of(name)
        if folder is not None and exists(folder / name):
            return folder
    if files.without_images:  # metadata that are there had been found: theirs are the boxes
        return files.images or files.root
    shown = next(iter(names), "metadata_fn")
    raise NotFoundError(
        f"Nothing below {files.images or files.root} holds the file {shown}, which the annotations name.",
        hint=f"give the folder of the unpacked {archive}, or the zip: --images PATH",
    )


def _annotations(files: FoundFiles, official: str) -> Path | None:
    """The annotation file of a split. GD-VCR's README has the owner rename VCR's val.jsonl to orig_val.jsonl."""
    path = files.one(rf"{official}\.jsonl", f"VCR's {official} split")
    if path is None or official != "val" or not is_gd_vcr(path):
        return path
    original = files.one(r"orig_val\.jsonl", "VCR's val split")
    if original is None:
        raise UsageProblem(
            f"{path} is GD-VCR's file, not VCR's validation split.",
            hint=f"madkit data import gd-vcr {files.root}; for VCR put its own val.jsonl there as orig_val.jsonl",
        )
    return original
