"""Several runs side by side, in processes that each train one after another, under one progress display."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from madkit.tasks.id_lists import labelled_examples

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


@dataclass(frozen=True, slots=True)
class RunReport:
    """A run of a sweep that is complete: its folder, whether it was before, its scores on the development split."""

    spec: RunSpec
    path: Path
    skipped: bool
    dev: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Plan:
    """Where a run's data comes from, and its steps before and in training; for the display."""

    source: str
    before: int
    steps: int

    @property
    def total(self) -> int:
        return self.before + self.steps


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
        UsageProblem, ConfigError: a spec that cannot be meant; found before anything starts.
        RunError: some runs failed; the message names each with its reason. The others are trained all the same.
        StoppedResumable, KeyboardInterrupt: a signal; the processes were told and saved first.
    """
    plans = [_plan(workspace, spec, part) for spec in specs]
    waiting = list(range(len(specs)))
    reports: dict[int, RunReport] = {}
    failures: list[str] = []
    workers: list[_Worker] = []
    finished = 0
    total = sum(plan.total for plan in plans)
    with StopSignals() as signals, progress(f"Training {len(specs)} runs", total, "steps") as shown:
        try:
            while (waiting or any(worker.busy for worker in workers)) and not signals.requested:
                for worker in workers:
                    reply = worker.reply()
                    if reply is None or worker.number is None:
                        continue
                    number, worker.number = worker.number, None
                    finished += plans[number].total
                    if "error" in reply:
                        failures.append(f"{specs[number].title}: {str(reply['error']).rstrip('.')}")
                        continue
                    reports[number] = _report(specs[number], reply)
                    if on_done is not None:
                        on_done(reports[number])
                for worker in [worker for worker in workers if not worker.busy and not worker.alive]:
                    workers.remove(worker)
                    worker.stop()
                while waiting and (free := _idle(workers, processes, threads_each)) is not None:
                    number = waiting.pop(0)
                    free.ask(number, specs[number], plans[number], workspace, part)
                _show(shown, finished, workers)
                time.sleep(POLL_S)
        finally:
            for worker in workers:
                worker.stop()
        if signals.requested:
            raise signals.error()
    if failures:
        raise RunError(
            f"{len(failures)} of {len(specs)} runs failed: " + "; ".join(failures) + ".",
            hint="run the same command again: what is complete stays.",
        )
    return [reports[number] for number in range(len(specs))]


def _plan(workspace: Workspace, spec: RunSpec, part: str) -> _Plan:
    config = load_arm(spec.arm, spec.overrides)
    data = open_task(workspace, spec.task, part=part)
    steps = config.optim.steps
    if steps is None:
        labelled = labelled_examples(data, spec.shots, spec.seed)
        steps = resolve(config, task=data.spec.kind, n_examples=len(labelled), seed=spec.seed).optim.steps
    return _Plan(data.source, config.pre_phase.steps if config.pre_phase is not None else 0, steps or 0)


def _report(spec: RunSpec, reply: Mapping[str, Any]) -> RunReport:
    return RunReport(spec, Path(reply["run"]), bool(reply["skipped"]), dict(reply["dev"]))


def _idle(workers: list[_Worker], processes: int, threads: int) -> _Worker | None:
    """A worker without work, started where there may be one more."""
    for worker in workers:
        if not worker.busy:
            return worker
    if len(workers) < max(1, processes):
        workers.append(_Worker(threads))
        return workers[-1]
    return None


def _show(shown: Progress, finished: int, workers: Iterable[_Worker]) -> None:
    busy = [worker for worker in workers if worker.spec is not None and worker.busy]
    now = finished + sum(worker.steps_done() for worker in busy)
    shown.update(", ".join(f"{worker.spec.arm} seed {worker.spec.seed}" for worker in busy if worker.spec is not None))
    if now > shown.done:
        shown.advance(now - shown.done)


class _Worker:
    """A `distill.worker` process. Its answers and words go to files, so that no pipe fills up."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.number: int | None = None
        self.spec: RunSpec | None = None
        self._read = 0
        self._out = tempfile.TemporaryFile()  # noqa: SIM115  # closed in `stop`
        self._err = tempfile.TemporaryFile()  # noqa: SIM115
        variables = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)} if threads else {}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "madkit.distill.worker"],
            stdin=subprocess.PIPE,
            stdout=self._out,
            stderr=self._err,
            env={**os.environ, **variables},
        )

    @property
    def busy(self) -> bool:
        """Whether a run is under way."""
        return self.number is not None

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def ask(self, number: int, spec: RunSpec, plan: _Plan, workspace: Workspace, part: str) -> None:
        """Give it a run."""
        self.number, self.spec, self._plan, self._runs = number, spec, plan, workspace.runs / plan.source
        self._began = time.time() - 1.0
        request = {
            "workspace": str(workspace.root),
            "cache": workspace.cache_at,
            "task": spec.task,
            "shots": spec.shots,
            "arm": spec.arm,
            "student": spec.student,
            "teacher": spec.teacher,
            "seed": spec.seed,
            "config_overrides": dict(spec.overrides),
            "threads": self.threads,
            "part": part,
        }
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died; `reply` says how
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()

    def reply(self) -> dict[str, Any] | None:
        """Its answer, where it has given one; an answer with "error" where it died over a run."""
        if not self.busy:
            return None
        ended = not self.alive  # asked first: an answer written before the end is then seen below
        data = os.pread(self._out.fileno(), 1 << 20, self._read)
        line, newline, _ = data.partition(b"\n")
        if newline:
            self._read += len(line) + 1
            found: dict[str, Any] = json.loads(line)
            return found
        if not ended:
            return None
        self._err.seek(0)
        words = self._err.read().decode(errors="replace").strip().splitlines()
        about = f" ({words[-1]})" if words else ""
        return {"error": f"its process ended with code {self._process.returncode}{about}"}

    def steps_done(self) -> int:
        """Steps of the present run so far, from the journals that it writes; for display only."""
        assert self.spec is not None
        stem = f"*-{Path(self.spec.arm).stem}-{self.spec.shots}-s{self.spec.seed}-*/metrics.jsonl"
        training = min(self._plan.steps, self._lines(stem))
        before = self._plan.before
        return training + (before if training else min(before, self._lines("pre-phase-*/metrics.jsonl")))

    def _lines(self, pattern: str) -> int:
        try:
            fresh = [path for path in self._runs.glob(pattern) if path.stat().st_mtime >= self._began]
            return max((path.read_bytes().count(b'"loss"') for path in fresh), default=0)
        except OSError:  # a journal that is being replaced
            return 0

    def stop(self) -> None:
        """End it: at once where it is idle, after saving where it is busy."""
        process = self._process
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # closing sends what a dead one never read
                process.stdin.close()
        if self.busy:
            process.terminate()
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._out.close()
        self._err.close()
