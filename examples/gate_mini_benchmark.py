"""Measure that the embedded benchmark can be learnt, and that labels are what is missing.

    python examples/gate_mini_benchmark.py --workspace gate --out docs/data/mini-gate.jsonl     # about an hour

The gate of the design (before any teacher enters): plain fine-tuning at 1pct is at least 6 points above chance, and
at least 15 below the score with all labels, on the development split of every task. `tests/tasks/mini/test_gate.py`
checks the committed figures against the design that they were measured on. Killed, it goes on: complete runs are not
trained again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from madkit.core.files import append_jsonl
from madkit.core.workspace import Workspace
from madkit.distill.sweep.sweep import RunReport, RunSpec, run_many
from madkit.evaluate.metrics import score
from madkit.evaluate.predict import predict
from madkit.tasks.data import open_task
from madkit.tasks.mini.concepts import concepts
from madkit.tasks.mini.visual_qa import uniform_guess

SEEDS = {"snli-ve": 2, "vqa": 4, "vcr": 2}  # VQA spreads most
# Steps of the runs with all labels; the runs at 1pct use the arm's own defaults.
FULL: dict[str, dict[str, Any]] = {
    "snli-ve": {"optim.steps": 3000},
    "vqa": {"optim.steps": 3000},
    "vcr": {"optim.steps": 2000},
}
METRIC = {"snli-ve": "accuracy", "vqa": "accuracy", "vcr": "Q->AR"}
CHANCE = {"snli-ve": 100 / 3, "vqa": 100 * uniform_guess(range(len(concepts()))), "vcr": 6.25}


def main() -> None:
    """Train what is missing, write one line a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--tasks", nargs="*", default=list(METRIC))
    args = parser.parse_args()
    workspace = Workspace.at(args.workspace)
    specs = [RunSpec(task, "finetune", "full", 0, overrides=FULL[task]) for task in args.tasks]
    specs += [
        RunSpec(task, "finetune", "1pct", seed, overrides={}) for task in args.tasks for seed in range(SEEDS[task])
    ]
    reports: list[RunReport] = run_many(workspace, specs, processes=args.processes, threads_each=1, part="full")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.unlink(missing_ok=True)
    for report in reports:
        spec, data = report.spec, open_task(workspace, report.spec.task)
        # The whole development split; training itself looks at half of it.
        answers = predict(report.path / "student", data.examples("dev"), data.regions(), device="cpu")
        scores = score(data.spec, answers)
        append_jsonl(
            args.out,
            {
                "task": spec.task,
                "revision": data.revision,
                "shots": spec.shots,
                "seed": spec.seed,
                "overrides": dict(spec.overrides),
                "metric": METRIC[spec.task],
                "chance": round(CHANCE[spec.task], 2),
                "dev": {name: round(one.percent, 2) for name, one in scores.items()},
                "questions": len(scores[METRIC[spec.task]].units),
            },
        )


if __name__ == "__main__":
    main()
