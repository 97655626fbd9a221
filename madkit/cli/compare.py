"""``madkit compare``: two runs on the same questions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from madkit.cli.evaluate import Precision, PrecisionOption, Rule, VqaRuleOption
from madkit.cli.options import CacheOption, JsonOption, WorkspaceOption
from madkit.cli.output import emit, print_table

if TYPE_CHECKING:
    from madkit.evaluate.compare import Comparison, Disagreement

EXAMPLES = """
madkit compare mini-uniter-finetune-1pct-s0-b68db180 mini-uniter-mad-1pct-s0-5e1eb323
madkit compare RUN_A RUN_B --suite test --limit 20
madkit compare RUN_A RUN_B --json
"""
SETTINGS = 8


def compare(
    run_a: Annotated[str, typer.Argument(metavar="RUN_A", help="A run's folder, or its name in the workspace.")],
    run_b: Annotated[str, typer.Argument(metavar="RUN_B", help="Another run on the same data.")],
    suite: Annotated[
        list[str] | None,
        typer.Option("--suite", metavar="NAME", help="Only this suite; may be repeated.", show_default="all"),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=0, help="Differing examples to show of each suite; 0: all.")
    ] = 5,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: PrecisionOption = Precision.auto,
    vqa_rule: VqaRuleOption = Rule.current,
    cache: CacheOption = None,
    workspace: WorkspaceOption = None,
    json_: JsonOption = False,
) -> None:
    """Compare two runs on the same suites: B minus A, its interval and tests, and where their answers differ.

    What a run has not answered yet is answered first. The interval and p are for new images and these two students;
    what other seeds would do is told by `madkit evaluate`, over several runs of each arm.
    """
    from madkit.core.console import warn
    from madkit.core.workspace import Workspace
    from madkit.evaluate.compare import compare as run

    found = run(
        Workspace.at(workspace, cache=cache),
        run_a,
        run_b,
        suites=suite or (),
        limit=limit,
        device=device,
        precision=precision.value,
        vqa_rule=vqa_rule.value,
    )
    emit(found.document(), json_, lambda: _print(found))
    for problem in found.problems:
        hint = f" Try: {problem['hint']}" if problem["hint"] else ""
        warn(f"{problem['where']}: {problem['error']}{hint}")
    if found.problems:
        raise typer.Exit(1)


def _print(found: Comparison) -> None:
    from madkit.evaluate.report.text import arrows, interval, p_value, with_sign

    print(f"A  {found.first}")
    print(f"B  {found.second}")
    rule = f", VQA rule {found.vqa_rule}" if found.vqa_rule else ""
    print(f"{found.source}, revision {found.revision}{', embedded benchmark' if found.is_mini else ''}{rule}")
    for key, (one, other) in list(found.settings.items())[:SETTINGS]:
        print(f"  {key}: {_short(one)} | {_short(other)}")
    if len(found.settings) > SETTINGS:
        print(f"  and {len(found.settings) - SETTINGS} more settings (--json)")
    print()
    rows = [
        (
            one.suite,
            arrows(one.metric),
            f"{one.first:.1f}",
            f"{one.second:.1f}",
            with_sign(one.difference),
            "" if one.low is None else interval(one.low, one.high, signed=True),
            p_value(one.p_holm),
            p_value(one.p_images),
        )
        for one in found.metrics
    ]
    if not rows:  # no suite could be answered by both: what is wrong is said on stderr
        return
    print_table(("suite", "metric", "A", "B", "B - A", "95 %", "p", "flips"), rows, right={2, 3, 4, 6, 7})
    print()
    print("Percent; B - A in points. 95 % and p (after Holm over the suites) are for new")
    print("images and these two students; flips: permutation test over images.")
    print()
    shares = [
        (
            one.suite,
            f"{one.same:.1f}",
            "" if one.kappa is None else f"{one.kappa:.2f}",
            f"{one.first_better:.1f}",
            f"{one.second_better:.1f}",
            f"{one.n_questions:,}",
        )
        for one in found.agreements
    ]
    print_table(("suite", "same answer", "kappa", "A better", "B better", "questions"), shares, right={1, 2, 3, 4, 5})
    _print_kinds(found)
    for one in found.examples:
        _print_example(one)


def _print_kinds(found: Comparison) -> None:
    """The breakdowns of the first suite; the others are in the JSON."""
    from madkit.evaluate.report.text import arrows, with_sign

    here = [one for one in found.kinds if one.suite == found.metrics[0].suite] if found.metrics else []
    for by, metric in dict.fromkeys((one.by, one.metric) for one in here):
        rows = [
            (
                one.kind,
                f"{one.first:.1f}",
                f"{one.second:.1f}",
                with_sign(one.second - one.first),
                f"{one.n_examples:,}",
            )
            for one in here
            if (one.by, one.metric) == (by, metric)
        ]
        print()
        print_table((f"{arrows(metric)} by {by}, {here[0].suite}", "A", "B", "B - A", "n"), rows, right={1, 2, 3, 4})


def _print_example(one: Disagreement) -> None:
    about = f" ({one.subtask})" if one.subtask else ""
    print()
    print(f"{one.suite}  {one.id}{about}  image {one.image}")
    print(f"  {one.text}")
    print(f"  A {_mark(one.first_score)} {one.first}")
    print(f"  B {_mark(one.second_score)} {one.second}")
    print(f"  truth: {one.truth}")


def _mark(score: float) -> str:
    return "right:" if score == 1 else "wrong:" if score == 0 else f"{score:.2f}: "


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 30 else f"{text[:29]}…"
