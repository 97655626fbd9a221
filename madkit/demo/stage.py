"""extract, distill and evaluate, one after the other, on the demo part of mini-SNLI-VE."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from madkit.core.console import info
from madkit.core.workspace import Workspace
from madkit.demo.gallery import demo_gallery
from madkit.distill.sweep.sweep import RunSpec, run_many
from madkit.evaluate.report.write import write_report
from madkit.evaluate.results import Results
from madkit.evaluate.stage import evaluate
from madkit.extract.stage import extract
from madkit.tasks.data import open_task

TASK, SHOTS, PART, TEACHER = "snli-ve", "200", "demo", "mini"
ARMS = ("finetune", "mad", "affinity-absolute")
# The demo has minutes: fewer steps than the arms' own, and one pre-phase shared by all seeds (the report says so).
STEPS: dict[str, Any] = {"optim.steps": 300}
OVERRIDES = {"affinity-absolute": {**STEPS, "pre_phase.steps": 700, "pre_phase.seed": 0}}


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demo leaves: the results document, the page, and how long it took."""

    results: Results
    page: Path
    seconds: float


def demo(workspace: Workspace, *, seeds: int = 3, device: str = "auto") -> DemoResult:
    """Run the demo in a workspace; what is there already is not made again.

    Args:
        workspace: gets the data, the cache, the runs and the report.
        seeds: training seeds of each arm; intervals need at least two.
        device: where the teacher and the evaluated students run.
    """
    started = time.monotonic()
    info(f"1/3 extract: the frozen teacher {TEACHER!r} reads the images and sentences of {TASK}.")
    extract(workspace, TEACHER, [TASK], splits=["train", "test"], device=device, part=PART)
    cores = max(1, os.cpu_count() or 1)
    info(f"2/3 distill: {', '.join(ARMS)}, {SHOTS} labels, {seeds} seeds, {cores} at a time.")
    specs = [
        RunSpec(TASK, arm, SHOTS, seed, overrides=OVERRIDES.get(arm, STEPS)) for arm in ARMS for seed in range(seeds)
    ]
    # The run that makes the shared pre-phase starts first, those that wait for it come last: no core idles.
    specs.sort(key=lambda spec: spec.arm in OVERRIDES and spec.seed > 0)
    specs.sort(key=lambda spec: not (spec.arm in OVERRIDES and spec.seed == 0))
    run_many(workspace, specs, processes=min(cores, len(specs)), threads_each=1, part=PART)
    info("3/3 evaluate: in-domain, and under shift.")
    with resources.as_file(resources.files("madkit.demo") / "demo.yaml") as protocol:
        results = evaluate(workspace, str(protocol), device=device)
    data = open_task(workspace, TASK, part=PART)
    gallery = demo_gallery(workspace, data, [Path(run["path"]) for run in results.document()["runs"]])
    page = write_report(workspace.reports / "demo", results, gallery=gallery, title="madkit demo")
    return DemoResult(results, page, time.monotonic() - started)
