"""The stage behind `madkit evaluate`: score what has no result yet (`cells`), then make the table.

What has a result is not scored again. So a killed evaluation goes on where it stopped, and a finished one does nothing.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from madkit.core.console import progress, warn
from madkit.core.environment import environment
from madkit.core.errors import MadkitError, NotFoundError
from madkit.core.interrupts import StopSignals
from madkit.evaluate.agreement import build_agreements
from madkit.evaluate.calibration import build_calibrations
from madkit.evaluate.cells import Cell, Scorer, result_rows, score_cell
from madkit.evaluate.cells import predictions_path as predictions_path
from madkit.evaluate.contents import about_run, sources_of
from madkit.evaluate.contents import student_digest as student_digest
from madkit.evaluate.grid import IN_DOMAIN, Group, Problem, Run, find_baseline, find_runs, group_runs, suites_of
from madkit.evaluate.kinds import Kinds, kinds_of
from madkit.evaluate.metrics import METRIC_VERSION, Scores
from madkit.evaluate.missing import missing_cells
from madkit.evaluate.origin import find_data, spec_of, warn_of_other_regions
from madkit.evaluate.protocol import Protocol, load_protocol
from madkit.evaluate.results import Results
from madkit.evaluate.robustness import build_robustness
from madkit.evaluate.scorer import StudentScorer
from madkit.evaluate.table import build_breakdowns, build_rows
from madkit.evaluate.teacher_agreement import build_teacher_agreements

if TYPE_CHECKING:
    from madkit.core.workspace import Workspace
    from madkit.evaluate.vqa_metric import VqaRule
    from madkit.tasks.data import TaskData
    from madkit.tasks.spec import TaskSpec


@dataclass(frozen=True)
class Plan:
    """What a protocol asks for: the runs there are, their data and tasks, and the cells to score.

    `data` and `specs` are by source and revision; data is None where the workspace no longer holds it, and a spec is
    absent where nobody knows the task. `problems` are what keeps runs out, `unfinished` counts runs without an end.
    """

    name: str
    protocol: Protocol
    groups: tuple[Group, ...]
    data: Mapping[tuple[str, str], TaskData | None]
    specs: Mapping[tuple[str, str], TaskSpec]
    cells: tuple[Cell, ...]
    problems: tuple[Problem, ...]
    unfinished: int

    @property
    def runs(self) -> list[Run]:
        """All runs, in the order of their groups."""
        return [run for group in self.groups for run in group.runs]


def evaluate(
    workspace: Workspace,
    protocol: str = "full",
    *,
    device: str = "auto",
    precision: str = "auto",
    vqa_rule: VqaRule = "current",
    scorer: Scorer | None = None,
    agreement: bool = False,
    failed: Mapping[str, Problem] | None = None,
) -> Results:
    """Evaluate every run that the protocol asks for, and put all results into one document.

    Args:
        workspace: holds the runs and their data; neither teacher nor cache is needed.
        protocol: a shipped name or the path of a YAML file.
        device: where the students run.
        precision: "auto", "fp32" or "bf16" (see `scorer.StudentScorer`). With "auto" answers that are there count
            whatever they were computed in; otherwise those of another precision are given anew.
        vqa_rule: version of VQA's official accuracy; predictions that are there are scored by it anew.
        scorer: scores a student folder on examples; the default is a `StudentScorer`.
        agreement: ask the teachers, from their caches, what they answer (`teacher_agreement`). What was asked once
            is told without it.
        failed: cells, by their keys, that have been tried already and are told as problems (`sharing`).

    Cells that fail (a suite without data, NaN logits, a broken run) stand in `problems`; all others are computed.

    Raises:
        NotFoundError: no such protocol, or no run in the workspace.
        UsageProblem: no such device or precision.
        StoppedResumable, KeyboardInterrupt: asked to stop; finished cells are kept.
    """
    plan = plan_of(workspace, protocol)
    scores, broken = _score_all(workspace, plan, scorer or StudentScorer(device, precision), vqa_rule, failed or {})
    scores, odd = _of_one_suite(_by_suite(scores, plan.data))
    problems = [*plan.problems, *broken, *odd, *_other_revisions(plan, scores)]
    _tell_of_precisions(scores)

    def spec_of_run(run: Run) -> TaskSpec:
        return plan.specs[run.table]

    known = [group for group in plan.groups if group.first.table in plan.specs]
    total = sum(len(suites_of(group, scores)) for group in known)
    wanted = plan.protocol
    with progress("Comparing arms", total, "cells") as bar:
        rows = build_rows(
            known,
            scores,
            spec_of=spec_of_run,
            baseline=wanted.baseline,
            resamples=wanted.resamples,
            vqa_rule=vqa_rule,
            advance=bar.advance,
        )
    return Results(
        protocol=plan.name,
        settings=wanted.model_dump(mode="json"),
        rows=tuple(rows),
        breakdowns=tuple(
            build_breakdowns(known, scores, spec_of=spec_of_run, kinds_of=_kinds(plan), vqa_rule=vqa_rule)
        ),
        calibrations=tuple(build_calibrations(known, scores, spec_of=spec_of_run)),
        robustness=tuple(build_robustness(known, scores, spec_of=spec_of_run, baseline=wanted.baseline)),
        agreements=tuple(build_agreements(known, scores)),
        teacher_agreements=tuple(build_teacher_agreements(workspace, plan, scores, ask=agreement, rule=vqa_rule)),
        sources=sources_of(plan.runs, scores, plan.data, plan.specs),
        missing=tuple(cell.as_dict() for cell in missing_cells(plan.groups, wanted)),
        problems=tuple(problem.as_dict() for problem in problems),
        runs=tuple(about_run(run, workspace) for run in plan.runs),
        environment=environment(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        unfinished=plan.unfinished,
        metric_version=METRIC_VERSION,
    )


def plan_of(workspace: Workspace, protocol: str) -> Plan:
    """Find out what a protocol asks for; nothing is scored. Raises NotFoundError, UsageProblem or ConfigError."""
    name, wanted = load_protocol(protocol)
    found, problems, unfinished = find_runs(workspace, wanted)
    groups = tuple(group_runs(found))
    runs = [run for group in groups for run in group.runs]
    data: dict[tuple[str, str], TaskData | None] = {}
    for run in runs:
        if run.table not in data:
            try:
                data[run.table] = find_data(workspace, run)
            except MadkitError as error:
                data[run.table] = None
                problems.append(Problem(run.source, error.message, error.hint))
    specs: dict[tuple[str, str], TaskSpec] = {}
    described = {run.table: run.spec for run in runs if run.spec is not None}
    cells: list[Cell] = []
    for run in runs:
        try:
            # a run that says what the task is speaks for the others on the same data
            held = data[run.table]
            specs[run.table] = spec_of(replace(run, spec=described.get(run.table)), held)
            if held is not None:
                warn_of_other_regions(run, held)
            suites = _suites(run, held, wanted)
            if not suites:
                words = f"{run.source} has no test split, so that there is nothing to score."
                problems.append(Problem(run.source, words, "give its lines a `split`, and import them again"))
            cells.extend(Cell(run, suite) for suite in suites)
        except MadkitError as error:
            problems.append(Problem(run.path.name, error.message, error.hint))
    return Plan(name, wanted, groups, data, specs, tuple(cells), tuple(problems), unfinished)


def _suites(run: Run, data: TaskData | None, protocol: Protocol) -> list[str]:
    """The suites to score a run on. Without data only those that have a result already can stand in the table.

    Raises NotFoundError without either, DataError where the run's results are damaged.
    """
    rows = result_rows(run)
    if data is None:
        held = [str(row["suite"]) for row in rows if row.get("data_revision") == run.revision]
        wanted = [suite for suite in dict.fromkeys(held) if protocol.suites == "any" or suite in protocol.suites]
        if not wanted:
            raise NotFoundError(
                f"The workspace does not hold revision {run.revision} of {run.source}, on which this run was trained.",
                hint="put that data back, or train again on the data that is there",
            )
        return wanted
    return data.suites() if protocol.suites == "any" else list(protocol.suites)


def _score_all(
    workspace: Workspace, plan: Plan, scorer: Scorer, rule: VqaRule, failed: Mapping[str, Problem]
) -> tuple[dict[tuple[Run, str], Mapping[str, Scores]], list[Problem]]:
    if isinstance(scorer, StudentScorer):
        scorer.check()
    scores: dict[tuple[Run, str], Mapping[str, Scores]] = {}
    problems: list[Problem] = []
    digests = lru_cache(maxsize=None)(student_digest)
    with StopSignals() as stop, progress("Evaluating", len(plan.cells), "run-suites") as bar:
        for cell in plan.cells:
            if stop.requested:
                raise stop.error()
            bar.update(cell.place)
            found = failed.get(cell.key) or scored(workspace, plan, cell, scorer, rule, digests)
            if isinstance(found, Problem):
                problems.append(found)
            else:
                scores[cell.run, cell.suite] = found
            bar.advance()
    return scores, problems


def scored(
    workspace: Workspace, plan: Plan, cell: Cell, scorer: Scorer, rule: VqaRule, digests: Callable[[Path], str]
) -> Mapping[str, Scores] | Problem:
    """The scores of a cell, or what is wrong with it: one that fails costs no other."""
    table = cell.run.table
    try:
        student = digests(cell.run.path)
        return score_cell(workspace, cell, plan.data[table], scorer, plan.specs[table], student, rule)
    except MadkitError as error:
        return Problem(cell.place, error.message, error.hint)
    except Exception as error:  # whatever a damaged student raises must not cost the other cells
        if os.environ.get("MADKIT_DEBUG", "0") not in ("", "0"):
            raise
        text = next(iter(str(error).splitlines()), "")
        hint = "the same command with MADKIT_DEBUG=1 shows where"
        return Problem(cell.place, f"{type(error).__name__}: {text}", hint)


def _kinds(plan: Plan) -> Callable[[Run, str], Kinds]:
    """The kinds of questions of a run's suite, each suite read once; none where its data is gone."""

    @cache
    def of(table: tuple[str, str], suite: str) -> Kinds:
        data, spec = plan.data[table], plan.specs[table]
        if data is None or spec.kind != "multiple-choice":
            return {}
        try:
            return kinds_of(spec, data.examples(suite))
        except MadkitError:  # its results are there, its questions no longer
            return {}

    return lambda run, suite: of(run.table, suite)


def _other_revisions(plan: Plan, scores: Mapping[tuple[Run, str], object]) -> list[Problem]:
    """Experiments whose baseline was trained on another revision of their data: no table compares across revisions."""
    problems = []
    arm = plan.protocol.baseline
    groups = [group for group in plan.groups if suites_of(group, scores)]
    for group in groups:
        here = group.first
        if here.arm == arm or find_baseline(group, groups, arm) is not None:
            continue
        for other in groups:
            there = other.first
            same = (there.source, there.student, there.shots) == (here.source, here.student, here.shots)
            if there.arm == arm and same and there.revision != here.revision and set(other.seeds) & set(group.seeds):
                problems.append(
                    Problem(
                        f"{here.source}, {here.shots}, {group.label}",
                        f"Its runs were trained on revision {here.revision} of {here.source}, those of {arm} on "
                        f"revision {there.revision}: their difference is not told, and they stand in two tables.",
                        "train the arms again on one revision of the data",
                    )
                )
                break
    return problems


def _by_suite(
    scores: Mapping[tuple[Run, str], Mapping[str, Scores]], data: Mapping[tuple[str, str], TaskData | None]
) -> dict[tuple[Run, str], Mapping[str, Scores]]:
    """The cells suite by suite: in-domain first, then as the data lists them, then by name.

    Everything that tells of suites follows this order. So it must not hang on which cells failed, on the order in which
    a protocol names suites, nor on that in which they were answered.
    """

    def place(cell: tuple[Run, str]) -> tuple[bool, int, str]:
        run, suite = cell
        held = data.get(run.table)
        known = held.suites() if held is not None else []
        return suite != IN_DOMAIN, known.index(suite) if suite in known else len(known), suite

    return {cell: scores[cell] for cell in sorted(scores, key=place)}


def _of_one_suite(
    scores: Mapping[tuple[Run, str], Mapping[str, Scores]],
) -> tuple[dict[tuple[Run, str], Mapping[str, Scores]], list[Problem]]:
    """The cells that answer the questions which most cells of their data and suite answer, and problems for the others.

    Only answers whose data is gone can differ: a suite was changed between them, and nobody can ask anew.
    """
    questions = {
        cell: tuple((metric, one.units) for metric, one in found.items() if "(" not in metric)
        for cell, found in scores.items()
    }
    counts: dict[tuple[tuple[str, str], str], Counter[object]] = {}
    for (run, suite), asked in questions.items():
        counts.setdefault((run.table, suite), Counter())[asked] += 1
    usual = {place: count.most_common(1)[0][0] for place, count in counts.items()}
    odd = {cell: None for cell, asked in questions.items() if asked != usual[cell[0].table, cell[1]]}
    words = "Its answers were scored on other questions than those of other runs, and the data is gone."
    hint = "put the data back, and all are asked the same"
    return (
        {cell: found for cell, found in scores.items() if cell not in odd},
        [Problem(Cell(*cell).place, words, hint) for cell in odd],
    )


def _tell_of_precisions(scores: Mapping[tuple[Run, str], Mapping[str, Scores]]) -> None:
    """Say so where answers of one source were computed in different precisions."""
    counts: dict[str, Counter[str]] = {}
    for (run, _), cell in scores.items():
        counts.setdefault(run.source, Counter())[next(iter(cell.values())).precision] += 1
    for source, by_precision in counts.items():
        if len(by_precision) > 1:
            told = " and ".join(f"{n} in {name}" for name, n in sorted(by_precision.items()))
            warn(f"Answers on {source} were computed {told}; --precision fp32 has all of them computed alike.")
