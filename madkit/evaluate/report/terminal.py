"""The table in a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from madkit.evaluate.grid import LONG
from madkit.evaluate.published import notes
from madkit.evaluate.report.text import (
    EXPLANATION,
    calibration_key,
    difference,
    facts,
    interval,
    mini_note,
    quoted,
    score,
    tables,
    with_sign,
)
from madkit.evaluate.results import Difference, Results, Row, Source

if TYPE_CHECKING:
    from rich.console import RenderableType


def next_step(results: Results) -> str | None:
    """The command that fills the first cell without a run, None where the grid is full."""
    for cell in results.missing:
        if cell.get("arm") is None:
            return f"madkit distill --task {cell['task']} --shots 1pct"
        return (
            f"madkit distill --task {cell['task']} --shots {cell['shots']} --arm {cell['arm']} "
            + ("" if cell["student"] is None else f"--student {cell['student']} ")
            + f"--seed {cell['seed']}"
            + ("" if cell.get("steps") is None or cell["arm"] == LONG else f" --steps {cell['steps']}")
        )
    return None


def terminal(results: Results) -> RenderableType:
    """Tables for 80 columns: the headline metric on every suite, every metric on the in-domain suite."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = []
    for source, title, rows in tables(results):
        rows = [row for row in rows if row.headline or (row.suite == source.suites[0] and "(" not in row.metric)]
        metric = next((row.metric for row in rows if row.headline), "")
        table = Table(
            box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0),
        )  # fmt: skip
        table.add_column("suite, arm", overflow="fold")
        table.add_column("score", justify="right", no_wrap=True)
        table.add_column("95 %", no_wrap=True)
        table.add_column("n", justify="right", no_wrap=True)
        table.add_column(f"against {results.settings.get('baseline', 'baseline')}", no_wrap=True)
        previous = None
        for row in rows:
            key = (row.suite, row.metric)
            if previous is not None and key != previous:
                table.add_section()
            if key != previous:
                suite = row.suite if row.metric == metric else f"{row.suite}, {row.metric}"
                table.add_row(Text(suite, style="underline"))
            mark = "bold" if row.difference is not None and row.difference.significant else ""
            table.add_row(
                Text(f"  {row.label}"),
                Text(score(row), style=mark),
                Text("" if row.low is None else interval(row.low, row.high), style="dim"),
                Text(str(row.n_seeds)),
                Text(_short_difference(row.difference), style=mark),
            )
            previous = key
        # a table's own title breaks at the table's edge, be it as narrow as it likes
        parts += [Text(f"{title}: {metric}, %", style="bold"), table, Text()]
        beyond = _beyond(results, rows, source)
        if beyond is not None:
            parts += [beyond, Text()]
    parts += _published(results)
    note = mini_note(results)
    baseline = str(results.settings.get("baseline", "baseline"))
    closing = [note] if note else []
    closing += [*notes(results), *facts(results), EXPLANATION.format(baseline=baseline)]
    parts += [Text(line, style="dim") for line in closing]
    return Group(*parts)


def _beyond(results: Results, rows: Sequence[Row], source: Source) -> RenderableType | None:
    """Calibration and agreement in-domain, one line per arm; None where neither is known."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    here = [row for row in rows if row.suite == source.suites[0]]
    told = {calibration_key(one): one for one in results.calibrations}
    lines = [(row, one) for row in here if (one := told.get(calibration_key(row))) is not None]
    if not lines:
        return None
    baseline = str(results.settings.get("baseline", "baseline"))
    table = Table(
        title=Text(f"Calibration, {source.suites[0]}", style="bold"),
        title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False,
    )  # fmt: skip
    table.add_column("arm", overflow="fold")
    for name in ("metric", "ECE", "Brier", "sure", "right", f"as {baseline}"):
        table.add_column(name, justify="right", no_wrap=True)
    for row, one in lines:
        table.add_row(
            Text(row.label),
            Text(row.metric),
            Text(f"{one.ece:.1f}"),
            Text(f"{one.brier:.3f}"),
            Text(f"{one.confidence:.1f}"),
            Text(f"{one.score:.1f}"),
            Text(_same(results, row)),
        )
    return table


def _same(results: Results, row: Row) -> str:
    """How often an arm answers as its baseline does, where that is known for the row's metric."""
    if row.difference is None:
        return ""
    pair = {row.label, row.difference.baseline}
    key = (row.source, row.revision, row.student, row.shots, row.suite, row.metric)
    for one in results.agreements:
        here = (one.source, one.revision, one.student, one.shots, one.suite, one.metric)
        if here == key and {one.first, one.second} == pair:
            return f"{one.mean:.1f}"
    return ""


def _published(results: Results) -> list[RenderableType]:
    """The quoted results, one table per data set."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = []
    for data in dict.fromkeys(one.data for one in results.published):
        rows = [one for one in results.published if one.data == data]
        metrics = [name for name in dict.fromkeys(name for one in rows for name in one.metrics) if "(" not in name]
        table = Table(
            box=box.SIMPLE_HEAD, pad_edge=False,
        )  # fmt: skip
        table.add_column("model", overflow="fold")
        table.add_column("split", no_wrap=True)
        for name in metrics:
            table.add_column(Text(name), justify="right", no_wrap=True)
        table.add_column("source", overflow="fold")
        for one in rows:
            cells = [quoted(one.metrics[name]) if name in one.metrics else "" for name in metrics]
            table.add_row(Text(one.model), Text(one.split), *map(Text, cells), Text(one.source))
        title = f"Published results of {data}, quoted (not measured here), %"
        parts += [Text(title, style="bold"), table, Text()]
    return parts


def _short_difference(value: Difference | None) -> str:
    if value is not None and value.low is None:
        return f"{with_sign(value.mean)} (n=1)"
    return difference(value)
