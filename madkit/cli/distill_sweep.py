"""``madkit distill --sweep``: the runs that are missing, side by side, and one table at the end."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from madkit.cli.elsewhere import placed
from madkit.cli.output import emit, print_table

if TYPE_CHECKING:
    from madkit.core.workspace import Workspace
    from madkit.distill.sweep.plan import SweepPlan
    from madkit.distill.sweep.sweep import RunReport


def sweep(workspace: Workspace, plan: SweepPlan, *, processes: int, threads: int, json_: bool) -> None:
    """Train what is missing of `plan` and print its table; runs that failed are named at the end (exit code 1)."""
    from madkit.core.console import counted, info
    from madkit.core.errors import RunError, UsageProblem
    from madkit.core.launcher import world_size
    from madkit.distill.sweep.fitting import fit
    from madkit.distill.sweep.sweep import run_many

    if world_size() > 1:
        raise UsageProblem("A sweep starts its own processes.", hint="start it without torchrun or accelerate launch")
    specs = plan.specs()
    say_left_out(plan.left_out())
    files = [Path(name) / "model.safetensors" for name in plan.student]
    largest = max((file.stat().st_size for file in files if file.is_file()), default=0)
    fitting = fit(len(specs), threads or 1, student_bytes=largest)
    count = min(processes or fitting.processes, len(specs))
    why = "" if processes else f" ({fitting.reason})"
    info(f"{counted(len(specs), 'runs')}, {count} at a time{why}; what is complete is left alone.")
    reports: list[RunReport] = []
    problem: RunError | None = None
    gpus = fitting.gpus if len(fitting.gpus) > 1 or count > 1 else ()
    try:
        run_many(
            workspace, specs, processes=count, threads_each=threads or 1, gpus=gpus, on_done=reports.append
        )  # fmt: skip
    except RunError as error:
        problem = error
    place = {id(spec): number for number, spec in enumerate(specs)}
    reports.sort(key=lambda report: place[id(report.spec)])
    rows = summarise(plan, reports)
    document = {
        "runs": [_run(plan, report) for report in reports],
        "rows": rows,
        "asked": len(specs),
        "problem": None if problem is None else problem.message,
    }
    emit(document, json_, lambda: _print(rows))
    if problem is not None:
        raise problem


def say_left_out(found: Mapping[str, Sequence[str]]) -> None:
    """Name the settings that are not for all of the arms that share them, and the arms that are trained without."""
    from madkit.core.console import info
    from madkit.distill.settings.arms import section_of

    for key, arms in found.items():
        have, they_are = ("has", "it is") if len(arms) == 1 else ("have", "they are")
        names = f"{', '.join(arms[:-1])} and {arms[-1]}" if len(arms) > 1 else arms[0]
        lacking = {"teachers": "teacher"}.get(section_of(key), section_of(key))
        info(f"{key} is not for {names}, which {have} no {lacking}: {they_are} trained without it.")


def summarise(plan: SweepPlan, reports: list[RunReport]) -> list[dict[str, Any]]:
    """One row for each combination that differs in more than its seed: mean and deviation of the headline score."""
    groups: dict[tuple[Any, ...], dict[Path, RunReport]] = {}
    for report in reports:
        spec = report.spec
        tried = tuple(f"{key}={value}" for key, value in plan.tried(spec).items())
        group = groups.setdefault((spec.task, spec.shots, spec.student, spec.arm, tried), {})
        if report.path not in group or not report.skipped:  # one run asked for in two ways counts once
            group[report.path] = report
    rows: list[dict[str, Any]] = []
    for (task, shots, student, arm, tried), runs in groups.items():
        found = list(runs.values())
        metric = next((name for name in found[0].dev if name != "n"), "")
        scores = [float(report.dev[metric]) for report in found if metric in report.dev]
        rows.append(
            {
                "task": task,
                "source": found[0].path.parent.name,
                "shots": shots,
                "student": student,
                "arm": arm,
                "settings": list(tried),
                "metric": metric,
                "mean": round(statistics.fmean(scores), 3) if scores else None,
                "sd": round(statistics.stdev(scores), 3) if len(scores) > 1 else None,
                "seeds": [report.spec.seed for report in found],
                "trained": sum(not report.skipped for report in found),
            }
        )
    return rows


def _run(plan: SweepPlan, report: RunReport) -> dict[str, Any]:
    spec = report.spec
    return {
        "run": str(report.path),
        "skipped": report.skipped,
        "task": spec.task,
        "shots": spec.shots,
        "arm": spec.arm,
        "seed": spec.seed,
        "student": spec.student,
        "settings": plan.tried(spec),
        "dev": report.dev,
    }


def _print(rows: list[dict[str, Any]]) -> None:
    from madkit.core.console import counted

    if not rows:
        return
    several = len({row["student"] for row in rows}) > 1
    tried = any(row["settings"] for row in rows)
    headers = ["data", "shots", *(["student"] if several else []), "arm", *(["settings"] if tried else [])]
    cells = []
    for row in rows:
        spread = "" if row["sd"] is None else f" ± {row['sd']:.2f}"
        cells.append(
            [
                row["source"],
                row["shots"],
                *([Path(row["student"] or "").name] if several else []),
                Path(row["arm"]).stem,
                *(["\n".join(row["settings"])] if tried else []),
                row["metric"],
                "-" if row["mean"] is None else f"{row['mean']:.2f}{spread}",
                len(row["seeds"]),
            ]
        )
    print_table([*headers, "dev score", "mean ± sd", "seeds"], cells, right={len(headers) + 1, len(headers) + 2})
    trained = sum(row["trained"] for row in rows)
    count = sum(len(row["seeds"]) for row in rows)
    done = f"{trained} of {counted(count, 'runs')} trained now."
    print(placed(f"{done} Intervals, test suites and shifts: madkit evaluate"))
