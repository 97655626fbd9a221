"""One `distill.sweep.worker` process as its sweep sees it: asked for runs, watched, ended."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from madkit.core.workspace import Workspace

GRACE_S = 60.0


@dataclass(frozen=True, slots=True)
class RunSpec:
    """One run of a sweep; the arguments of `stage.distill`."""

    task: str
    arm: str
    shots: str = "1pct"
    seed: int = 0
    student: str | None = None
    teacher: str | Sequence[str] | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    init: str | None = None
    recipe: str | None = None

    @property
    def title(self) -> str:
        """The run in a few words."""
        return f"{self.task} {self.arm} {self.shots} seed {self.seed}"


@dataclass(frozen=True, slots=True)
class Plan:
    """Where a run's data comes from, and its steps before and in training; for the display."""

    source: str
    before: int
    steps: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.before + self.steps


class WorkerProcess:
    """A `distill.sweep.worker` process. Its answers and words go to files, so that no pipe fills up.

    It ends with the process that started it, however that ends: it watches its stdin, which then closes.

    Args:
        threads: compute threads; 0 for `distill`'s own choice.
        gpu: the one device that it sees, as CUDA_VISIBLE_DEVICES has it; None: all.
        beside: how many such processes share the machine's memory, this one among them.
    """

    def __init__(self, threads: int, gpu: str | None = None, beside: int = 1) -> None:
        self.threads = threads
        self.beside = beside
        self.gpu = gpu
        self.number: int | None = None
        self.spec: RunSpec | None = None
        self._read = 0
        self._out = tempfile.TemporaryFile()  # noqa: SIM115  # closed in `stop`
        self._err = tempfile.TemporaryFile()  # noqa: SIM115
        variables = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)} if threads else {}
        if gpu is not None:
            variables["CUDA_VISIBLE_DEVICES"] = gpu
        self._process = subprocess.Popen(
            [sys.executable, "-m", "madkit.distill.sweep.worker"],
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

    def ask(self, number: int, spec: RunSpec, plan: Plan, workspace: Workspace, part: str) -> None:
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
            "init": spec.init,
            "recipe": spec.recipe,
            "teacher": spec.teacher if spec.teacher is None or isinstance(spec.teacher, str) else list(spec.teacher),
            "seed": spec.seed,
            "config_overrides": dict(spec.overrides),
            "threads": self.threads,
            "part": part,
            "beside": self.beside,
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
