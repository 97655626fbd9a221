"""The application: what it lists, imports, suggests, and how each way to end becomes an exit code."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import madkit
from madkit.cli import commands
from madkit.cli.commands import COMMANDS, CommandLine
from madkit.cli.main import main

FORBIDDEN = (
    "torch",
    "torchvision",
    "transformers",
    "zarr",
    "numpy",
    "scipy",
    "accelerate",
    "open_clip",
    "h5py",
    "PIL",
    "yaml",
    "jinja2",
    "madkit.core.config",
)
# Typer itself imports pydantic to convert the values of options, and madkit keeps it from that where none is converted.
LIGHTEST = (*FORBIDDEN, "pydantic")

PROBE = '''
from __future__ import annotations
import sys
import typer
from madkit.cli.options import JsonOption, WorkspaceOption
from madkit.cli.output import emit
from madkit.core import errors

EXAMPLES = """
madkit probe --count 3
madkit probe --json
"""

def probe(how: str = "well", count: int = 1, workspace: WorkspaceOption = None, json_: JsonOption = False) -> None:
    "Probe every way to end."
    if how == "hinted":
        raise errors.DataError("a.json, line 3: no 'boxes'.", hint="madkit data check vcr")
    if how == "usage":
        raise errors.UsageProblem("There is no task 'vrc'.")
    if how == "verification":
        raise errors.VerificationFailed("1 of 9 shards is damaged.")
    if how == "stopped":
        raise errors.StoppedResumable("Stopped by SIGTERM after saving.")
    if how == "bug":
        raise KeyError("boxes")
    if how == "multiline":
        raise RuntimeError("first\\nsecond")
    if how == "full":
        raise OSError(28, "No space left on device", "/w/shard")
    if how == "denied":
        raise PermissionError(13, "Permission denied", "/w")
    if how == "astray":
        raise NotADirectoryError(20, "Not a directory", "/w/file/x")
    if how == "memory":
        raise type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate")
    if how == "ctrl-c":
        raise KeyboardInterrupt
    if how == "exit":
        raise typer.Exit(3)
    if how == "pipe":
        raise BrokenPipeError(32, "Broken pipe")
    emit({"count": count, "workspace": workspace}, json_, lambda: print("counted", count))

app = typer.Typer(no_args_is_help=True, help="A command with parts.")

@app.command("list")
def list_() -> None:
    "List the parts."
    print("parts")
'''


@pytest.fixture
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "madkit_probe.py").write_text(PROBE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "madkit_probe", raising=False)
    monkeypatch.setitem(COMMANDS, "probe", CommandLine("madkit_probe:probe", "Probe it.", commands.PIPELINE))
    monkeypatch.setitem(COMMANDS, "parts", CommandLine("madkit_probe:app", "Look at parts.", commands.INSPECT))


@pytest.mark.usefixtures("probe")
@pytest.mark.parametrize(
    ("how", "code", "message"),
    [
        ("hinted", 1, "Error: a.json, line 3: no 'boxes'.\nTry: madkit data check vcr\n"),
        ("usage", 2, "Error: There is no task 'vrc'.\n"),
        ("verification", 3, "Error: 1 of 9 shards is damaged.\n"),
        ("stopped", 75, "Error: Stopped by SIGTERM after saving.\n"),
        ("full", 1, "Error: The disk is full: /w/shard.\nTry: free some space"),
        ("denied", 1, "Error: Permission denied: /w.\n"),
        ("astray", 1, "Error: Not a directory: /w/file/x.\nTry: check each part of that path"),
        ("memory", 1, "Error: There is not enough memory for this.\n"),
        ("bug", 1, "Error: Unexpected KeyError: 'boxes'\nTry: the same command with MADKIT_DEBUG=1"),
        ("multiline", 1, "Error: Unexpected RuntimeError: first\nTry: "),
        ("ctrl-c", 130, "Interrupted.\n"),
        ("exit", 3, ""),
    ],
)
@pytest.mark.parametrize("json_", [False, True])
def test_every_failure_is_a_sentence_and_a_code(
    capfd: pytest.CaptureFixture[str], how: str, code: int, message: str, json_: bool
) -> None:
    assert main(["probe", "--how", how, *(["--json"] if json_ else [])]) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(message)
    assert bool(err) == bool(message)
    assert "Traceback" not in err


@pytest.mark.usefixtures("probe")
def test_the_traceback_comes_when_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for value, expected in [("1", True), ("0", False), ("", False)]:
        monkeypatch.setenv("MADKIT_DEBUG", value)
        assert main(["probe", "--how", "bug"]) == 1
        err = capsys.readouterr().err
        assert ("Traceback" in err) == expected
        assert "Error: Unexpected KeyError: 'boxes'\n" in err


@pytest.mark.usefixtures("probe")
def test_results_are_text_or_one_json_document(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert main(["probe", "--count", "3"]) == 0
    assert capsys.readouterr() == ("counted 3\n", "")
    assert main(["probe", "--json", "--workspace", "/é"]) == 0
    assert capsys.readouterr().out == '{\n  "count": 1,\n  "workspace": "/\\u00e9"\n}\n'
    monkeypatch.setenv("MADKIT_WORKSPACE", str(tmp_path))
    assert main(["probe", "--json"]) == 0
    assert str(tmp_path) in capsys.readouterr().out
    monkeypatch.setenv("RANK", "1")  # as some clusters do for everybody: alone it makes no second of several processes
    assert main(["probe"]) == 0
    assert capsys.readouterr().out == "counted 1\n"
    for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert main(["probe", "--json"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("probe")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prob"], "No such command 'prob'. Did you mean 'probe'?"),
        (["xyzzy"], "No such command 'xyzzy'."),
        (["probe", "--cuont", "3"], "No such option: --cuont (Possible options: --count, --json)"),
        (["probe", "--count", "many"], "Invalid value for '--count'"),
        (["probe", "left"], "Got unexpected extra argument(s) (left)"),
        (["parts", "lst"], "No such command 'lst'. Did you mean 'list'?"),
        (["--bad"], "No such option: --bad"),
    ],
)
def test_wrong_usage_is_2_and_names_the_near_miss(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in " ".join(err.replace("│", " ").split())


@pytest.mark.usefixtures("probe")
def test_the_overview_lists_commands_in_panels_without_importing_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "madkit_probe" not in sys.modules
    for name, line in COMMANDS.items():
        assert any(row.split()[1:2] == [name] for row in out.splitlines()), name
        assert line.panel in out
    assert "Probe it." in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.usefixtures("probe")
def test_help_of_one_command_is_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "--help"]) == 0
    out = capsys.readouterr().out
    for words in (
        "Usage: madkit probe",
        "Probe every way to end.",
        "--count",
        "--workspace",
        "DIR",
        "MADKIT_WORKSPACE",
    ):
        assert words in out
    tail = [line.strip() for line in out.splitlines()][-6:]
    assert [line for line in tail if line] == ["Examples:", "madkit probe --count 3", "madkit probe --json"]
    assert max(map(len, out.splitlines())) <= 80
    assert main(["parts", "--help"]) == 0
    out = capsys.readouterr().out
    assert "List the parts." in out
    assert "madkit probe --json" in out
    assert "`" not in out, "one kind of markup in all commands"
    assert main(["parts", "list"]) == 0
    assert capsys.readouterr().out == "parts\n"


def test_no_arguments_show_the_help_as_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert "Usage: madkit" in out + err


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"madkit {madkit.__version__}\n"


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_line_of_the_table_leads_to_a_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert f"Usage: madkit {name}" in capsys.readouterr().out
    assert COMMANDS[name].help.endswith(".")
    assert len(COMMANDS[name].help) <= 66, "one line at 80 columns"


def run(*arguments: str, code: str | None = None, **options: object) -> subprocess.CompletedProcess[str]:
    start = ["-c", code] if code else ["-m", "madkit"]
    return subprocess.run([sys.executable, *start, *arguments], capture_output=True, text=True, timeout=60, **options)


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_the_overview_imports_nothing_heavy(argument: str) -> None:
    code = (
        "import sys\nfrom madkit.cli.main import main\ncode = main(sys.argv[1:])\n"
        f"print('HEAVY', [m for m in {LIGHTEST!r} if m in sys.modules], file=sys.stderr)\nsys.exit(code)"
    )
    done = run(argument, code=code)
    assert (done.returncode, done.stderr) == (0, "HEAVY []\n")


def test_neither_help_nor_wrong_usage_of_a_command_imports_anything_heavy() -> None:
    code = (
        "import sys\nfrom madkit.cli.commands import COMMANDS\nfrom madkit.cli.main import main\n"
        "HELPED = [*((name,) for name in COMMANDS), ('data', 'regions', 'add'), ('cache', 'list')]\n"
        "codes = [main(['xyzzy'])] + [main([*name, '--help']) for name in HELPED]\n"
        f"heavy = [m for m in {LIGHTEST!r} if m in sys.modules]\n"
        "codes += [main([name, '--xyzzy']) for name in COMMANDS]\n"
        f"heavy += [m for m in {FORBIDDEN!r} if m in sys.modules]\n"
        "print('HEAVY', codes, heavy, file=sys.stderr)"
    )
    done = run(code=code)
    assert done.stderr.splitlines()[-1] == f"HEAVY {[2] + [0] * (len(COMMANDS) + 2) + [2] * len(COMMANDS)} []"


def test_import_of_the_package_is_light_and_its_names_are_lazy() -> None:
    code = f"import sys, madkit\nprint(dir(madkit), [m for m in {LIGHTEST!r} + ('typer', 'rich') if m in sys.modules])"
    done = run(code=code)
    assert done.stdout == f"{sorted(madkit.__all__)} []\n"
    with pytest.raises(AttributeError, match="module 'madkit' has no attribute 'load_techer'"):
        _ = madkit.load_techer


@pytest.mark.parametrize("name", [name for name in madkit.__all__ if name != "__version__"])
def test_each_public_name_is_found_in_its_home(name: str) -> None:
    value = getattr(madkit, name)
    assert callable(value)
    assert value.__name__ == name
    assert value.__module__.startswith("madkit.")


def test_start_up_costs_little_more_than_a_bare_typer_program(tmp_path: Path) -> None:
    """Help and completion within 1.5 times a two-command hello world's help, all measured here and now."""
    hello = tmp_path / "hello.py"
    hello.write_text(
        "import typer\napp = typer.Typer()\n"
        "@app.command()\ndef one(): 'One.'\n@app.command()\ndef two(): 'Two.'\napp()\n"
    )

    def seconds(*command: str, **variables: str) -> float:
        """Processor time of the child: other work on the machine stretches the clock, and it hardly."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        environment = {**os.environ, **variables}
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL, env=environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def completed(words: str, number: int) -> float:
        variables = {"_MADKIT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(number)}
        return seconds("-m", "madkit", **variables)

    # interleaved, and the least of each: what other work adds to a turn goes with more turns, what is slow stays
    turns: list[dict[str, float]] = []
    least: dict[str, float] = {}
    while len(turns) < 4 or (len(turns) < 12 and max(least.values()) > 1.5 * least["hello"]):
        turns.append(
            {
                "hello": seconds(str(hello), "--help"),
                "--help": seconds("-m", "madkit", "--help"),
                "distill --help": seconds("-m", "madkit", "distill", "--help"),
                "completion of a command": completed("madkit e", 1),
                "completion of an arm": completed("madkit distill --arm ", 3),
            }
        )
        least = {name: min(turn[name] for turn in turns) for name in turns[0]}
    assert max(least.values()) <= 1.5 * least["hello"], least


def test_a_reader_that_goes_away_is_no_error() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "madkit", "env"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_behind_stdout_is_one_sentence() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "madkit", "env"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "Error: The disk is full."
    assert os.strerror(errno.ENOSPC) not in done.stderr


SLEEPING = """
import sys, types, time
from madkit.cli.commands import COMMANDS, CommandLine
from madkit.cli.main import main
module = types.ModuleType("sleeping")
def sleep() -> None:
    print("asleep", flush=True)
    time.sleep(60)
module.sleep = sleep
sys.modules["sleeping"] = module
COMMANDS["sleep"] = CommandLine("sleeping:sleep", "Sleep.", "Sleep")
sys.exit(main(["sleep"]))
"""


def test_ctrl_c_is_130_without_a_traceback() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SLEEPING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "asleep\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == "Interrupted.\n"
    assert process.returncode == 130


def test_the_console_script_is_the_same_program() -> None:
    from importlib.metadata import entry_points

    (script,) = entry_points(group="console_scripts", name="madkit")
    loaded: Callable[..., int] = script.load()
    assert loaded is main
