"""Options that every command shares, defined once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from madkit.cli.elsewhere import remember
from madkit.core.workspace import CACHE_VARIABLE, DEFAULT, VARIABLE

OUTPUT = ("--output", "--out", "-o")  # how every command calls the file or folder that it writes

WorkspaceOption = Annotated[
    Path | None,
    typer.Option(
        "--workspace",
        metavar="DIR",
        envvar=VARIABLE,
        callback=remember,
        show_default=f"./{DEFAULT}",
        help="The folder that holds everything madkit makes.",
    ),
]

CacheOption = Annotated[
    str | None,
    typer.Option(
        "--cache",
        metavar="URL",
        envvar=CACHE_VARIABLE,
        callback=remember,
        show_default="cache in the workspace",
        help="Where token caches lie: a folder, or a URL such as s3://bucket/caches.",
    ),
]

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON document; messages stay on stderr.")
]
