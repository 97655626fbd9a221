"""The table in a terminal of 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from madkit.evaluate.report.text import EXPLANATION, difference, facts, interval, mini_note, score, tables
from madkit.evaluate.results import Difference, Results

if TYPE_CHECKING:
    from rich.console import RenderableType


def next_step(results: Results) -> str | None:
    """The command that fills the first cell without a run, None where the grid is full."""
    for cell in results.missing:
        if cell.get("arm") is None:
            return f"madkit distill --task {cell['task']} --shots 1pct"
        return (
            f"madkit distill --task {cell['task']} --shots {cell['shots']} --arm {cell['arm']} "
            f"--student {cell['student']} --seed {cell['seed']}"
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
            title=Text(f"{title}: {metric}, %", style="bold"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
        )
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
        parts += [table, Text()]
    note = mini_note(results)
    baseline = str(results.settings.get("baseline", "baseline"))
    closing = [note] if note else []
    closing += [*facts(results), EXPLANATION.format(baseline=baseline)]
    parts += [Text(line, style="dim") for line in closing]
    return Group(*parts)


def _short_difference(value: Difference | None) -> str:
    if value is not None and value.low is None:
        return f"{value.mean:+.1f} (n=1)"
    return difference(value)
