"""Sides that take turns: the same work done by several programs within one process, there and back again.

A machine gets slower and faster while a benchmark runs. So the sides go in the order A B C C B A, round after round,
and a side's figure is the median of its turns; the quartiles say how far they lie apart. How much a ratio means is told
by measuring one side twice under two names.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from madkit.core.console import info

_MB = 1_000_000
_COMPILING = 30.0  # seconds; what takes longer the first time may be anything the second time
_CLEAR_PEAK = "5"  # proc(5), /proc/PID/clear_refs: "Reset the peak resident set size"


@dataclass(frozen=True, slots=True)
class Side:
    """Somebody's way of doing the work.

    Attributes:
        name: whose, and how.
        work: does a number of pieces of the work.
        items: images or texts in a piece.
        tidy: what is to be done after a turn, off the clock.
        facts: what else its row says.
    """

    name: str
    work: Callable[[int], object]
    items: int
    tidy: Callable[[], object] | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast a side was.

    Attributes:
        per_second: items a second, median of the turns.
        quartiles: of the same, first and third.
        cpu_ms: milliseconds of CPU per item, of all threads, median of the turns.
        memory_mb: the most memory of the device that a turn took beyond what was held before it; None if not known.
        turns: how many turns there were.
        items: items in one turn.
    """

    per_second: float
    quartiles: tuple[float, float]
    cpu_ms: float
    memory_mb: float | None
    turns: int
    items: int

    def as_row(self) -> dict[str, Any]:
        """Return plain values for JSON; rates keep four digits, and every ratio is made of these."""
        row = asdict(self)
        low, high = self.quartiles
        return row | {
            "per_second": _digits(self.per_second),
            "quartiles": [_digits(low), _digits(high)],
            "cpu_ms": _digits(self.cpu_ms),
            "memory_mb": None if self.memory_mb is None else round(self.memory_mb, 1),
        }


def _digits(value: float) -> float:
    return float(f"{value:.4g}")


def take_turns(
    sides: Sequence[Side], *, repeats: int, device: str, turn_s: float = 0.0, what: str = ""
) -> dict[str, Speed]:
    """Measure sides in turns.

    Args:
        sides: with different names.
        repeats: rounds, of two turns for each side.
        device: whose work is waited for before a clock is read.
        turn_s: how long a turn should take, in seconds; the work is repeated until then. 0: it is done once.
        what: what is measured, for the line on stderr.

    Returns:
        The speed of every side by its name.
    """
    turns: dict[str, list[tuple[float, float, float | None]]] = {side.name: [] for side in sides}
    started = time.monotonic()
    gc.collect()
    gc.freeze()  # what was there before need not be looked through again before every turn
    try:
        pieces = {side.name: _pieces(side, device, turn_s) for side in sides}
        for number in range(repeats):
            for side in (*sides, *reversed(sides)):
                turns[side.name].append(_turn(side, pieces[side.name], device))
            if what:
                info(f"{what}: round {number + 1} of {repeats}, {time.monotonic() - started:.0f} s.")
    finally:
        gc.unfreeze()
    speeds = {}
    for side in sides:
        items = side.items * pieces[side.name]
        rates = [items / wall for wall, _, _ in turns[side.name]]
        low, _, high = quantiles(rates, n=4, method="inclusive")
        memory = [more for _, _, more in turns[side.name] if more is not None]
        speeds[side.name] = Speed(
            per_second=median(rates),
            quartiles=(low, high),
            cpu_ms=median(cpu / items * 1000 for _, cpu, _ in turns[side.name]),
            memory_mb=max(memory) if memory else None,
            turns=len(rates),
            items=items,
        )
    return speeds


def synchronise(device: str) -> None:
    """Wait until the device has done everything it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def _pieces(side: Side, device: str, turn_s: float) -> int:
    """Warm a side up, and return how many pieces fill a turn."""
    if turn_s <= 0:
        return 1
    seconds, _, _ = _turn(side, 1, device)  # compiles, allocates, loads kernels
    if 2 * turn_s < seconds < _COMPILING:  # one piece is a turn, however warm
        return 1
    seconds, _, _ = _turn(side, 1, device)
    return max(1, round(turn_s / seconds))


def _turn(side: Side, pieces: int, device: str) -> tuple[float, float, float | None]:
    gc.collect()
    memory = _Memory(device)
    synchronise(device)
    cpu, wall = time.process_time(), time.perf_counter()
    side.work(pieces)
    synchronise(device)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    more = memory.more_mb()
    if side.tidy is not None:
        side.tidy()
    return wall, cpu, more


class _Memory:
    """The most memory that was taken since this object was made: the GPU's own count, or resident memory."""

    def __init__(self, device: str) -> None:
        self._cuda = device if torch.device(device).type == "cuda" else None
        self._before: float | None = None
        if self._cuda is not None:
            torch.cuda.reset_peak_memory_stats(self._cuda)
            self._before = float(torch.cuda.memory_allocated(self._cuda))
            return
        try:
            Path("/proc/self/clear_refs").write_text(_CLEAR_PEAK)
        except OSError:  # another system, or not allowed
            return
        self._before = _resident("VmRSS:")

    def more_mb(self) -> float | None:
        if self._before is None:
            return None
        if self._cuda is not None:
            return (float(torch.cuda.max_memory_allocated(self._cuda)) - self._before) / _MB
        after = _resident("VmHWM:")
        return None if after is None else max(0.0, after - self._before) / _MB


def _resident(key: str) -> float | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024.0 for line in lines if line.startswith(key)), None)
