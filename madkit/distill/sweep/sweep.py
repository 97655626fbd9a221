"""Several runs side by side, in processes that each train one after another, under one progress display."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from madkit.core.console import Progress, counted, info, progress
from madkit.core.errors import RunError
from madkit.core.interrupts import StopSignals
from madkit.core.workspace import Workspace
from madkit.distill.settings.arms import load_arm
from madkit.distill.settings.config import resolve
from madkit.distill.sweep.finished import finished, names_of
from madkit.distill.sweep.worker_process import Plan, RunSpec, WorkerProcess
from madkit.tasks.data import TaskData, open_task
from madkit.tasks.id_lists import labelled_examples

__all__ = ["RunReport", "RunSpec", "run_many"]

POLL_S = 0.25
BUSY_S = 2.0


@dataclass(frozen=True, slots=True)
class RunReport:
    """A run of a sweep that is complete: its folder, whether it was before, its scores on the development split."""

    spec: RunSpec
    path: Path
    skipped: bool
    dev: dict[str, Any]


def run_many(
    workspace: Workspace,
    specs: Sequence[RunSpec],
    *,
    processes: int = 1,
    threads_each: int = 1,
    gpus: Sequence[str] = (),
    part: str = "auto",
    on_done: Callable[[RunReport], None] | None = None,
) -> list[RunReport]:
    """Train every run of `specs` that is not complete, `processes` at a time; those that are complete start none.

    Args:
        workspace: data, caches, runs.
        specs: the runs.
        processes: how many run side by side.
        threads_each: compute threads of each, 0 for torch's own choice.
        gpus: devices to share out, one to each process; none: every process sees all.
        part: see `tasks.data.open_task`; the data is opened (and built) here, once, before the first process starts.
        on_done: called with each report as it comes.

    Returns:
        Reports in the order of `specs`.

    Raises:
        UsageProblem, ConfigError: a spec that cannot be meant; found before anything is read or starts.
        RunError: some runs failed; the message names each with its reason. The others are trained all the same.
        StoppedResumable, KeyboardInterrupt: a signal; the processes were told and saved first.
    """
    opened: dict[str, TaskData] = {}
    names = [names_of(workspace, spec) for spec in specs]
    plans = [_plan(workspace, spec, part, opened) for spec in specs]
    waiting = list(range(len(specs)))
    not_before = [0.0] * len(specs)
    reports: dict[int, RunReport] = {}
    failures: list[str] = []
    workers: list[WorkerProcess] = []
    done_steps = 0
    total = sum(plan.total for plan in plans)
    with StopSignals() as signals, progress(f"Training {counted(len(specs), 'runs')}", total, "steps") as shown:
        try:
            for number in range(len(specs)):  # a sweep that is done starts no process to hear so
                if signals.requested:
                    break
                spec = specs[number]
                found = finished(workspace, spec, names[number], opened[spec.task])
                if found is not None:
                    waiting.remove(number)
                    done_steps += plans[number].total
                    reports[number] = RunReport(spec, found[0], True, found[1])
                    if on_done is not None:
                        on_done(reports[number])
            while (waiting or any(worker.busy for worker in workers)) and not signals.requested:
                for worker in workers:
                    reply = worker.reply()
                    if reply is None or worker.number is None:
                        continue
                    number, worker.number = worker.number, None
                    if "busy" in reply:  # by what is left of a sweep that was killed, or by another one
                        if not not_before[number]:
                            info(f"Waiting: {reply['busy']}")
                        not_before[number] = time.monotonic() + BUSY_S
                        waiting.append(number)
                        continue
                    done_steps += plans[number].total
                    if "error" in reply:
                        failures.append(f"{specs[number].title}: {str(reply['error']).rstrip('.')}")
                        continue
                    reports[number] = _report(specs[number], reply)
                    if on_done is not None:
                        on_done(reports[number])
                for worker in [worker for worker in workers if not worker.busy and not worker.alive]:
                    workers.remove(worker)
                    worker.stop()
                ready = [number for number in waiting if not_before[number] <= time.monotonic()]
                while ready and (free := _idle(workers, processes, threads_each, gpus)) is not None:
                    number = ready.pop(0)
                    waiting.remove(number)
                    free.ask(number, specs[number], plans[number], workspace, part)
                done = len(reports) + len(failures)
                _show(shown, done_steps, workers, f"{done} of {counted(len(specs), 'runs')} done")
                time.sleep(POLL_S)
        finally:
            for worker in workers:
                worker.stop()
        if signals.requested:
            raise signals.error()
    if failures:
        raise RunError(
            f"{len(failures)} of {counted(len(specs), 'runs')} failed: " + "; ".join(failures) + ".",
            hint="run the same command again: what is complete stays.",
        )
    return [reports[number] for number in range(len(specs))]


def _plan(workspace: Workspace, spec: RunSpec, part: str, opened: dict[str, TaskData]) -> Plan:
    config = load_arm(spec.arm, spec.overrides)
    data = opened.get(spec.task)
    if data is None:
        data = opened[spec.task] = open_task(workspace, spec.task, part=part)
    if config.optim.steps is None or config.optim.extra_steps:
        labelled = labelled_examples(data, spec.shots, spec.seed)
        config = resolve(config, task=data.spec.kind, n_examples=len(labelled), seed=spec.seed)
    return Plan(data.source, config.pre_phase.steps if config.pre_phase is not None else 0, config.optim.steps or 0)


def _report(spec: RunSpec, reply: Mapping[str, Any]) -> RunReport:
    return RunReport(spec, Path(reply["run"]), bool(reply["skipped"]), dict(reply["dev"]))


def _idle(workers: list[WorkerProcess], processes: int, threads: int, gpus: Sequence[str]) -> WorkerProcess | None:
    """A worker without work, started where there may be one more."""
    for worker in workers:
        if not worker.busy:
            return worker
    if len(workers) >= max(1, processes):
        return None
    gpu = None
    if gpus:  # the one with the fewest processes
        gpu = min(gpus, key=lambda name: sum(worker.gpu == name for worker in workers))
    workers.append(WorkerProcess(threads, gpu, processes))
    return workers[-1]


def _show(shown: Progress, finished: int, workers: Iterable[WorkerProcess], counts: str) -> None:
    busy = [worker for worker in workers if worker.spec is not None and worker.busy]
    now = finished + sum(worker.steps_done() for worker in busy)
    names = [f"{Path(worker.spec.arm).stem} seed {worker.spec.seed}" for worker in busy if worker.spec is not None]
    shown.update(", ".join([counts, *names]))
    if now > shown.done:
        shown.advance(now - shown.done)
