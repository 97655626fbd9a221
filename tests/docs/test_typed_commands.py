"""Every command that the documentation types is one that its program takes, with names that exist."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import shlex
from pathlib import Path

import pytest
from typer.core import TyperGroup

from madkit.cli.app import load_command
from madkit.cli.commands import COMMANDS

from .names import check_names
from .typed import PAGES, ROOT, blocks, fenced_calls, inline_calls

TYPED = {path: set(fenced_calls(text)) | set(inline_calls(text)) for path, text in ((p, p.read_text()) for p in PAGES)}
DOCUMENTED = [pytest.param(call, id=f"{path.name}: {call}") for path, calls in TYPED.items() for call in sorted(calls)]


def test_the_reader_finds_what_is_typed() -> None:
    block = "pip install -e . && madkit demo\nmadkit cache \\\n  list   # comment"
    text = f"See `madkit env`, `x`.\n```\n{block}\n```\n`madkit COMMAND`"
    assert inline_calls(text) == ["madkit env"]
    assert fenced_calls(text) == ["madkit demo", "madkit cache    list"]
    assert fenced_calls("```text\n$ madkit env\nmadkit fp32   1.76   1.00x\n```") == ["madkit env"]
    assert fenced_calls("```python\nmadkit env\n```\n```bash\npython a.py > x\n```") == ["python a.py"]
    (first, second) = blocks("<!-- not run: no GPU -->\n\n```\nmadkit env\n```\n\n```\nmadkit demo\n```\n")
    assert (first.why, second.why) == ("no GPU", "")
    assert len(DOCUMENTED) > 250


def parsed(call: str) -> None:
    """Parse one call with the parser of its program. Raises what that raises; nothing runs."""
    program, *arguments = shlex.split(call)
    if program == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        assert arguments.pop(0) == "launch"
        asked = launch_command_parser().parse_args(arguments)
        _started(asked.module, asked.training_script, asked.training_script_args)
    elif program == "torchrun":
        from torch.distributed.run import get_args_parser

        asked = get_args_parser().parse_args(arguments)
        _started(asked.module, asked.training_script, asked.training_script_args)
    elif program == "python":
        is_module = arguments[0] == "-m"
        _started(is_module, *(arguments[1:2] if is_module else arguments[:1]), arguments[2 if is_module else 1 :])
    else:
        _parsed_madkit(arguments)


def _started(is_module: bool, script: str, arguments: list[str]) -> None:
    if is_module and script == "madkit":
        _parsed_madkit(arguments)
    elif is_module:
        assert importlib.util.find_spec(script) is not None, f"there is no module {script}"
    else:
        _parsed_script(ROOT / script, arguments)


def _parsed_script(path: Path, arguments: list[str]) -> None:
    """Against the options in its source, so that nobody waits for what it imports."""
    if not path.is_relative_to(ROOT / "examples") and not path.is_file():
        return  # of the reader's
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            given = {
                one.arg: one.value for one in node.keywords if one.arg in ("action", "nargs", "choices", "required")
            }
            known = {str(name): ast.literal_eval(value) for name, value in given.items() if _is_literal(value)}
            parser.add_argument(*[ast.literal_eval(value) for value in node.args], **known)
    parser.parse_args(arguments)


def _is_literal(node: ast.expr) -> bool:
    return all(isinstance(one, (ast.Constant, ast.List, ast.Tuple, ast.expr_context)) for one in ast.walk(node))


def _parsed_madkit(arguments: list[str]) -> None:
    name, *arguments = arguments
    if name.startswith("--"):
        assert name in ("--help", "--version", "--install-completion", "--show-completion")
        return
    assert name in COMMANDS, f"there is no command {name}"
    command, context, full = load_command(name), None, name
    if not arguments:
        return  # names the command, whatever options it needs
    while isinstance(command, TyperGroup):
        context = command.make_context(name, list(arguments), parent=context)
        name, command, arguments = command.resolve_command(context, arguments)
        full += f" {name}"
        if not arguments:
            return
    context = command.make_context(name, arguments, parent=context)  # parses and checks values, runs nothing
    check_names(full, context.params)


@pytest.mark.parametrize("call", DOCUMENTED)
def test_documented_calls_parse(call: str) -> None:
    parsed(call)


@pytest.mark.parametrize(
    "call",
    [
        "madkit distil --task vcr",
        "madkit distill --task vcr --shot 1pct",
        "madkit distill --task vcr --steps many",
        "madkit distill --task vcr --arm made",
        "madkit distill --task vcr --set mad.k_texts=8",
        "madkit distill --task vcr --student unitre-base",
        "madkit distill --task vcr --recipe uniter-base-vrc",
        "madkit distill --task vcr --teacher clip-vit-l41",
        "madkit adapt --teacher mini --task vcr --set lora.rang=4",
        "madkit evaluate --protocol fulll",
        "madkit evaluate --vqa-rule 2020",
        "madkit cache lst",
        "madkit cache verify --sampel 8",
        "madkit teachers show clip-vit-l41",
        "accelerate launch --num_process 2 -m madkit extract --teacher mini",
        "accelerate launch --multi_gpu --num_processes 2 -m madkit extract --teachr mini",
        "torchrun --nproc_per_node 2 -m madkit distill --task vcr --seeed 1",
        "python examples/custom_task.py --picture-s 3",
        "python examples/custom_tsk.py",
        "python -m madkit.cli.referenz x.md",
    ],
)
def test_what_does_not_exist_is_refused(call: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((Exception, SystemExit)) as refused:  # Typer's, argparse's, madkit's and assert's
        parsed(call)
    assert not isinstance(refused.value, (ImportError, AttributeError, TypeError, KeyError))
    capsys.readouterr()
