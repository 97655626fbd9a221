"""``madkit distill``: one student, fine-tuned with or without a teacher's cache."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from madkit.cli.options import CacheOption, JsonOption, WorkspaceOption
from madkit.cli.output import emit

if TYPE_CHECKING:
    from madkit.distill.stage import RunResult

EXAMPLES = """
madkit distill --task vcr --shots 1pct
madkit distill --task snli-ve --shots 200 --arm affinity --seed 1
madkit distill --task vcr --student uniter-base --init bert-base-cased --recipe paper
madkit distill --task vcr --teacher clip-vit-l14 --teacher dinov2-vit-l14+roberta-base
madkit distill --task vqa --arm mad --set mad.weight=0.3 --set optim.learning_rate=2e-4
madkit distill --sweep --task vcr --arm finetune --arm mad --shots 1pct --shots 5pct --seeds 0-4
"""

SWEEP_PANEL = "Several runs"


def distill(
    task: Annotated[
        list[str] | None,
        typer.Option("--task", metavar="TASK", help="vcr, snli-ve, vqa or an imported data set.", show_default=False),
    ] = None,
    shots: Annotated[
        list[str] | None,
        typer.Option(
            "--shots",
            metavar="SHOTS",
            help="Labelled questions: 1pct, 5pct, 10pct, a number, or full.",
            show_default="1pct",
        ),
    ] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(
            "--arm",
            metavar="ARM",
            help="finetune, finetune-long, kd-global, kd-all, mad, mad-no-selection, mad-no-confidence, "
            "mad-no-adaptation, affinity, affinity-absolute, mad-affinity, mad-affinity-labelled, soft-labels or "
            "clip-vil (madkit config show ARM), or a YAML file.",
            show_default="mad",
        ),
    ] = None,
    student: Annotated[
        list[str] | None,
        typer.Option("--student", metavar="NAME", help="Name or folder.", show_default="mini-uniter on mini data"),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            "--init",
            metavar="PATH",
            help="Weights that a student without its own begins with: a checkpoint's folder, hub name, or random.",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            metavar="NAME",
            help="Rates, lengths and batches of the student's paper: `paper`, a name, or a YAML file.",
            show_default=False,
        ),
    ] = None,
    adversarial: Annotated[
        bool, typer.Option("--adversarial", help="Attack words (and regions) while training, as VILLA does.")
    ] = False,
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            "--teacher",
            metavar="NAME",
            help="Whose cache to read; repeated, several teach at once.",
            show_default="the only cache",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", min=0, help="Equal seeds pair the arms.", show_default="0")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            metavar="N",
            min=1,
            help="Optimiser steps; those of an arm's own pre-phase are --set pre_phase.steps=N.",
            show_default="from the number of labels",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override one setting of the arm; may be repeated."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="PATH", help="A YAML file in place of a shipped arm.")
    ] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(
            "--track",
            metavar="NAME",
            help="tensorboard, wandb (offline) or another tracker beside metrics.jsonl; may be repeated.",
            show_default=False,
        ),
    ] = None,
    sweep: Annotated[
        bool,
        typer.Option(
            "--sweep",
            help="Train every combination of --task, --arm, --shots, --student (each may be repeated) and --seeds.",
            rich_help_panel=SWEEP_PANEL,
        ),
    ] = False,
    seeds: Annotated[
        str | None,
        typer.Option("--seeds", metavar="LIST", help="0-4, or 0,2,7.", show_default=False, rich_help_panel=SWEEP_PANEL),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            "--plan",
            metavar="PATH",
            help="A YAML file with the sweep, grids of settings included.",
            show_default=False,
            rich_help_panel=SWEEP_PANEL,
        ),
    ] = None,
    processes: Annotated[
        int,
        typer.Option(
            "--processes",
            metavar="N",
            min=0,
            help="Runs side by side.",
            show_default="one for each GPU, or what cores and memory bear",
            rich_help_panel=SWEEP_PANEL,
        ),
    ] = 0,
    threads: Annotated[
        int, typer.Option("--threads", metavar="N", min=0, help="Compute threads.", show_default="1 for small students")
    ] = 0,
    cache: CacheOption = None,
    workspace: WorkspaceOption = None,
    json_: JsonOption = False,
) -> None:
    """Fine-tune a student on few or many labels, with or without a teacher's tokens.

    The run goes into a folder of the workspace. Stopped or killed, the same command goes on from the last checkpoint,
    to the same losses; a finished run is left alone. So is a sweep.
    """
    from madkit.core.config import flat
    from madkit.core.errors import UsageProblem
    from madkit.core.workspace import Workspace
    from madkit.distill.settings.arms import parse_overrides
    from madkit.distill.stage import DEFAULT_ARM, DEFAULT_SHOTS
    from madkit.distill.stage import distill as train

    if config is not None and arm is not None:
        raise UsageProblem("--arm and --config both name a configuration.", hint="give one of them.")
    if seed is not None and seeds is not None:
        raise UsageProblem("--seed and --seeds both name seeds.", hint="give one of them.")
    place = Workspace.at(workspace, cache=cache)
    overrides = flat(parse_overrides(set_ or []))  # one spelling, so that a flag finds what --set says of the same
    if steps is not None:
        overrides["optim.steps"] = steps
    if adversarial:
        overrides.setdefault("adversarial.steps", 3)
    if track:
        overrides["trackers"] = track
    arms = [str(config)] if config is not None else arm or []
    if sweep or plan is not None:
        from madkit.cli.distill_sweep import sweep as run_sweep
        from madkit.distill.sweep.plan import load_plan

        dimensions: dict[str, Any] = {
            "task": task, "arm": arms, "shots": shots, "student": student, "teacher": teacher,
            "seeds": seed if seeds is None else seeds, "init": init, "recipe": recipe,
        }  # fmt: skip
        given = {name: value for name, value in dimensions.items() if value not in (None, [])}
        asked = load_plan(plan, given, overrides)
        run_sweep(place, asked, processes=processes, threads=threads, json_=json_)
        return
    for name, values in (("--task", task), ("--arm", arms), ("--shots", shots), ("--student", student)):
        if len(values or []) > 1:
            raise UsageProblem(f"{name} was given {len(values or [])} times.", hint="add --sweep to train them all")
    if seeds is not None or processes:
        raise UsageProblem(f"{'--seeds' if seeds is not None else '--processes'} is for a sweep.", hint="add --sweep")
    if not task:
        raise UsageProblem("No task was named.", hint="add --task vcr, snli-ve, vqa or an imported data set")
    result = train(
        place,
        task=task[0],
        shots=shots[0] if shots else DEFAULT_SHOTS,
        arm=arms[0] if arms else DEFAULT_ARM,
        student=student[0] if student else None,
        init=init,
        recipe=recipe,
        teacher=teacher,
        seed=seed or 0,
        config_overrides=overrides,
        threads=threads,
    )
    emit(_document(result), json_, lambda: _print(result))


def _document(result: RunResult) -> dict[str, Any]:
    names = (
        "task",
        "source",
        "student",
        "arm",
        "shots",
        "seed",
        "teacher",
        "teachers",
        "steps",
        "kept_step",
        "seconds",
    )
    untaught = result.manifest.get("examples_without_teacher", 0)
    return {
        "run": str(result.path),
        "skipped": result.skipped,
        **{name: result.manifest.get(name) for name in names},
        "examples_without_teacher": untaught,
        "dev": result.dev,
    }


def _print(result: RunResult) -> None:
    scores = ", ".join(f"{name} {value:.2f}" for name, value in result.dev.items() if name != "n")
    done = "Nothing to do: the run was complete." if result.skipped else "Done."
    source = result.manifest.get("source")
    print(f"{done} {source} development split: {scores} ({result.dev.get('n')} questions)")
    print(result.path)
