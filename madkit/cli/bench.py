"""``madkit bench``: how fast madkit is on this machine, each figure against a peer."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from madkit.cli import bench_distill, bench_teachers
from madkit.cli.options import JsonOption
from madkit.cli.output import emit, print_table

EXAMPLES = """
madkit bench data
madkit bench data --questions 658111 --tsv-gb 5.3
madkit bench read --tokens 33
madkit bench extract --model ViT-L-14 --device cuda --json > extract.json
madkit bench text
madkit bench distill --student mini-uniter --shape snli-ve --device cpu
madkit bench step --student uniter-base
"""

app = typer.Typer(no_args_is_help=True, help="Measure madkit against what published code does.")


@app.callback()
def bench() -> None:
    """Measure madkit on this machine; every figure is a ratio to a peer in the same run."""


@app.command("data")
def data(
    questions: Annotated[
        int, typer.Option("--questions", metavar="N", min=0, help="Size of the made-up VQA v2 (real: 658111); 0: none.")
    ] = 60_000,
    tsv_gb: Annotated[
        float,
        typer.Option("--tsv-gb", metavar="GB", min=0, help="Size of the made-up LXMERT TSV (val2014: 16); 0: none."),
    ] = 0.25,
    repeats: Annotated[
        int, typer.Option("--repeats", metavar="N", min=1, help="Runs of each side, in turns; medians are shown.")
    ] = 3,
    keep: Annotated[
        Path | None,
        typer.Option("--keep", metavar="DIR", help="Leave the made-up files here, and find them again."),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Measure import and lazy reading, against code that loads the same files whole.

    Files of the real layouts are made up in a temporary folder, which is removed in any case. Both sides run in turns,
    each in a fresh Python.
    """
    from madkit.bench.data import DataBenchOptions, bench_data

    document = bench_data(DataBenchOptions(questions, tsv_gb, keep, repeats))
    emit(document, json_, lambda: _print_data(document))


@app.command("read")
def read(
    images: Annotated[
        int | None, typer.Option("--images", metavar="N", min=1, help="Images in the made-up store (default: 0.4 GB).")
    ] = None,
    tokens: Annotated[
        int, typer.Option("--tokens", metavar="N", min=1, help="Tokens of an image; 33 for a selection.")
    ] = 257,
    texts: Annotated[int, typer.Option("--texts", metavar="N", min=1, help="Texts of about 20 tokens.")] = 8192,
    batch: Annotated[int, typer.Option("--batch", metavar="N", min=1, help="Items read at a time.")] = 64,
    repeats: Annotated[
        int, typer.Option("--repeats", metavar="N", min=1, help="Turns of each side; medians are shown.")
    ] = 5,
    json_: JsonOption = False,
) -> None:
    """Measure shuffled batches out of a token cache, against np.take on a memory map and reads of zarr-python.

    The same random values lie in a store and in flat files of a temporary folder, which is removed in any case.
    """
    from madkit.bench.cache_read import ReadBenchOptions, bench_cache_read

    options = ReadBenchOptions(images=images, tokens=tokens, texts=texts, batch=batch, repeats=repeats)
    document = bench_cache_read(options)
    emit(document, json_, lambda: _print_read(document))


app.command("extract")(bench_teachers.extract)
app.command("text")(bench_teachers.text)
app.command("distill")(bench_distill.distill)
app.command("step")(bench_distill.step)


def _print_read(document: dict[str, Any]) -> None:
    print_table(
        ["", "", "madkit/s", "np.take/s", "zarr-python/s", "x np.take", "x zarr"],
        [
            [
                row["part"],
                row["state"],
                *(f"{value:,.0f}" for value in row["items_per_s"].values()),
                f"{row['of_np_take']:.2f}x",
                f"{row['of_zarr_python']:.1f}x",
            ]
            for row in document["rows"]
        ],
        right=range(2, 7),
    )
    for row in document["rows"]:
        low, high = row["of_np_take_range"]
        cpu = f", {row['of_np_take_cpu']:.2f}x by CPU time" if "of_np_take_cpu" in row else ""
        print(f"{row['part'].capitalize()}, {row['state']}: {low:.2f}x to {high:.2f}x of np.take over the turns{cpu}.")
        spent = f"{row['of_zarr_python_cpu']:.0f}x of zarr-python ({row['zarr_python_way']}) by CPU time"
        print(f"  np.take against itself: {row['noise']:.0%}; {spent}.")
        if "read_mb" in row:
            came = ", ".join(f"{name} {value:,.1f} MB" for name, value in row["read_mb"].items())
            print(f"  Read for a batch: {came}.")
            if row["of_disk"] is not None:
                enough = 20 * row["items_per_s"]["zarr-python"] / row["disk_per_s"]
                print(f"  The disk alone gives {row['disk_per_s']:,.0f}/s, and madkit {row['of_disk']:.2f}x of that;")
                print(f"  20 times zarr-python would be {enough:.2f}x of it.")
    for warning in document["warnings"]:
        print(f"Warning: {warning}")


def _print_data(document: dict[str, Any]) -> None:
    machine = document["machine"]
    print(
        f"madkit {machine['madkit']}, Python {machine['python']}, {machine['cores']} cores, "
        f"{machine['memory_gb']} GB of memory"
    )
    if "vqa" in document:
        vqa = document["vqa"]
        print(f"\nVQA v2, {vqa['questions']:,} questions ({vqa['bytes'] / 1e6:,.0f} MB): json.load of everything")
        _print_rows(vqa["rows"])
        reads = vqa["reads_per_s"]
        theirs = "" if reads["peer"] is None else f", {reads['peer']:,}/s of a list in memory"
        print(f"Opening alone takes {vqa['open_s'] * 1000:.1f} ms.")
        print(f"Random reads: {reads['madkit']:,}/s{theirs}.")
    if "tsv" in document:
        tsv = document["tsv"]
        print(f"\nRegion TSV, {tsv['images']:,} images ({tsv['bytes'] / 1e9:.2f} GB): csv.DictReader over everything")
        _print_rows(tsv["rows"])
        for name, what in (("cold", "not cached"), ("cached", "cached")):
            times = tsv["row_ms"][name]
            if times["p50"] is not None:
                print(f"A random row, {what}: p50 {times['p50']:.2f} ms, p99 {times['p99']:.2f} ms.")
        slower = tsv["row_times_slower_than_bare"]
        print(
            f"Bare reading and decoding of a cached row: {tsv['row_ms']['bare']['p50']:.2f} ms; madkit: {slower:.2f}x."
        )
        print(f"\nLayouts, the same {document['layouts'][1]['images']} images: a bare loop of NumPy or h5py")
        print_table(
            ["layout", "madkit reads/s", "bare reads/s", "of bare"],
            [
                [
                    row["layout"],
                    f"{row['reads_per_s']:,.0f}",
                    f"{row['plain_reads_per_s']:,.0f}",
                    _times(row["of_plain"]),
                ]
                for row in document["layouts"]
            ],
            right=(1, 2, 3),
        )
    print("\nx: how many times less time than the peer (below 1: more); s: by the clock.")
    for warning in document["warnings"]:
        print(textwrap.fill(f"Warning: {warning}", 80))


def _print_rows(rows: list[dict[str, Any]]) -> None:
    table = []
    for row in rows:
        ours, theirs = row["madkit"], row["peer"] or {}
        table.append(
            [
                row["name"],
                _times(row["times_faster"]),
                _times(row["times_less_cpu"]),
                _number(ours["wall_s"]),
                _number(theirs.get("wall_s")),
                _number(ours["peak_mb"]),
                _number(theirs.get("peak_mb")),
            ]
        )
    print_table(["", "x", "x of CPU", "s", "peer's s", "MB", "peer's MB"], table, right=range(1, 7))


def _times(ratio: float | None) -> str:
    if ratio is None:
        return "-"
    return f"{ratio:,.0f}x" if ratio >= 10 else f"{ratio:.2g}x"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
