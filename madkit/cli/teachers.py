"""``madkit teachers``: which frozen encoders there are."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from madkit.cli.options import JsonOption, WorkspaceOption
from madkit.cli.output import emit, print_table

EXAMPLES = """
madkit teachers list
madkit teachers show clip-vit-l14
madkit teachers show dinov2-vit-l14+roberta-base
madkit teachers list --open-clip
"""

app = typer.Typer(no_args_is_help=True, help="List and describe teachers.")


@app.command("list")
def list_(
    open_clip: Annotated[
        bool, typer.Option("--open-clip", help="List every open_clip:ARCH/TAG instead of the short names.")
    ] = False,
    workspace: WorkspaceOption = None,
    json_: JsonOption = False,
) -> None:
    """List the teachers that have a short name."""
    if open_clip:
        from madkit.teachers.describe import open_clip_names

        names = open_clip_names()
        emit({"teachers": names}, json_, lambda: print_table(["teacher"], [[name] for name in names]))
        return
    from madkit.teachers.describe import known_rows

    rows = known_rows()

    def human() -> None:
        print_table(
            ["teacher", "dim", "image", "tokens", "text", "M params", "GFLOP", "KB/image", "licence", "what it is"],
            [
                [
                    row["name"],
                    *(
                        _short(row[key])
                        for key in ("dim", "image_size", "image_tokens", "context_length", "parameters_m")
                    ),
                    " + ".join(_short(row[key]) for key in ("gflops_image", "gflops_text") if row[key]) or "-",
                    "-" if row["bytes_per_image"] is None else f"{row['bytes_per_image'] / 1000:.1f}",
                    row["licence"],
                    row["note"],
                ]
                for row in rows
            ],
            right=range(1, 8),
        )

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
    emit(facts, json_, lambda: print_table(["", name], [[key, _short(value)] for key, value in facts.items()]))


def _short(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
