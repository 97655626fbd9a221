"""``madkit adapt``: fine-tune a teacher on the training subset before it reads everything."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from madkit.cli.elsewhere import placed
from madkit.cli.options import JsonOption, WorkspaceOption
from madkit.cli.output import emit, print_table

if TYPE_CHECKING:
    from madkit.adapt.stage import AdaptResult

EXAMPLES = """
madkit adapt --teacher mini --task vcr --shots 5pct
madkit adapt --teacher clip-vit-l14 --task vcr --shots 1pct --train heads
madkit adapt --teacher dinov2-vit-b14+roberta-base --task vqa --set lora.rank=16
madkit extract --adapter mini-mini-vcr-5pct-lora-s0-1a2b3c4d --task vcr
"""


class Train(StrEnum):
    """What of a teacher is trained."""

    heads = "heads"
    lora = "lora"
    all = "all"


def adapt(
    teacher: Annotated[
        str, typer.Option("--teacher", metavar="NAME", help="See: madkit teachers list.", show_default=False)
    ],
    task: Annotated[
        str,
        typer.Option("--task", metavar="TASK", help="vcr, snli-ve, vqa or an imported data set.", show_default=False),
    ],
    shots: Annotated[
        str,
        typer.Option(
            "--shots", metavar="SHOTS", help="Labelled questions: 1pct, 5pct, 10pct, a number, full, or list:NAME."
        ),
    ] = "1pct",
    train: Annotated[
        Train | None,
        typer.Option("--train", metavar="WHAT", help="heads (projections), lora, or all weights.", show_default="lora"),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", min=0, help="Equal to the distillation's for equal questions.")
    ] = 0,
    steps: Annotated[
        int | None,
        typer.Option("--steps", metavar="N", min=1, help="Optimiser steps.", show_default="from the number of labels"),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override one setting; may be repeated."),
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", metavar="PATH", help="A YAML file with settings.")] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Name of the run.", show_default="from what it is")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", metavar="PATH", help="Weight file or folder, in place of the hub's."),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[
        int, typer.Option("--threads", metavar="N", min=0, help="Compute threads.", show_default="all cores")
    ] = 0,
    workspace: WorkspaceOption = None,
    json_: JsonOption = False,
) -> None:
    """Fine-tune a teacher on the training subset of a task, so that images find their texts.

    The outcome lies in the workspace; give its name to `madkit extract --adapter RUN`. The development split chooses
    the step; where none is better than the untouched teacher, that one is kept. Stopped or killed, the same command
    goes on from the last checkpoint.
    """
    from madkit.adapt.stage import adapt as run
    from madkit.core.workspace import Workspace
    from madkit.distill.settings.arms import parse_overrides

    overrides: dict[str, Any] = parse_overrides(set_ or [])
    if train is not None:
        overrides["train"] = train.value
    if steps is not None:
        overrides["optim.steps"] = steps
    result = run(
        Workspace.at(workspace),
        teacher=teacher,
        task=task,
        shots=shots,
        seed=seed,
        config=config,
        overrides=overrides,
        weights=weights,
        device=device,
        name=name,
        threads=threads,
    )
    emit(_document(result), json_, lambda: _print(result))


def _document(result: AdaptResult) -> dict[str, Any]:
    names = ("name", "teacher", "task", "source", "shots", "seed", "untouched", "outcome", "steps", "kept_step")
    more = ("before", "after", "train", "looks", "adapter", "windowed_texts", "unreadable", "seconds")
    return {
        "run": str(result.path),
        "skipped": result.skipped,
        **{key: result.manifest.get(key) for key in (*names, *more)},
    }


def _print(result: AdaptResult) -> None:
    manifest = result.manifest
    print_table(
        ["step", "train", "dev", "dev retrieval", "dev loss", ""],
        [
            [
                row["step"],
                _share(row["train"]["accuracy"]),
                _share(row["dev"]["accuracy"]),
                _share(row["dev"]["retrieval"]),
                f"{row['dev']['loss']:.3f}",
                "kept" if row["step"] == manifest["kept_step"] else "",
            ]
            for row in manifest["looks"]
        ],
        right=range(5),
    )
    done = "Nothing to do: the adaptation was complete." if result.skipped else "Done:"
    print(f"{done} {manifest['outcome']}.")
    if manifest["kept_step"] == manifest["steps"] == manifest["config"]["optim"]["steps"]:
        print(f"The last step is the best one, so more may be better: --set optim.steps={2 * manifest['steps']}")
    if not manifest["untouched"]:
        task = manifest["source"].removeprefix("mini-")
        print(placed(f"Next: madkit extract --adapter {manifest['name']} --task {task}"))
    print(result.path)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
