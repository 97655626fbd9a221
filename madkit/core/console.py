"""Messages and progress for people, always on stderr: stdout belongs to results.

On a terminal a progress is a rich bar with ETA. Anywhere else (log files, CI) it is one line per ten seconds, and
nothing at all for work that ends within its first second. Of several processes of one job only rank 0 speaks.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from madkit.core.launcher import rank

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from rich.console import Console, RenderableType
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

LINE_INTERVAL_S = 10.0
QUIET_S = 1.0


def info(message: str) -> None:
    """Print one line for the user on stderr."""
    _say(message)


def warn(message: str) -> None:
    """Print one warning line on stderr."""
    _say(f"Warning: {message}")


@contextmanager
def stdout_clear() -> Iterator[None]:
    """Let nothing be printed on stdout, by C++ neither: Gloo of PyTorch 2.8 tells there who is connected."""
    if sys.stdout is None:  # closed by whoever started us
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


@contextmanager
def dressed_by(dress: Callable[[str], str]) -> Iterator[None]:
    """Pass every message of this process through a function before it is printed: a program's own words on top."""
    before = _Words.dress
    _Words.dress = staticmethod(dress)
    try:
        yield
    finally:
        _Words.dress = staticmethod(before)


def progress(description: str, total: int | None, unit: str = "items") -> Progress:
    """Return a context manager that shows how far some work is.

    Args:
        description: what is being done, in a few words.
        total: number of units, or None where it is unknown.
        unit: plural name of what is counted.
    """
    return Progress(description, total, unit)


def counted(number: int, unit: str) -> str:
    """Write ``12,000 questions``, and ``1 question`` where there is one.

    Args:
        number: how many there are.
        unit: plural name of what is counted, formed with an s; behind it may stand whose they are ("files of a run").
    """
    return f"{number:,} {_unit(number, unit)}"


def _unit(number: int, unit: str) -> str:
    return re.sub(r"^([\w-]+[a-z])s(?= of |$)", r"\1", unit) if number == 1 else unit


def _speaks() -> bool:
    return rank() == 0


class _Words:
    """What messages pass through; as they are unless a program says otherwise."""

    dress: Callable[[str], str] = str


def _say(message: str) -> None:
    if not _speaks():
        return
    message = _Words.dress(message)
    live = _Live.bar
    if live is not None:
        live.console.print(message, markup=False, highlight=False, soft_wrap=True)
    else:
        print(message, file=sys.stderr, flush=True)


class _Live:
    """The one rich display of this process: rich refuses a second one, so nested progresses share it."""

    bar: RichProgress | None = None
    users = 0
    lock = threading.RLock()

    @classmethod
    def enter(cls) -> RichProgress:
        with cls.lock:
            if cls.bar is None:
                cls.bar = _make_bar()
                cls.bar.start()
            cls.users += 1
            return cls.bar

    @classmethod
    def leave(cls) -> None:
        with cls.lock:
            cls.users -= 1
            if cls.users == 0 and cls.bar is not None:
                cls.bar.stop()
                cls.bar = None


def _stderr_console() -> Console:
    from rich.console import Console

    return Console(stderr=True)


def _make_bar() -> RichProgress:
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class Noted(RichProgress):
        """Notes stand below the bars, where a narrow terminal has room for them."""

        def get_renderables(self) -> Iterable[RenderableType]:
            yield from super().get_renderables()
            for task in self.tasks:
                if task.fields["note"] and not task.finished:
                    yield Text(f"  {task.fields['note']}", style="dim")

    return Noted(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}", markup=False),
        TimeRemainingColumn(compact=True),
        console=_stderr_console(),
        transient=True,
    )


class Progress:
    """How far some work is. Use as a context manager; ``advance`` and ``update`` may be called from any thread."""

    def __init__(self, description: str, total: int | None, unit: str = "items") -> None:
        self.description = description
        self.total = total
        self.unit = unit
        self.done = 0
        self._note = ""
        self._lock = threading.Lock()
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._started = self._last_line = time.monotonic()

    def __enter__(self) -> Progress:
        self._started = self._last_line = time.monotonic()
        # while a bar is shown, rich 14 has something in the place of stderr that says it is no terminal
        if _speaks() and (_Live.bar is not None or sys.stderr.isatty()):
            self._bar = _Live.enter()
            unit = self.unit if self.total is None else _unit(self.total, self.unit)
            self._task = self._bar.add_task(self.description, total=self.total, unit=unit, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds = time.monotonic() - self._started
        if self._bar is not None and self._task is not None:
            self._bar.remove_task(self._task)
            self._bar = None
            _Live.leave()
        if kind is None and seconds >= QUIET_S and self.done:
            _say(f"{self.description}: {counted(self.done, self.unit)} in {duration(seconds)}{self._tail()}")

    def advance(self, n: int = 1) -> None:
        """Count ``n`` more units as done."""
        with self._lock:
            self.done += n
            if self._bar is not None and self._task is not None:
                self._bar.update(self._task, completed=self.done)
                return
            now = time.monotonic()
            if now - self._last_line < LINE_INTERVAL_S:
                return
            self._last_line = now
        _say(self._line(now - self._started))

    def update(self, note: str) -> None:
        """Show a short note (a loss, a file name) beside the count."""
        self._note = note
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, note=note)

    def _tail(self) -> str:
        return f" ({self._note})" if self._note else ""

    def _line(self, seconds: float) -> str:
        rate = self.done / seconds if seconds > 0 else 0.0
        if self.total is None:
            return f"{self.description}: {counted(self.done, self.unit)}, {rate:,.3g}/s{self._tail()}"
        left = duration((self.total - self.done) / rate) if rate > 0 else "?"
        done = f"{self.done:,}/{counted(self.total, self.unit)}"
        return f"{self.description}: {done}, {rate:,.3g}/s, {left} left{self._tail()}"


def duration(seconds: float) -> str:
    """Write a time span for people: ``0.4 s``, ``12 s``, ``3 min 05 s``, ``2 h 07 min``."""
    if seconds < 9.95:
        return f"{max(seconds, 0.0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = whole // 60
    return f"{minutes // 60} h {minutes % 60:02d} min"
