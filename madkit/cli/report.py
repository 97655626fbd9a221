"""``madkit report``: an evaluation's results in another format."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from madkit.cli.options import OUTPUT, JsonOption, WorkspaceOption
from madkit.cli.output import emit

if TYPE_CHECKING:
    from madkit.core.workspace import Workspace
    from madkit.evaluate.report import GalleryItem
    from madkit.evaluate.results import Results

EXAMPLES = """
madkit report full --format markdown
madkit report full --format latex --output table.tex
madkit report full --format parquet --output results.parquet
madkit report full --format html --output page.html
madkit report --schema --output results.schema.json
"""


class Format(StrEnum):
    """What a table can be written as."""

    table = "table"
    markdown = "markdown"
    latex = "latex"
    csv = "csv"
    parquet = "parquet"
    json = "json"
    html = "html"


def report(
    protocol: Annotated[str, typer.Argument(metavar="PROTOCOL", help="The protocol that was evaluated.")] = "full",
    format_: Annotated[
        Format | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="table, markdown, latex, csv, parquet, json or html.",
            show_default="table, or by the name of --output",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(*OUTPUT, metavar="FILE", help="Write there instead of printing.")
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="The JSON Schema of the results document instead of results.")
    ] = False,
    workspace: WorkspaceOption = None,
    json_: JsonOption = False,
) -> None:
    """Write the results of an evaluation again, without evaluating anything.

    The page (`html`) is drawn anew, with scenes where the runs and their data are at hand.
    """
    from madkit.core.errors import UsageProblem
    from madkit.core.workspace import Workspace

    wanted = format_ or _by_name(output)
    if output is not None and output.is_dir():
        raise UsageProblem(f"{output} is a folder.", hint="name a file: --output FILE")
    if schema:
        from madkit.evaluate.report.schema import results_schema

        if format_ not in (None, Format.json):
            raise UsageProblem("The schema is JSON.", hint="leave --format out")
        _put(results_schema(), _json(results_schema()), output, json_)
        return
    if output is not None and wanted is Format.table:
        raise UsageProblem(
            "A terminal table cannot be written to a file."
            if format_ is not None or not output.suffix
            else f"No report is written as {output.suffix}.",
            hint=f"--format {', '.join(one for one in Format if one is not Format.table)}, or a file name that says it",
        )
    if output is None and wanted is Format.parquet and not json_:
        raise UsageProblem("A Parquet file cannot be printed.", hint="name a file: --output results.parquet")
    place = Workspace.at(workspace)
    results = _results(place, protocol)
    if wanted is Format.table and not json_:
        from madkit.cli.evaluate import print_results

        print_results(results)
        return
    content = "" if json_ and output is None else _content(place, results, wanted)
    _put(results.document(), content, output, json_)


def scenes(workspace: Workspace, results: Results) -> list[GalleryItem]:
    """The page's gallery, with the tokens that adaptive selection keeps where a cache tells them."""
    from madkit.evaluate.differing import gallery_scenes
    from madkit.look.selected import Selector

    with Selector(workspace) as choose:
        return gallery_scenes(workspace, results, choose)


def _by_name(output: Path | None) -> Format:
    """The format that a file's name says."""
    endings = {"md": Format.markdown, "tex": Format.latex, "htm": Format.html}
    ending = "" if output is None else output.suffix.removeprefix(".").lower()
    return endings.get(ending) or (Format(ending) if ending in list(Format) else Format.table)


def _results(place: Workspace, protocol: str) -> Results:
    from madkit.core.errors import DataError, NotFoundError
    from madkit.core.files import read_json
    from madkit.core.registry import suggest
    from madkit.evaluate.results import Results

    path = place.reports / protocol / "results.json"  # a name may hold dots; of a file it is what stands before .yaml
    if not path.is_file():
        path = place.reports / Path(protocol).stem / "results.json"
    if not path.is_file():
        there = sorted(found.parent.name for found in place.reports.glob("*/results.json"))
        near = suggest(Path(protocol).stem, there)
        known = f" It holds results of {', '.join(there)}." if there and not near else ""
        raise NotFoundError(
            f"The protocol {protocol} has not been evaluated in {place.root}.{near}{known}",
            hint=_maker(protocol, there),
        )
    try:
        document = read_json(path)
    except DataError as error:  # half-written, or written over
        raise DataError(error.message, hint=f"make it again: {_maker(protocol, ())}") from None
    return Results.from_document(document, str(path))


def _maker(protocol: str, there: Sequence[str]) -> str:
    """The command that makes a protocol's results, or prints those that are there where no protocol has that name."""
    from difflib import get_close_matches

    from madkit.evaluate.protocol import names

    if protocol == "demo":
        return "madkit demo"
    if protocol in names() or Path(protocol).is_file() or not there:
        return f"madkit evaluate --protocol {protocol}"
    return f"madkit report {next(iter(get_close_matches(protocol, there, 1)), there[0])}"


def _content(place: Workspace, results: Results, wanted: Format) -> str | bytes:
    if wanted is Format.html:
        from madkit.evaluate.report import render_page

        return render_page(results, gallery=scenes(place, results))
    if wanted is Format.parquet:
        from madkit.evaluate.report.parquet import as_parquet

        return as_parquet(results)
    if wanted is Format.json:
        return _json(results.document())
    from madkit.evaluate.report.latex import latex
    from madkit.evaluate.report.text import as_csv, markdown

    return {Format.markdown: markdown, Format.latex: latex, Format.csv: as_csv}[wanted](results)


def _json(document: dict[str, Any]) -> str:
    import json

    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _put(document: dict[str, Any], content: str | bytes, output: Path | None, json_: bool) -> None:
    """Write the file, where one is named; print its name, or the content, or with --json the document."""
    from madkit.core.files import write_bytes_atomic

    if output is not None:
        write_bytes_atomic(output, content.encode() if isinstance(content, str) else content)
    emit(document, json_, lambda: print(output) if output is not None else print(content, end=""))
