"""``madkit report``: an evaluation's table in another format."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from madkit.cli.options import JsonOption, WorkspaceOption
from madkit.cli.output import emit

EXAMPLES = """
madkit report full --format markdown
madkit report full --format latex --output table.tex
madkit report full --format parquet --output results.parquet
"""


class Format(StrEnum):
    """What a table can be written as."""

    table = "table"
    markdown = "markdown"
    latex = "latex"
    csv = "csv"
    parquet = "parquet"


def report(
    protocol: Annotated[str, typer.Argument(metavar="PROTOCOL", help="The protocol that was evaluated.")] = "full",
    format_: Annotated[Format, typer.Option("--format", help="How to write it.")] = Format.table,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write there instead of printing.")
    ] = None,
    workspace: WorkspaceOption = None,
    json_: JsonOption = False,
) -> None:
    """Print the table of an evaluation again, without evaluating anything."""
    from madkit.cli.evaluate import print_results
    from madkit.core.errors import NotFoundError, UsageProblem
    from madkit.core.files import read_json, write_bytes_atomic, write_text_atomic
    from madkit.core.workspace import Workspace
    from madkit.evaluate.report.latex import latex
    from madkit.evaluate.report.text import as_csv, markdown
    from madkit.evaluate.results import Results

    place = Workspace.at(workspace)
    path = place.reports / Path(protocol).stem / "results.json"
    if not path.is_file():
        raise NotFoundError(
            f"The protocol {protocol} has not been evaluated in {place.root}.",
            hint=f"madkit evaluate --protocol {protocol}",
        )
    results = Results.from_document(read_json(path), str(path))
    if output is not None and format_ is Format.table:
        raise UsageProblem(
            "A terminal table cannot be written to a file.", hint="--format markdown, latex, csv or parquet"
        )

    if output is None and format_ is Format.parquet and not json_:
        raise UsageProblem("A Parquet file cannot be printed.", hint="name a file: --output results.parquet")

    def human() -> None:
        if format_ is Format.table:
            print_results(results)
            return
        if output is not None and format_ is Format.parquet:
            from madkit.evaluate.report.parquet import as_parquet

            write_bytes_atomic(output, as_parquet(results))
            print(output)
            return
        text = {Format.markdown: markdown, Format.latex: latex, Format.csv: as_csv}[format_](results)
        if output is not None:
            write_text_atomic(output, text)
            print(output)
        else:
            print(text, end="")

    emit(results.document(), json_, human)
