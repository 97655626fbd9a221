"""Measuring a function in a Python process of its own, so that its peak memory and its imports are its own."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from madkit.core.errors import MadkitError, RunError

_MB = 1_000_000


@dataclass(frozen=True, slots=True)
class Lap:
    """One stretch of a measurement: seconds by the clock and of CPU (all threads), highest memory until its end."""

    wall_s: float
    cpu_s: float
    peak_mb: float

    def __add__(self, later: Lap) -> Lap:
        return Lap(self.wall_s + later.wall_s, self.cpu_s + later.cpu_s, max(self.peak_mb, later.peak_mb))


@dataclass(frozen=True, slots=True)
class Measured:
    """What a process measured: its laps in order, and whatever else its function returned."""

    laps: dict[str, Lap]
    facts: dict[str, Any]

    def until(self, name: str) -> Lap:
        """Everything from the start of the process to the end of a lap."""
        names = list(self.laps)
        whole, *rest = (self.laps[one] for one in names[: names.index(name) + 1])
        for lap in rest:
            whole += lap
        return whole


class Watch:
    """Takes the laps. The first one starts with the watch."""

    def __init__(self) -> None:
        self.laps: dict[str, Lap] = {}
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def lap(self, name: str) -> None:
        """End a stretch and begin the next."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.laps[name] = Lap(wall - self._wall, cpu - self._cpu, peak_memory_mb())
        self._wall, self._cpu = time.perf_counter(), time.process_time()


Step = Callable[..., dict[str, Any]]


def measure(target: str, **arguments: Any) -> Measured:
    """Call `module:function` with a `Watch` and the arguments in a fresh interpreter.

    The clock starts when the interpreter is up and before the function's module is imported. Arguments and what the
    function returns, a dict, travel as JSON.

    Raises RunError where the process fails.
    """
    command = [sys.executable, "-m", __name__, target, json.dumps(arguments, default=os.fspath)]
    # the same madkit as here, wherever it was imported from
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path})
    if done.returncode != 0:
        said = next(reversed(done.stderr.strip().splitlines()), "it said nothing")
        killed = done.returncode == -9
        raise RunError(
            f"Measuring {target} failed: {'the system killed it, perhaps for memory' if killed else said.rstrip('.')}.",
            hint="try smaller sizes: --questions 10000 --tsv-gb 0.05",
        )
    return _from_plain(json.loads(done.stdout.splitlines()[-1]))


def peak_memory_mb() -> float:
    """The most memory that this process has had resident, in MB of 10^6 bytes."""
    # The kernel's own figure for this program: getrusage's survives exec and would tell of the process that started us.
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / _MB
    except OSError:
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _MB


def call(target: str, arguments: Mapping[str, Any]) -> Measured:
    """What the fresh process does: import, call, and take the time."""
    watch = Watch()
    module, _, name = target.partition(":")
    function: Step = getattr(import_module(module), name)
    facts = function(watch, **arguments)
    return Measured(watch.laps, facts)


def _from_plain(document: dict[str, Any]) -> Measured:
    return Measured({name: Lap(*values) for name, values in document["laps"].items()}, document["facts"])


def _main() -> None:
    try:
        done = call(sys.argv[1], json.loads(sys.argv[2]))
    except MadkitError as error:
        sys.exit(error.message)
    laps = {name: (lap.wall_s, lap.cpu_s, lap.peak_mb) for name, lap in done.laps.items()}
    sys.stdout.write(json.dumps({"laps": laps, "facts": done.facts}) + "\n")
    sys.stdout.flush()
    os._exit(0)  # freeing millions of objects one by one would take seconds that nobody measures


if __name__ == "__main__":
    _main()
