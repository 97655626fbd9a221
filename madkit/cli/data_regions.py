"""``madkit data regions``: the region-feature files of a data set."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from madkit.cli.data_sets import TaskArgument, open_data
from madkit.cli.options import JsonOption, WorkspaceOption
from madkit.cli.output import emit, print_table

if TYPE_CHECKING:
    from madkit.tasks.region_files import Attached


class Width(StrEnum):
    """What features can be written in."""

    float16 = "float16"
    float32 = "float32"


app = typer.Typer(no_args_is_help=True, help="Region-feature files: add, check, convert, make.")

FormatOption = Annotated[
    str | None, typer.Option("--format", metavar="FORMAT", help="The files' layout.", show_default="found out")
]
AllowMissing = Annotated[bool, typer.Option("--allow-missing", help="Images without features are all right.")]
MinConfidence = Annotated[
    float | None,
    typer.Option("--min-confidence", metavar="C", help="Keep boxes that the detector is this sure of (UNITER: 0.2)."),
]
MinBoxes = Annotated[int | None, typer.Option("--min-boxes", metavar="N", help="At least so many (UNITER: 10).")]
MaxBoxes = Annotated[int | None, typer.Option("--max-boxes", metavar="N", help="At most so many (UNITER: 100).")]


@app.command("formats")
def formats(json_: JsonOption = False) -> None:
    """List the layouts that can be read, and say which of them can be written."""
    from madkit.regions import READERS, TARGETS

    rows = [
        {"format": name, "writes": name in TARGETS, "about": READERS.info(name).get("about", "")}
        for name in READERS.names()
    ]
    table = [[row["format"], "yes" if row["writes"] else "no", row["about"]] for row in rows]
    emit({"formats": rows}, json_, lambda: print_table(["format", "writes", "what it is"], table))


@app.command("add")
def add(
    task: TaskArgument,
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="PATH...", help="Files or folders; together they hold the images.")
    ] = None,
    format: FormatOption = None,
    ground_truth: Annotated[
        Path | None,
        typer.Option("--ground-truth", metavar="PATH", help="Features of the annotated boxes, put first (VCR)."),
    ] = None,
    suite: Annotated[
        str | None, typer.Option("--suite", metavar="SUITE", help="For an added suite that has images of its own.")
    ] = None,
    min_confidence: MinConfidence = None,
    min_boxes: MinBoxes = None,
    max_boxes: MaxBoxes = None,
    allow_missing: AllowMissing = False,
    workspace: WorkspaceOption = None,
    json_: JsonOption = False,
) -> None:
    """Say which files hold the region features of a data set; they stay where they are.

    Their owners' names for the images are matched with the data set's. What was said before is replaced.
    """
    from madkit.tasks.region_files import attach_regions

    data = open_data(workspace, task)
    options: dict[str, Any] = {"min_confidence": min_confidence, "min_boxes": min_boxes, "max_boxes": max_boxes}
    attached = attach_regions(
        data,
        paths or [],
        format=format,
        ground_truth=ground_truth,
        suite=suite,
        options={key: value for key, value in options.items() if value is not None},
        allow_missing=allow_missing,
    )
    _print_attached(data.name, attached, json_, theirs=True)


@app.command("make")
def make(
    task: TaskArgument,
    side: Annotated[int, typer.Option("--side", metavar="PIXELS", min=1, help="A region becomes SIDE x SIDE.")] = 16,
    grid: Annotated[int, typer.Option("--grid", metavar="N", min=1, help="Cells a side where there are no boxes.")] = 3,
    workers: Annotated[int, typer.Option("--workers", metavar="N", min=1, help="Threads that decode images.")] = 2,
    workspace: WorkspaceOption = None,
    json_: JsonOption = False,
) -> None:
    """Make pixel features, for data without a detector's: small pictures of the boxes, or of a grid.

    They know nothing of objects. They are what the embedded student mini-uniter reads, so that all of madkit can be
    tried on data of your own; for results, bring features of a detector.
    """
    from madkit.core.console import progress
    from madkit.tasks.region_files import make_pixels

    data = open_data(workspace, task)
    with progress(f"Making features of {data.name}", data.manifest.get("images"), "images") as bar:
        attached = make_pixels(data, side=side, grid=grid, workers=workers, advance=bar.advance)
    _print_attached(data.name, attached, json_)


@app.command("check")
def check(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A file or folder of region features.")],
    format: FormatOption = None,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=0, help="Images to read; 0 for all.")] = 0,
    min_confidence: MinConfidence = None,
    min_boxes: MinBoxes = None,
    max_boxes: MaxBoxes = None,
    json_: JsonOption = False,
) -> None:
    """Read region features and check their geometry: boxes inside the image, columns in order, no NaN (exit 3)."""
    from madkit.core.console import progress
    from madkit.core.errors import MadkitError, VerificationFailed
    from madkit.regions import detect_format, open_regions

    layout = format or detect_format(path)
    options: dict[str, Any] = {"min_confidence": min_confidence, "min_boxes": min_boxes, "max_boxes": max_boxes}
    reader = open_regions(layout, path, **{key: value for key, value in options.items() if value is not None})
    ids = list(reader.ids())
    chosen = ids[:limit] if limit else ids
    boxes, wrong = 0, 0
    first: list[str] = []
    with progress(f"Reading {path.name}", len(chosen), "images") as bar:
        for image in chosen:
            try:
                boxes += len(reader.get(image).boxes)
            except MadkitError as error:
                wrong += 1
                if len(first) < 5:
                    first.append(error.message)
            bar.advance()
    facts = {
        "path": str(path),
        "format": layout,
        "dim": reader.dim,
        "images": len(ids),
        "read": len(chosen),
        "boxes_per_image": round(boxes / max(1, len(chosen) - wrong), 2),
        "wrong": wrong,
        "first": first,
    }

    def human() -> None:
        print_table(["", path.name], [[key, value] for key, value in facts.items() if key != "first"])
        for problem in first:
            print(problem)

    emit(facts, json_, human)
    if wrong:
        raise VerificationFailed(
            f"{wrong:,} of {len(chosen):,} images of {path} have regions that cannot be right.",
            hint="extract them again, or look whether the layout is the right one (--format)",
        )


@app.command("convert")
def convert(
    source: Annotated[Path, typer.Argument(metavar="FROM", help="A file or folder of region features.")],
    target: Annotated[Path, typer.Argument(metavar="TO", help="What to write.")],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="The layout to write.")] = "butd-hdf5",
    format: FormatOption = None,
    dtype: Annotated[
        Width | None, typer.Option("--dtype", help="float16 or float32, where the layout leaves it open.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", metavar="TASK", help="Data set whose image files tell sizes that FROM does not say."),
    ] = None,
    min_confidence: MinConfidence = None,
    min_boxes: MinBoxes = None,
    max_boxes: MaxBoxes = None,
    workspace: WorkspaceOption = None,
    json_: JsonOption = False,
) -> None:
    """Write region features in another layout: one pass, little memory, checked on the way."""
    from madkit.core.console import progress
    from madkit.regions import convert_regions, detect_format, open_regions

    kinds: dict[Width, Literal["float16", "float32"]] = {Width.float16: "float16", Width.float32: "float32"}
    layout = format or detect_format(source)
    options: dict[str, Any] = {"min_confidence": min_confidence, "min_boxes": min_boxes, "max_boxes": max_boxes}
    reader = open_regions(layout, source, **{key: value for key, value in options.items() if value is not None})
    sizes = None
    if task is not None:
        from madkit.tasks.region_files import image_sizes

        sizes = image_sizes(open_data(workspace, task), reader)
    with progress(f"Converting {source.name}", len(reader.ids()), "images") as bar:
        count = convert_regions(
            reader, target, to, sizes=sizes, dtype=None if dtype is None else kinds[dtype], advance=bar.advance
        )
    facts = {"from": layout, "to": to, "images": count, "path": str(target)}
    emit(facts, json_, lambda: print(f"{count:,} images, {layout} to {to}\n{target}"))


def _print_attached(name: str, attached: Attached, json_: bool, *, theirs: bool = False) -> None:
    """`theirs`: whether somebody else has made the features, so that those not looked at may be wrong."""
    document = {
        "dataset": name,
        "parts": attached.parts,
        "dim": attached.dim,
        "images": attached.images,
        "covered": attached.covered,
        "without": attached.without,
        "read": attached.read,
    }

    def human() -> None:
        print(f"{attached.covered:,} of {attached.images:,} images of {name} have features of width {attached.dim}.")
        for part in attached.parts:
            print(f"{part['format']} {part['path']}{' (annotated boxes)' if 'role' in part else ''}")
        if theirs and attached.read < attached.covered:
            every = attached.parts[0]["path"]
            print(f"Looked at the features of {attached.read} images; of all: madkit data regions check {every}")

    emit(document, json_, human)
