"""``madkit config``: the configurations that madkit ships, to read, to copy out and to check."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from madkit.cli.options import JsonOption
from madkit.cli.output import emit, print_table

EXAMPLES = """
madkit config list
madkit config show mad
madkit config show mad-affinity --resolved
madkit config init mad mine.yaml
madkit config check mine.yaml
"""

app = typer.Typer(no_args_is_help=True, help="Read, copy out and check configurations: arms, recipes, protocols.")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="See: madkit config list.")]


@app.command("list")
def list_(
    kind: Annotated[
        str | None,
        typer.Option("--kind", metavar="KIND", help="arm, recipe or protocol.", show_default="all three"),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """List the shipped configurations: arms (what is learnt from whom), recipes (how long, how fast), protocols."""
    from madkit.cli.shipped import only

    found = list(only(kind))
    emit(
        {"configurations": [one.as_row() for one in found]},
        json_,
        lambda: print_table(["kind", "name", "about"], [[one.kind, one.name, one.about] for one in found]),
    )


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A shipped configuration, or a YAML file.")],
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Every key, with what it means and its default, not the file alone.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Print a configuration with its comments. What is printed can be edited and given back by its path."""
    from madkit.cli.shipped import find, load
    from madkit.core.documented import documented, keys_of

    one = find(name)
    document = {**one.as_row(), "text": one.text}
    if resolved:
        config = load(one)
        document |= {"text": documented(config), "keys": [key.as_row() for key in keys_of(config)]}
    emit(document, json_, lambda: print(str(document["text"]), end=""))


@app.command()
def init(
    name: NameArgument,
    path: Annotated[
        Path | None, typer.Argument(metavar="[PATH]", help="A .yaml file, or a folder.", show_default="my-NAME.yaml")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    json_: JsonOption = False,
) -> None:
    """Copy a configuration out, to be edited. The copy has a name of its own in run folders and tables."""
    from madkit.cli.shipped import copy_out, how_to_use

    one, written = copy_out(name, path, force=force)
    command = how_to_use(one, written)

    def human() -> None:
        print(written)
        print(f"Edit it, then: {command}")

    emit({"path": str(written), "kind": one.kind, "from": one.name, "command": command}, json_, human)


@app.command()
def check(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A YAML file, or a shipped name.")],
    json_: JsonOption = False,
) -> None:
    """Say whether a configuration can be used; else list every wrong key at once, with the nearest right ones."""
    from madkit.cli.shipped import find, load
    from madkit.core.documented import keys_of

    one = find(file)
    config = load(one)
    set_ = [key for key in keys_of(config) if not key.section and not key.absent and key.value != key.default]
    kept = {key.name: key.value for key in set_}

    def human() -> None:
        differs = "1 key differs from its default" if len(kept) == 1 else f"{len(kept)} keys differ from their defaults"
        print(f"{one.path} is a valid {one.kind}; {differs}.")

    emit({"path": str(one.path), "kind": one.kind, "valid": True, "differs": kept}, json_, human)
