"""``madkit extract``: teachers read images and texts once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from madkit.cli.options import CacheOption, JsonOption, WorkspaceOption
from madkit.cli.output import emit, print_table

if TYPE_CHECKING:
    from madkit.core.workspace import Workspace

EXAMPLES = """
madkit extract --teacher mini
madkit extract --teacher clip-vit-l14 --task vcr --weights ViT-L-14.safetensors
madkit extract --teacher open_clip:ViT-B-16/datacomp_xl_s13b_b90k --task vqa --dry-run
madkit extract --teacher clip-vit-b32 --task snli-ve --allow-missing
madkit extract --teacher clip-vit-l14 --task vqa --tokens selected:64 --store-dtype int8
madkit extract --teacher clip-vit-l14 --task vcr --cache s3://bucket/caches
madkit extract --adapter mini-mini-vcr-5pct-lora-s0-1a2b3c4d --task vcr
"""


def extract(
    teacher: Annotated[
        str | None,
        typer.Option(
            "--teacher", metavar="NAME", help="See: madkit teachers list.", show_default="the one that was adapted"
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            metavar="TASK",
            help="vcr, snli-ve, vqa or an imported data set; may be repeated.",
            show_default="all imported, else the embedded three",
        ),
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option("--adapter", metavar="RUN", help="Name or folder of what madkit adapt made of the teacher."),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", metavar="PATH", help="Weight file or folder, in place of the hub's."),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    workers: Annotated[
        int, typer.Option("--workers", metavar="N", min=0, help="Threads that decode images.", show_default="cores")
    ] = 0,
    shard_mb: Annotated[
        float | None,
        typer.Option("--shard-mb", metavar="MB", help="Size of a shard, what a kill can cost.", show_default="32"),
    ] = None,
    tokens: Annotated[
        str,
        typer.Option("--tokens", metavar="WHICH", help="all, selected:K image tokens, or global vectors only."),
    ] = "all",
    store_dtype: Annotated[
        str,
        typer.Option("--store-dtype", metavar="DTYPE", help="float16, or int8: half the size; its error is printed."),
    ] = "float16",
    decoder: Annotated[
        str,
        typer.Option("--decoder", metavar="WHO", help="Who reads images: auto, torchvision or pillow."),
    ] = "auto",
    compute_dtype: Annotated[
        str,
        typer.Option("--compute-dtype", metavar="DTYPE", help="auto, float32, mixed, float16 or bfloat16."),
    ] = "auto",
    view: Annotated[
        str,
        typer.Option("--view", metavar="VIEW", help="teacher: as it was trained; whole: images squeezed, nothing cut."),
    ] = "teacher",
    compile_: Annotated[
        str,
        typer.Option("--compile", metavar="WHEN", help="Compile the image encoder's blocks: auto, on or off."),
    ] = "auto",
    allow_missing: Annotated[
        bool,
        typer.Option(
            "--allow-missing",
            help="Complete the cache though images cannot be read or texts are empty; they are marked.",
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and end.")] = False,
    cache: CacheOption = None,
    workspace: WorkspaceOption = None,
    json_: JsonOption = False,
) -> None:
    """Read every image and text of tasks with a frozen teacher, into a token cache.

    Stopped or killed, the same command goes on from the last finished shard; a finished cache is left alone. Images
    that cannot be read and empty texts do not stop it: everything else is done, and it ends with exit code 1.
    """
    from madkit.core.launcher import launched
    from madkit.core.workspace import Workspace

    place = Workspace.at(workspace, cache=cache)
    if not launched():  # of several processes the first one speaks, later
        _check_names(place, teacher, task or ())
    how: dict[str, Any] = {
        "adapter": adapter,
        "weights": weights,
        "device": device,
        "workers": workers,
        "shard_mb": shard_mb,
        "tokens": tokens,
        "store_dtype": store_dtype,
        "decoder": decoder,
        "compute_dtype": compute_dtype,
        "view": view,
    }
    if dry_run:
        from madkit.extract.dry_run import dry_run as plan

        plans = [row.as_row() for row in plan(place, teacher, task or (), **how)]
        emit({"stores": plans}, json_, lambda: _print_plan(plans))
        return
    from madkit.extract.reports import SomeMissing
    from madkit.extract.stage import extract as run

    try:
        reports = run(place, teacher, task or (), allow_missing=allow_missing, compile=compile_, **how)
    except SomeMissing as error:  # what was completed is told before the failure
        rows = [report.as_row() for report in error.reports]
        emit({"stores": rows, "unfinished": error.unfinished}, json_, lambda: _print_reports(rows) if rows else None)
        raise
    rows = [report.as_row() for report in reports]
    emit({"stores": rows, "unfinished": []}, json_, lambda: _print_reports(rows))


def _check_names(workspace: Workspace, teacher: str | None, tasks: Sequence[str]) -> None:
    """Refuse names that do not exist at once: importing the teachers' libraries takes seconds."""
    from madkit.cache.remote_files import RemoteFolder
    from madkit.tasks.data import datasets_to_extract
    from madkit.teachers.known import parse_teacher_name

    if workspace.cache_url is not None:
        RemoteFolder(workspace.cache_url).refuse_unusable()
    datasets_to_extract(workspace, tasks)
    if teacher is not None:
        parse_teacher_name(teacher)


def _print_reports(rows: list[dict[str, Any]]) -> None:
    print_table(
        ["task", "images", "texts", "absent", "computed", "skipped", "MB", "cache"],
        [
            [
                *(row[key] for key in ("dataset", "images", "texts", "absent", "computed", "skipped")),
                _mb(row["bytes"]),
                row["path"],
            ]
            for row in rows
        ],
        right=range(1, 7),
        whole=7,
    )


def _print_plan(rows: list[dict[str, Any]]) -> None:
    from madkit.core.console import duration

    print_table(
        ["task", "", "in the data", "unique", "there", "to do"],
        [
            [row["dataset"] if part == "images" else "", part, f"{row['mentions'][index]:,}", *counts]
            for row in rows
            for index, part in enumerate(("images", "texts"))
            for counts in [[f"{value:,}" for value in row["counts"][part]]]
            if row[part]
        ],
        right=range(2, 6),
    )
    sizes = [(row["dataset"], size) for row in rows for size in row["sizes"]]
    kinds = list(dict.fromkeys((name, size["tokens"]) for name, size in sizes))
    mb = {(name, size["tokens"], size["dtype"]): _mb(size["bytes"]) for name, size in sizes}
    print_table(
        ["task", "--tokens", "MB float16", "MB int8"],
        [[*kind, *(mb.get((*kind, dtype), "") for dtype in ("float16", "int8"))] for kind in kinds],
        right=(2, 3),
    )
    for row in rows:
        print(f"\n{row['dataset']}: {row['path']}")
        absent = f"; {row['absent']:,} items have no values" if row["absent"] else ""
        print(f"  {_mb(row['needed_bytes'])} MB to write, {_mb(row['free_bytes'])} MB free{absent}")
        if not row["measured"]:
            print("  nothing to do")
            continue
        print(f"  about {duration(row['seconds'])} on {row['device']}, by a sample:")
        for part, one in row["measured"].items():
            batches = "1 batch" if one["batches"] == 1 else f"{one['batches']} batches"
            once = f", {one['fixed']:.2f} s of it for any number" if one["fixed"] >= 0.01 else ""
            print(f"    {one['items']:,} {part} in {batches}, {one['seconds']:.2f} s{once}")


def _mb(bytes_: int) -> str:
    return f"{bytes_ / 1e6:,.1f}"
