"""Results on stdout: one JSON document, or text for people. Messages and progress are core/console.py's, on stderr."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from madkit.core.launcher import rank


def emit(document: Mapping[str, Any], json_: bool, human: Callable[[], None]) -> None:
    """Print a command's result: ``document`` as JSON where ``json_``, else whatever ``human`` prints.

    Of several processes of one job only rank 0 prints. NaN is refused (ValueError): JSON has none, use None.
    """
    if rank() != 0:
        return
    if json_:
        # ASCII only, so that no locale of a pipe can break it
        print(json.dumps(document, indent=2, allow_nan=False, default=_plain))
    else:
        human()


def _plain(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


def print_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    right: Collection[int] = (),
    whole: int | None = None,
) -> None:
    """Print aligned columns on stdout: fitted to a terminal, at their full width into a file or pipe.

    Args:
        headers: column titles.
        rows: cells, written with ``str``.
        right: indices of the columns to align right (numbers).
        whole: index of the column that is copied out of the table (names, paths). Where a terminal is too narrow it
            stands on a line of its own, and the rest of its row below, as a list of values.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if whole is not None and sys.stdout.isatty() and _width(headers, rows) > Console().width:
        _print_list(headers, rows, whole, Console().width)
        return
    tight = sys.stdout.isatty() and _width(headers, rows) > Console().width  # columns move together before cells fold
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0) if tight else (0, 1))
    for index, header in enumerate(headers):
        table.add_column(header, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    if sys.stdout.isatty():
        Console().print(table)
        return
    console = Console(width=100_000)
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        print(line.rstrip())


def _width(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> int:
    """Characters of a table's lines: the widest cell of each column, three between two columns."""
    columns = zip(headers, *rows, strict=True)
    return sum(max(len(str(cell)) for cell in column) for column in columns) + 3 * (len(headers) - 1)


def _print_list(headers: Sequence[str], rows: Sequence[Sequence[object]], whole: int, width: int) -> None:
    for row in rows:
        print(row[whole])  # never cut: a terminal breaks the line where it ends, and copies it as one
        cells = enumerate(zip(headers, row, strict=True))
        rest = ", ".join(f"{name} {cell}".strip() for index, (name, cell) in cells if index != whole and str(cell))
        print(textwrap.fill(rest, width, initial_indent="  ", subsequent_indent="  "))
