"""Results on stdout: one JSON document, or text for people. Messages and progress are core/console.py's, on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any


def emit(document: Mapping[str, Any], json_: bool, human: Callable[[], None]) -> None:
    """Print a command's result: ``document`` as JSON where ``json_``, else whatever ``human`` prints.

    Of several processes of one job only rank 0 prints. NaN is refused (ValueError): JSON has none, use None.
    """
    if os.environ.get("RANK", "0") != "0":
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


def print_table(headers: Sequence[str], rows: Sequence[Sequence[object]], *, right: Collection[int] = ()) -> None:
    """Print aligned columns on stdout: fitted to a terminal, at their full width into a file or pipe.

    Args:
        headers: column titles.
        rows: cells, written with ``str``.
        right: indices of the columns to align right (numbers).
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
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
