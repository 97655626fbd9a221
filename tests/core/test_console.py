"""Progress: a bar on a terminal, lines elsewhere, silence for short work, and nothing ever on stdout."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from madkit.core import console
from madkit.core.console import counted, duration, info, progress, warn


class Clock:
    """Stands in for time.monotonic."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(console.time, "monotonic", lambda: self.now)


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_messages_go_to_stderr_of_rank_0_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    info("built [person1] in /a/b")
    warn("slow")
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    info("not me")
    with progress("nor me", 10) as bar:
        bar.advance(10)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "built [person1] in /a/b\nWarning: slow\n"


def test_lines_every_ten_seconds_with_rate_and_eta(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    with progress("Reading images", 2000, "images") as bar:
        for _ in range(25):
            clock.now += 1
            bar.advance(50)
        bar.update("mini")
        clock.now += 5
        bar.advance(750)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "Reading images: 500/2,000 images, 50/s, 30 s left",
        "Reading images: 1,000/2,000 images, 50/s, 20 s left",
        "Reading images: 2,000/2,000 images, 66.7/s, 0.0 s left (mini)",
        "Reading images: 2,000 images in 30 s (mini)",
    ]


def test_unknown_totals_show_the_rate(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    with progress("Reading", None) as bar:
        clock.now += 10
        bar.advance(5)
    assert capsys.readouterr().err.splitlines() == ["Reading: 5 items, 0.5/s", "Reading: 5 items in 10 s"]


def test_short_or_failed_work_leaves_no_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    with progress("Short", 3) as bar:
        clock.now += 0.9
        bar.advance(3)
    with pytest.raises(ZeroDivisionError), progress("Failing", 3) as bar:
        clock.now += 5
        bar.advance()
        raise ZeroDivisionError
    assert capsys.readouterr() == ("", "")


def test_nested_bars_share_one_display_and_messages_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    long = "message " + "x" * 150
    with progress("Outer", 2, "runs") as outer:
        with progress("Inner", 5, "steps") as inner:
            inner.advance(5)
            inner.update("loss 0.5")
            info(long)
        outer.advance()
        with pytest.raises(ZeroDivisionError), progress("Second", 5):
            raise ZeroDivisionError
        assert console._Live.bar is not None
    assert console._Live.bar is None
    text = terminal.getvalue()
    assert long in text
    for piece in ("Outer", "Inner", "1/2", "runs"):
        assert piece in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.0 s"),
        (0.44, "0.4 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.6, "1 h 00 min"),
        (7620, "2 h 07 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_one_of_a_thing_is_named_in_the_singular(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = {unit: counted(1, unit) for unit in ("questions", "run-suites of this process", "MB", "images and texts")}
    assert list(one.values()) == ["1 question", "1 run-suite of this process", "1 MB", "1 images and texts"]
    assert (counted(0, "questions"), counted(12000, "questions")) == ("0 questions", "12,000 questions")
    clock = Clock(monkeypatch)
    for total in (1, None):
        with progress("Evaluating", total, "run-suites") as bar:
            clock.now += 11
            bar.advance()
    assert capsys.readouterr().err.splitlines() == [
        "Evaluating: 1/1 run-suite, 0.0909/s, 0.0 s left",
        "Evaluating: 1 run-suite in 11 s",
        "Evaluating: 1 run-suite, 0.0909/s",
        "Evaluating: 1 run-suite in 11 s",
    ]


def test_what_a_library_prints_from_c_does_not_come_between_results() -> None:
    script = (
        "import os, sys\n"
        "from madkit.core.console import stdout_clear\n"
        "print('before')\n"
        "with stdout_clear():\n"
        "    print('python'); os.write(1, b'c\\n')\n"
        "print('after')\n"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (told.stdout, told.stderr) == ("before\nafter\n", "")
    script = "from madkit.core.console import stdout_clear\nwith stdout_clear(): print('python')"
    closed = subprocess.run(["sh", "-c", '"$0" -c "$1" >&-', sys.executable, script], check=True)
    assert closed.returncode == 0
