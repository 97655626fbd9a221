"""Signals become requests, and each has its own exit code."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from madkit.core.errors import StoppedResumable
from madkit.core.interrupts import StopSignals


def test_sigterm_asks_and_ends_with_75() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        os.kill(os.getpid(), signal.SIGTERM)  # asking twice changes nothing
        error = stop.error("run it again.")
    assert isinstance(error, StoppedResumable)
    assert error.exit_code == 75
    assert (error.message, error.hint) == ("Stopped by SIGTERM after saving.", "run it again.")
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_first_ctrl_c_asks_and_the_second_interrupts(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        assert isinstance(stop.error(), KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before
    assert "run the same command again" in capsys.readouterr().err


def test_it_leaves_other_threads_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def work() -> None:
        with StopSignals() as stop:
            seen.append(signal.getsignal(signal.SIGTERM))
            seen.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before, False]
