"""``madkit teachers``: which frozen encoders there are."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from madkit.cli.options import JsonOption, WorkspaceOption
from madkit.cli.output import emit, print_table

EXAMPLES = """
madkit teachers list
madkit teachers list siglip --open-clip
madkit teachers show clip-vit-l14
madkit teachers show dinov2-vit-l14+roberta-base
madkit teachers check mini
madkit teachers check clip-vit-l14 --weights ViT-L-14.safetensors --images photos
"""


class Arithmetic(StrEnum):
    """What a teacher may compute in, other than float32."""

    float16 = "float16"
    bfloat16 = "bfloat16"
    mixed = "mixed"


app = typer.Typer(no_args_is_help=True, help="List, describe and check teachers.")


@app.command("list")
def list_(
    containing: Annotated[
        str | None, typer.Argument(metavar="[PART]", help="Only names that contain this.", show_default=False)
    ] = None,
    open_clip: Annotated[
        bool, typer.Option("--open-clip", help="List every open_clip:ARCH/TAG instead of the short names.")
    ] = False,
    timm: Annotated[
        bool, typer.Option("--timm", help="List every timm:NAME that has weights instead of the short names.")
    ] = False,
    workspace: WorkspaceOption = None,
    json_: JsonOption = False,
) -> None:
    """List the teachers that have a short name, or the names of a library."""
    from madkit.teachers.describe import known_rows, library_names, matching

    if open_clip or timm:
        names = matching(library_names(open_clip=open_clip, timm=timm), containing)
        emit({"teachers": names}, json_, lambda: print("\n".join(names)))
        return
    rows = known_rows()
    kept = set(matching([row["name"] for row in rows], containing))
    rows = [row for row in rows if row["name"] in kept]

    def human() -> None:
        print_table(
            ["teacher", "dim", "tokens", "M par", "GFLOP", "KB", "licence"],
            [
                [
                    row["name"],
                    _short(row["dim"]),
                    _both(row, "image_tokens", "context_length"),
                    _short(row["parameters_m"]),
                    _both(row, "gflops_image", "gflops_text"),
                    _kilobytes(row),
                    row["licence"],
                ]
                for row in rows
            ],
            right=range(1, 6),
        )
        print("\ntokens, GFLOP: per image + per text of full length; KB: float16 tokens of an")
        print("image, or of a text of full length where there are no images.")

    emit({"teachers": rows}, json_, human)


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A short name, SCHEME:NAME, or VISION+TEXT.")],
    workspace: WorkspaceOption = None,
    json_: JsonOption = False,
) -> None:
    """Describe one teacher. No weights are loaded."""
    from madkit.teachers.describe import describe_teacher

    facts: dict[str, Any] = describe_teacher(name)
    rows: list[list[str]] = []
    for key, value in facts.items():
        if isinstance(value, dict):
            rows += [[f"{key}: {part}", _short(inner)] for part, inner in value.items()]
        else:
            rows.append([key, _short(value)])
    emit(facts, json_, lambda: print_table(["", name], rows))


@app.command("check")
def check(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A short name, SCHEME:NAME, or VISION+TEXT.")],
    weights: Annotated[
        Path | None, typer.Option("--weights", metavar="PATH", help="Weight file or folder, in place of the hub's.")
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option("--images", metavar="PATH", help="Image file or folder; again for more. Drawn when left out."),
    ] = None,
    texts: Annotated[
        Path | None, typer.Option("--texts", metavar="FILE", help="A text per line, in place of the built-in ones.")
    ] = None,
    dtype: Annotated[
        list[Arithmetic] | None,
        typer.Option("--dtype", help="Compare only this one; again for more.", show_default="float16, bfloat16"),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="NAME", help="Compare with the same weights in another library instead."),
    ] = None,
    against_weights: Annotated[
        Path | None, typer.Option("--against-weights", metavar="PATH", help="Weights of that other teacher.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N.")] = "cpu",
    workspace: WorkspaceOption = None,
    json_: JsonOption = False,
) -> None:
    """Measure how far tokens in 16 bits are from those in 32, one by one. Exit 3 when a value is not finite."""
    from madkit.core.errors import UsageProblem, VerificationFailed
    from madkit.extract.options import resolve_device
    from madkit.teachers.check import SAMPLE_TEXTS, check_teacher, read_texts

    if against_weights is not None and against is None:
        raise UsageProblem("--against-weights is of no use without --against.", hint="name the other: --against NAME")
    if against is not None and dtype:
        raise UsageProblem("--against compares in float32, so that --dtype has no effect.", hint="leave one out")
    device, _ = resolve_device(device)
    found = check_teacher(
        name,
        weights=weights,
        images=images or (),
        texts=SAMPLE_TEXTS if texts is None else read_texts(texts),
        dtypes=[str(one) for one in dtype or ("float16", "bfloat16")],
        device=device,
        against=against,
        against_weights=against_weights,
    )

    def human() -> None:
        columns = ["", "vectors of", "number", "error", "p99", "worst", "worst cosine"]
        rows = []
        previous = None
        for row in found["rows"]:
            errors = [f"{row[key]:.1e}" for key in ("mean", "p99", "worst")]
            first = "" if row["run"] == previous else row["run"]
            cosine = f"{row['cosine_worst']:.6f}" if row["finite"] else "not finite"
            rows.append([first, row["kind"], f"{row['vectors']:,}", *errors, cosine])
            previous = row["run"]
        print_table(columns, rows, right=range(2, 7))
        drawn = " (drawn)" if found["drawn"] else ""
        print(f"\nagainst {name} in float32; {found['images']:,} images{drawn}, {found['texts']:,} texts")

    emit(found, json_, human)
    if not found["finite"]:
        bad = ", ".join(sorted({f"{row['run']} {row['kind']}" for row in found["rows"] if not row["finite"]}))
        wide = [row for row in found["rows"] if row["run"] != "float16"]
        hint = "extract with --compute-dtype bfloat16"
        if any(not row["finite"] for row in wide):  # which has the range of float32
            hint = "its weights are damaged: get them anew"
        raise VerificationFailed(f"'{name}' gives values that are not finite ({bad}).", hint=hint)


def _short(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(_short(round(one, 4) if isinstance(one, float) else one) for one in value)
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _both(row: dict[str, Any], *keys: str) -> str:
    return "+".join(_short(row[key]) for key in keys if row[key]) or "-"


def _kilobytes(row: dict[str, Any]) -> str:
    size = row["bytes_per_image"]
    if size is None and row["bytes_per_text_token"]:
        size = row["bytes_per_text_token"] * row["context_length"]
    return "-" if size is None else f"{size / 1000:,.1f}"
