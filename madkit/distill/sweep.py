"""Several runs side by side, each a process of its own, under one progress display."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from madkit.core.console import Progress, progress
from madkit.core.errors import RunError
from madkit.core.interrupts import StopSignals
from madkit.core.workspace import Workspace
from madkit.distill.arms import load_arm
from madkit.distill.config import resolve
from madkit.tasks.data import open_task
from madkit.tasks.shots import select_shots

POLL_S = 0.25
GRACE_S = 60.0


@dataclass(frozen=True, slots=True)
class RunSpec:
    """One run of a sweep; the arguments of `stage.distill`."""

    task: str
    arm: str
    shots: str = "1pct"
    seed: int = 0
    student: str | None = None
    teacher: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The run in a few words."""
        return f"{self.task} {self.arm} {self.shots} seed {self.seed}"

    def command(self, workspace: Workspace, threads: int) -> list[str]:
        """What `madkit distill` is called with."""
        command = [sys.executable, "-m", "madkit", "distill", "--task", self.task, "--arm", self.arm]
        command += ["--shots", self.shots, "--seed", str(self.seed), "--workspace", str(workspace.root), "--json"]
        command += ["--student", self.student] if self.student else []
        command += ["--teacher", self.teacher] if self.teacher else []
        command += ["--threads", str(threads)] if threads else []
        for key, value in self.overrides.items():
            command += ["--set", f"{key}={json.dumps(value)}"]
        return command


@dataclass(frozen=True, slots=True)
class RunReport:
    """What `madkit distill --json` said about one run of a sweep."""

    spec: RunSpec
    path: Path
    skipped: bool
    dev: dict[str, Any]


class _Child:
    """A running process and where its words go: files, so that no pipe fills up."""

    def __init__(self, spec: RunSpec, workspace: Workspace, threads: int, source: str, steps: tuple[int, int]) -> None:
        self.spec = spec
        self.steps = steps
        self._runs = workspace.runs / source
        self._began = time.time() - 1.0
        self._out = tempfile.TemporaryFile()  # noqa: SIM115  # closed in `close`
        self._err = tempfile.TemporaryFile()  # noqa: SIM115
        variables = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)} if threads else {}
        self.process = subprocess.Popen(
            spec.command(workspace, threads), stdout=self._out, stderr=self._err, env={**os.environ, **variables}
        )

    def done(self) -> int:
        """Steps so far, from the journals that this run writes; for display only."""
        stem = f"*-{Path(self.spec.arm).stem}-{self.spec.shots}-s{self.spec.seed}-*/metrics.jsonl"
        training = min(self.steps[1], self._lines(stem))
        return training + (self.steps[0] if training else min(self.steps[0], self._lines("pre-phase-*/metrics.jsonl")))

    def _lines(self, pattern: str) -> int:
        try:
            fresh = [path for path in self._runs.glob(pattern) if path.stat().st_mtime >= self._began]
            return max((path.read_bytes().count(b'"loss"') for path in fresh), default=0)
        except OSError:  # a journal that is being replaced
            return 0

    def close(self) -> tuple[bytes, str]:
        """What it printed on stdout and stderr."""
        with self._out as out, self._err as err:
            out.seek(0)
            err.seek(0)
            return out.read(), err.read().decode(errors="replace")


def run_many(
    workspace: Workspace,
    specs: Sequence[RunSpec],
    *,
    processes: int = 1,
    threads_each: int = 1,
    part: str = "auto",
    on_done: Callable[[RunReport], None] | None = None,
) -> list[RunReport]:
    """Train every run of `specs` that is not complete, `processes` at a time.

    Args:
        workspace: data, caches, runs.
        specs: the runs.
        processes: how many run side by side.
        threads_each: compute threads of each, 0 for torch's own choice.
        part: see `tasks.data.open_task`; the data is opened (and built) here, once, before the first process starts.
        on_done: called with each report as it comes.

    Returns:
        Reports in the order of `specs`.

    Raises:
        RunError: some runs failed; the message names each with its reason. The others are trained all the same.
        StoppedResumable, KeyboardInterrupt: a signal; the processes were told and saved first.
    """
    waiting = list(enumerate(specs))
    plans = {number: _plan(workspace, spec, part) for number, spec in waiting}
    reports: dict[int, RunReport] = {}
    failures: list[str] = []
    running: dict[int, _Child] = {}
    total = sum(sum(steps) for _, steps in plans.values())
    with StopSignals() as signals, progress(f"Training {len(specs)} runs", total, "steps") as shown:
        try:
            while (waiting or running) and not signals.requested:
                while waiting and len(running) < max(1, processes):
                    number, spec = waiting.pop(0)
                    running[number] = _Child(spec, workspace, threads_each, *plans[number])
                for number in [number for number, child in running.items() if child.process.poll() is not None]:
                    child = running.pop(number)
                    report = _finish(child, failures)
                    if report is not None:
                        reports[number] = report
                        if on_done is not None:
                            on_done(report)
                finished = sum(sum(plans[number][1]) for number in plans if number not in running) - sum(
                    sum(plans[number][1]) for number, _ in waiting
                )
                _show(shown, finished, running)
                time.sleep(POLL_S)
        finally:
            _stop(running)
        if signals.requested:
            raise signals.error()
    if failures:
        raise RunError(
            f"{len(failures)} of {len(specs)} runs failed: " + "; ".join(failures),
            hint="run the same command again: what is complete stays.",
        )
    return [reports[number] for number in range(len(specs))]


def _plan(workspace: Workspace, spec: RunSpec, part: str) -> tuple[str, tuple[int, int]]:
    """Source of the data, and steps of the pre-phase and of the training."""
    config = load_arm(spec.arm, spec.overrides)
    data = open_task(workspace, spec.task, part=part)
    steps = config.optim.steps
    if steps is None:
        labelled = select_shots(data.examples("train"), spec.shots, seed=spec.seed, revision=data.revision)
        steps = resolve(config, n_examples=len(labelled), seed=spec.seed).optim.steps
    return data.source, (config.pre_phase.steps if config.pre_phase is not None else 0, steps or 0)


def _show(shown: Progress, finished: int, running: Mapping[int, _Child]) -> None:
    now = finished + sum(child.done() for child in running.values())
    shown.update(", ".join(f"{child.spec.arm} seed {child.spec.seed}" for child in running.values()))
    if now > shown.done:
        shown.advance(now - shown.done)


def _finish(child: _Child, failures: list[str]) -> RunReport | None:
    out, err = child.close()
    if child.process.returncode == 0:
        document = json.loads(out)
        return RunReport(child.spec, Path(document["run"]), bool(document["skipped"]), dict(document["dev"]))
    lines = [line for line in err.strip().splitlines() if line]
    reason = next((line for line in reversed(lines) if line.startswith("Error: ")), lines[-1] if lines else "")
    code = child.process.returncode
    failures.append(f"{child.spec.title}: {reason.removeprefix('Error: ').rstrip('.') or f'ended with code {code}'}")
    return None


def _stop(running: Mapping[int, _Child]) -> None:
    """Ask what still runs to save and end, and wait for it."""
    for child in running.values():
        child.process.terminate()
    for child in running.values():
        try:
            child.process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()
        child.close()
