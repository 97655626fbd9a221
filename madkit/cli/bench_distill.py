"""``madkit bench distill`` and ``madkit bench step``: their options and their tables."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

import typer

from madkit.cli.options import JsonOption
from madkit.cli.output import emit, print_table

DeviceOption = Annotated[str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N.")]
RepeatsOption = Annotated[
    int, typer.Option("--repeats", metavar="N", min=1, help="Rounds, of two turns for each side; medians are shown.")
]
TinyOption = Annotated[
    bool, typer.Option("--tiny", help="Everything small, to see that it runs; no figure means anything.")
]
_SHAPES = "vcr, snli-ve or vqa: how many texts, tokens and regions."


class Measured(StrEnum):
    """Students that a step is measured with."""

    uniter_base = "uniter-base"
    uniter_large = "uniter-large"
    mini_uniter = "mini-uniter"


class Shape(StrEnum):
    """Tasks whose sizes a step can have."""

    vcr = "vcr"
    snli_ve = "snli-ve"
    vqa = "vqa"


def distill(
    student: Annotated[
        Measured, typer.Option("--student", metavar="NAME", help="uniter-base, uniter-large or mini-uniter.")
    ] = Measured.uniter_base,
    shape: Annotated[Shape, typer.Option("--shape", metavar="TASK", help=_SHAPES)] = Shape.vcr,
    tokens: Annotated[
        int | None,
        typer.Option("--tokens", metavar="N", min=1, help="Tokens and regions of a step. Default: 32768 on a GPU."),
    ] = None,
    kept: Annotated[
        int, typer.Option("--kept", metavar="N", min=1, help="Tokens of an image in the cache, beside the global one.")
    ] = 32,
    teacher: Annotated[
        str | None,
        typer.Option(
            "--teacher", metavar="ARCH", help="The online teacher. Default: ViT-L-14 on a GPU, none on a CPU."
        ),
    ] = None,
    device: DeviceOption = "auto",
    repeats: RepeatsOption = 5,
    tiny: TinyOption = False,
    json_: JsonOption = False,
) -> None:
    """Measure what a step of distillation costs beyond fine-tuning, in turns with it and with an online teacher.

    Made-up data, weights and cache; the steps are those of a run. Fine-tuning is measured twice, for the noise.
    """
    from madkit.bench.distill import DistillBenchOptions, bench_distill

    options = DistillBenchOptions(student.value, shape.value, tokens or 0, kept, teacher or "", repeats, device, tiny)
    document = bench_distill(options)
    emit(document, json_, lambda: _print_distill(document))


def step(
    student: Annotated[
        str, typer.Option("--student", metavar="NAME", help="A student with BERT's layers.")
    ] = "uniter-base",
    shape: Annotated[Shape, typer.Option("--shape", metavar="TASK", help=_SHAPES)] = Shape.vcr,
    sequences: Annotated[
        int | None,
        typer.Option("--sequences", metavar="N", min=1, help="Of a step. Default: 256 on a GPU, 4 on a CPU."),
    ] = None,
    device: DeviceOption = "auto",
    repeats: RepeatsOption = 5,
    tiny: TinyOption = False,
    json_: JsonOption = False,
) -> None:
    """Measure a student's training step against transformers' BertModel on as many tokens, with the same head."""
    from madkit.bench.distill_data import MINI_SHAPES, SHAPES
    from madkit.bench.student_step import compare_student_step
    from madkit.extract.options import resolve_device

    where, _ = resolve_device(device)
    mini = tiny or student.startswith("mini")
    size = (MINI_SHAPES if mini else SHAPES)[shape.value]
    count = sequences or (256 if where.startswith("cuda") else 4)
    document = compare_student_step(
        "mini-uniter" if tiny else student,
        sequences=max(1, count // size.candidates) * size.candidates,
        candidates=size.candidates,
        text=size.text,
        regions=size.regions,
        rounds=repeats,
        device=where,
        **({"layers": 1} if tiny else {}),
    )
    emit(document, json_, lambda: _print_step(document))


def _print_distill(document: Mapping[str, Any]) -> None:
    machine, device, batch, shape = (document[name] for name in ("machine", "device", "batch", "shape"))
    cuda = device["device"].startswith("cuda")
    what = device["name"] if cuda else f"{device['threads']} thread{'s' * (device['threads'] > 1)} ({device['name']})"
    _say(f"{what}, {document['date']}; madkit {machine['madkit']}, torch {device['torch']}")
    texts = f"{shape['candidates']} x " if shape["candidates"] > 1 else ""
    _say(
        f"{document['student']}, {shape['task']}: {batch['examples']:,} examples of {texts}({shape['text']} + "
        f"{shape['regions']}) tokens and regions a step, {batch['tokens']:,} in all; "
        f"the cache keeps {document['kept']} tokens of an image."
    )
    print()
    print_table(
        ["", "ms/step", "IQR", "overhead", "95 %", "cached is", *(["MB"] if cuda else [])],
        [_cells(row, cuda) for row in document["rows"]],
        right=range(1, 7 if cuda else 6),
    )
    low, high = document["noise"]["interval"]
    print()
    _say(
        f"Overhead: beyond fine-tuning, median of paired turns less 1. ms: {'clock' if cuda else 'processor time'}. "
        f"Noise: fine-tuning against itself {document['noise']['overhead']:+.1%} ({low:+.1%} to {high:+.1%}). "
        "Cached is: how many times as fast mad against the cache is."
    )
    reader = document["reader"]
    _say(
        f"A batch of mad takes one thread {1000 * reader['batch_s']:,.4g} ms, of fine-tuning "
        f"{1000 * reader['finetune_batch_s']:,.4g} ms: {reader['examples_per_s']:,.0f} examples/s of mad, "
        f"{reader['headroom']:,.1f}x what its steps ask for."
    )
    if cuda:
        late = ", ".join(f"{row['side']} {row['waited']:.0%}" for row in document["rows"] if row["waited"])
        _say(f"Steps before which the GPU waited for their batch: {late or 'none'}.")
    for warning in document["warnings"]:
        _say(f"Warning: {warning}")


def _cells(row: Mapping[str, Any], cuda: bool) -> list[str]:
    low, high = row["quartiles"]
    share = "-" if "overhead" not in row else f"{row['overhead']:+.1%}"
    interval = "-" if "overhead" not in row else f"{row['interval'][0]:+.1%} to {row['interval'][1]:+.1%}"
    cached = f"{row['cached_is_faster']:.2f}x" if "cached_is_faster" in row else "-"
    cells = [
        row["side"],
        f"{1000 * row['seconds']:,.4g}",
        f"{100 * (high - low) / row['seconds']:.0f}",
        share,
        interval,
    ]
    return [*cells, cached, *([f"{row['memory_mb']:,}"] if cuda else [])]


def _print_step(document: Mapping[str, Any]) -> None:
    shape = document["shape"]
    low, high = document["ratio_quartiles"]
    _say(
        f"{document['student']}, {document['device']}: {shape['sequences']} sequences of {shape['text']} + "
        f"{shape['regions']}, {document['tokens']:,} tokens a step, forward, backward and optimiser, in "
        f"{document['dtype']}."
    )
    print_table(
        ["", "ms/step"],
        [
            [document["student"], f"{1000 * document['student_s']:,.4g}"],
            ["transformers BertModel", f"{1000 * document['bert_s']:,.4g}"],
        ],
        right=[1],
    )
    _say(
        f"{document['ratio']:.3f}x the time of BertModel (quartiles {low:.3f} to {high:.3f}); BertModel against itself "
        f"{document['noise']:.3f}x. On a CPU: processor time."
    )


def _say(line: str) -> None:
    print(textwrap.fill(line, 80))
