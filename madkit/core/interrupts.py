"""Stopping on request: a signal asks, the loop finishes its unit of work, saves, and ends with a telling exit code."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from madkit.core.console import info
from madkit.core.errors import StoppedResumable


class StopSignals:
    """Context manager that turns SIGTERM and the first Ctrl-C into a request to stop.

    Ask ``requested`` between units of work; when it is true, save and ``raise stop.error()``. A second Ctrl-C
    interrupts at once. Outside the main thread, where Python delivers no signals, it does nothing.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous: dict[signal.Signals, Callable[[int, FrameType | None], Any] | int | None] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has asked to stop."""
        return self.signal is not None

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._previous.clear()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)

    def error(
        self, hint: str = "run the same command again to go on from here.", *, how: str = "after saving"
    ) -> BaseException:
        """Return what to raise after saving: KeyboardInterrupt (exit 130) for Ctrl-C, else StoppedResumable (75).

        Args:
            hint: how to go on.
            how: what became of the work.
        """
        if self.signal == signal.SIGINT:
            info(f"Stopped {how}; {hint}")
            return KeyboardInterrupt()
        name = self.signal.name if self.signal is not None else "a signal"
        return StoppedResumable(f"Stopped by {name} {how}.", hint=hint)
