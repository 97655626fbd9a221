"""The command reference: what stands in it is what the commands say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
from typer.core import TyperCommand, TyperGroup

from madkit.cli import reference
from madkit.cli.app import load_command
from madkit.cli.commands import COMMANDS
from madkit.cli.main import INTERRUPTED
from madkit.core import errors

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"


def test_the_committed_page_is_what_the_commands_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference.reference(), f"write it again: {reference.HOW}"


def test_every_command_and_option_is_on_it() -> None:
    page = reference.reference()

    def walk(path: str, command: TyperCommand | TyperGroup, wanted: dict[str, list[str]]) -> dict[str, list[str]]:
        if isinstance(command, TyperGroup):
            for name, sub in command.commands.items():
                walk(f"{path} {name}", sub, wanted)
        else:
            names = [name for one in command.params for name in one.opts if name.startswith("-")]
            wanted[path] = [name for name in names if name != "--help"]
        return wanted

    wanted: dict[str, list[str]] = {}
    for name in COMMANDS:
        walk(f"madkit {name}", load_command(name), wanted)
    assert len(wanted) > 30
    for path, names in wanted.items():
        section = re.split(r"(?m)^#+ ", page.partition(f" {path}\n")[2])[0]
        missing = [name for name in names if f"`{name}`" not in section]
        assert not missing, (path, missing)


def test_a_command_is_written_with_all_it_has() -> None:
    def probe(
        name: str = typer.Argument(help="A | B."),
        count: int = typer.Option(3, "--count", "-c", metavar="N", help="How\nmany.", envvar="COUNT"),
        flag: bool = typer.Option(True, "--flag/--no-flag", help="Whether."),
        needed: str = typer.Option(..., "--needed", help="Yes."),
    ) -> None:
        """Probe it.

        With **care**.
        """

    app = typer.Typer(add_completion=False)
    app.command("probe", epilog="Examples:\n\n`madkit probe x`  \n`madkit probe y`")(probe)
    text = "\n".join(reference._command("madkit probe", typer.main.get_command(app), 2))
    for words in (
        "## madkit probe\nProbe it.\n\nWith **care**.\n```text\nmadkit probe [OPTIONS] ",
        "| `--count`, `-c` N | How many. (`COUNT`) | `3` |",
        "| `--flag`, `--no-flag` | Whether. | yes |",
        "| `--needed` TEXT | Yes. **Needed.** |  |",
        "| A \\| B. |",
        "```\nmadkit probe x\nmadkit probe y\n```",
    ):
        assert words in text, text


def test_the_exit_codes_are_those_of_the_failures() -> None:
    told = {int(code) for code in re.findall(r"(?m)^\| (\d+) \|", reference.INTRODUCTION)}
    classes = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.MadkitError)]
    assert told == {0, INTERRUPTED, *(one.exit_code for one in classes)}


def test_it_is_printed_or_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reference.main([]) == 0
    assert reference.main([str(tmp_path / "x.md")]) == 0
    assert capsys.readouterr().out == (tmp_path / "x.md").read_text() == reference.reference()


def test_every_command_calls_what_it_writes_alike() -> None:
    rows = [line for line in reference.reference().splitlines() if re.match(r"\|.*`(--output|--out|-o)`", line)]
    assert len(rows) >= 6
    assert all(row.startswith("| `--output`, `--out`, `-o` ") for row in rows), rows
