"""``madkit bench extract`` and ``madkit bench text``: their options and their tables."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from madkit.cli.options import JsonOption
from madkit.cli.output import emit, print_table

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="ARCH",
        help="Architecture of open_clip, such as ViT-L-14, with random weights. Default: by the device.",
    ),
]
WeightsOption = Annotated[
    Path | None,
    typer.Option("--weights", metavar="PATH", help="Weights of that architecture, in place of random ones."),
]
DeviceOption = Annotated[str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N.")]
RepeatsOption = Annotated[
    int, typer.Option("--repeats", metavar="N", min=1, help="Rounds, of two turns for each side; medians are shown.")
]
TinyOption = Annotated[
    bool, typer.Option("--tiny", help="A made-up tiny model, to see that everything runs; no figure means anything.")
]


def extract(
    model: ModelOption = None,
    weights: WeightsOption = None,
    images: Annotated[
        int | None,
        typer.Option("--images", metavar="N", min=1, help="JPEG files. Default: 4096 on a GPU, 64 on a CPU."),
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", metavar="N", min=1, help="Images per forward pass. Default: 256 or 32.")
    ] = None,
    device: DeviceOption = "auto",
    repeats: RepeatsOption = 3,
    tiny: TinyOption = False,
    memory: Annotated[
        bool, typer.Option("--memory", help="Only this: does memory grow with the number of images? (CPU)")
    ] = False,
    memory_images: Annotated[
        str, typer.Option("--memory-images", metavar="N,M", help="The numbers of images that --memory compares.")
    ] = "2000,20000",
    json_: JsonOption = False,
) -> None:
    """Measure images to tokens, against plain loops with open_clip and transformers on the same weights.

    Compute only: from pixels that lie on the device. End to end: from 500 x 375 JPEG files to the token cache. All
    sides take turns in one process and must give the same tokens.
    """
    from madkit.core.errors import UsageProblem

    if memory:
        from madkit.bench.extract_memory import bench_memory

        try:
            sizes = [int(size) for size in memory_images.split(",")]
        except ValueError:
            raise UsageProblem(
                f"'{memory_images}' is not a list of numbers.", hint="--memory-images 2000,20000"
            ) from None
        document = bench_memory(sizes)
        emit(document, json_, lambda: _print_memory(document))
        return
    from madkit.bench.extract import ExtractBenchOptions, bench_extract

    document = bench_extract(ExtractBenchOptions(model or "", weights, images or 0, batch or 0, device, repeats, tiny))
    emit(document, json_, lambda: _print_extract(document))


def text(
    model: ModelOption = None,
    weights: WeightsOption = None,
    texts: Annotated[
        int | None,
        typer.Option("--texts", metavar="N", min=1, help="Made-up texts. Default: 50000 on a GPU, 512 on a CPU."),
    ] = None,
    device: DeviceOption = "auto",
    repeats: RepeatsOption = 3,
    tiny: TinyOption = False,
    json_: JsonOption = False,
) -> None:
    """Measure texts to tokens, against open_clip's encode_text and a loop of transformers on the same weights.

    Made-up texts of 20 tokens on average, read by a CLIP text tower and by a RoBERTa base. All sides take turns in one
    process and must give the same tokens.
    """
    from madkit.bench.text import TextBenchOptions, bench_text

    document = bench_text(TextBenchOptions(model or "", weights, texts or 0, device, repeats, tiny))
    emit(document, json_, lambda: _print_text(document))


def _print_extract(document: Mapping[str, Any]) -> None:
    _print_head(document)
    ceilings, gflop = document["ceilings"], document["gflop_image"]
    products = ", ".join(f"{value:,.3g} in {name}" for name, value in ceilings["tflops"].items())
    _say(
        f"Matrix products of {ceilings['edge']:,}: {products} TFLOP/s; copies: {ceilings['copy_gb_s']:,.3g} GB/s. "
        f"An image takes {gflop:,.4g} GFLOP, so {ceilings['limit_tflops'] * 1000 / gflop:,.4g} images/s are the limit."
    )
    cuda = document["device"]["device"].startswith("cuda")
    print(f"\nCompute only, batches of {document['options']['batch']}")
    _print_sides(document["compute"], "img/s", limit=True, memory=cuda)
    end = document["end_to_end"]
    width, height = end["pixels"]
    print(f"\nEnd to end, {document['options']['images']:,} JPEG files of {width} x {height} to files of tokens")
    _print_sides(end, "img/s", memory=cuda)
    print()
    _say(
        "x: how many times as fast as this row the row with * is. "
        f"{_unit(cuda)} IQR: quartiles of the turns apart, in % of the median. Errors: compute only, against float64; "
        "end to end, against the first row."
    )
    _say(f"End to end, madkit reaches {end['of_compute']:.2f}x of its speed in compute only.")
    for dtype, ratio in end["same_dtype"].items():
        _say(f"End to end, both in {dtype}: {ratio:.2f}x the speed of the faster open_clip loop.")
    _say(_noise(document["compute"], end))
    _print_warnings(document)


def _print_text(document: Mapping[str, Any]) -> None:
    _print_head(document)
    options = document["options"]
    cuda = document["device"]["device"].startswith("cuda")
    texts = f"{options['texts']:,} texts of {document['mean_tokens']:.1f} tokens on average"
    print(f"\nCLIP's text tower, {texts}")
    _print_sides(document["clip"], "texts/s", memory=cuda)
    print("\nA RoBERTa, the same texts")
    _print_sides(document["roberta"], "texts/s", memory=cuda)
    print()
    _say(
        "x: how many times as fast as this row the row with * is. "
        f"{_unit(cuda)} IQR: quartiles of the turns apart, in % of the median. Errors: of the CLIP tower against "
        "float64, else against the first row. encode_text gives no tokens, madkit does."
    )
    _say(_noise(document["clip"], document["roberta"]))
    _print_warnings(document)


def _print_head(document: Mapping[str, Any]) -> None:
    machine, device = document["machine"], document["device"]
    what = device["name"] if device["device"].startswith("cuda") else f"{machine['cores']} cores ({device['name']})"
    _say(
        f"{document['model']} ({document['weights']} weights), {what}, {document['date']}; madkit {machine['madkit']}, "
        f"torch {device['torch']}, open_clip {device['open_clip']}, transformers {device['transformers']}"
    )


def _print_sides(part: Mapping[str, Any], unit: str, *, limit: bool = False, memory: bool = False) -> None:
    table = []
    for row in part["rows"]:
        low, high = row["quartiles"]
        cells = [
            row["side"] + (" *" if row["default"] else ""),
            _number(row["per_second"]),
            f"{100 * (high - low) / row['per_second']:.0f}",
            f"{row['madkit_is']:.2f}x" if row["madkit_is"] < 10 else f"{row['madkit_is']:,.0f}x",
        ]
        if limit:
            cells.append(f"{row['of_limit']:.0%}")
        more = "-" if row["memory_mb"] is None else f"{row['memory_mb']:,.0f}"
        cells += [more if memory else _number(row["cpu_ms"]), f"{row['error']:.0e}", f"{row['worst_cosine']:.5f}"]
        table.append(cells)
    headers = ["", unit, "IQR", "x", *(["limit"] if limit else []), "MB" if memory else "CPU ms", "error", "cosine"]
    print_table(headers, table, right=range(1, len(headers)))


def _print_memory(document: Mapping[str, Any]) -> None:
    print("Extracting with a small encoder, each size in a fresh process")
    print_table(
        ["images", "MB at most", "before", "stored MB", "shards", "s"],
        [
            [
                f"{row['images']:,}",
                f"{row['peak_mb']:,.0f}",
                f"{row['start_mb']:,.0f}",
                f"{row['stored_mb']:,.0f}",
                row["shards"],
                f"{row['seconds']:,.0f}",
            ]
            for row in document["rows"]
        ],
        right=range(6),
    )
    verdict = "below" if document["within"] else "NOT below"
    _say(
        f"{document['ratio']:.3f}x, {verdict} {document['most']:.2f}x; {document['kb_per_image']:.2f} KB more for each "
        "further image. Before: with the modules and the encoder in memory."
    )


def _unit(cuda: bool) -> str:
    if cuda:
        return "MB: memory of the GPU that a turn took beyond weights and inputs."
    return "CPU ms: of all threads, per item."


def _noise(*parts: Mapping[str, Any]) -> str:
    said = " and ".join(f"{part['noise']['side']} {part['noise']['ratio']:.2f}x" for part in parts)
    return f"The same side measured twice, apart: {said}."


def _print_warnings(document: Mapping[str, Sequence[str]]) -> None:
    for warning in document["warnings"]:
        _say(f"Warning: {warning}")


def _say(line: str) -> None:
    print(textwrap.fill(line, 80))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
