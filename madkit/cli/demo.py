"""``madkit demo``: the three stages on a part of the embedded benchmark."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from madkit.cli.options import JsonOption, WorkspaceOption
from madkit.cli.output import emit

if TYPE_CHECKING:
    from madkit.demo.stage import DemoResult

EXAMPLES = """
madkit demo
madkit demo --seeds 5 --workspace /tmp/demo
"""


def demo(
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", min=1, help="Training seeds of each arm.")] = 3,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    workspace: WorkspaceOption = None,
    json_: JsonOption = False,
) -> None:
    """Extract, distill and evaluate on pictographs: minutes on two CPU cores, no download.

    One task (mini-SNLI-VE), 200 labels, three arms: plain fine-tuning, adaptive distillation, and affinity
    distillation on unlabelled examples. What a previous call has made is not made again.
    """
    from madkit.core.workspace import Workspace
    from madkit.demo.stage import demo as run

    outcome = run(Workspace.at(workspace), seeds=seeds, device=device)
    emit(document(outcome), json_, lambda: _print(outcome))
    if outcome.results.problems:
        raise typer.Exit(1)


def document(outcome: DemoResult) -> dict[str, Any]:
    """The JSON document: one entry a headline row of the table."""
    keys = ("task", "source", "arm", "shots", "suite", "metric", "mean", "low", "high", "n_seeds", "n_examples")
    rows = [{key: getattr(row, key) for key in keys} for row in outcome.results.rows]
    return {"results": rows, "report": str(outcome.page), "seconds": round(outcome.seconds, 1)}


def _print(outcome: DemoResult) -> None:
    from madkit.cli.evaluate import print_results

    print_results(outcome.results)
    print(f"{outcome.seconds:.0f} s. Report, with a picture of test scenes: {outcome.page}")
