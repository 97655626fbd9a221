"""The stage behind `madkit evaluate`: score what has no result yet, then make the table.

A result is one row of the run's `results.jsonl` with the digests of the student, the suite and the metric version that
it belongs to, appended only after `predictions/<suite>.jsonl` lies complete on disk. A row whose digests no longer
agree is not used. So a killed evaluation goes on where it stopped, and a finished one does nothing. Where only the
metric changed (its version, or VQA's rule), the predictions on disk are scored again and no student runs.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from madkit.core.console import progress
from madkit.core.environment import environment
from madkit.core.errors import MadkitError, NotFoundError, RunError, UsageProblem
from madkit.core.files import FileLock, append_jsonl, digest_of, read_jsonl, sha256_file, write_text_atomic
from madkit.core.interrupts import StopSignals
from madkit.evaluate.agreement import build_agreements
from madkit.evaluate.calibration import build_calibrations
from madkit.evaluate.contents import about_run, sources_of
from madkit.evaluate.contents import student_digest as student_digest
from madkit.evaluate.grid import Problem, Run, find_runs, group_runs, suites_of
from madkit.evaluate.metrics import METRIC_VERSION, Scores, prediction_row, score
from madkit.evaluate.missing import missing_cells
from madkit.evaluate.origin import find_data, spec_of, warn_of_other_regions
from madkit.evaluate.protocol import Protocol, load_protocol
from madkit.evaluate.results import Results
from madkit.evaluate.robustness import build_robustness
from madkit.evaluate.sight import regions_of_run
from madkit.evaluate.table import build_breakdowns, build_rows

if TYPE_CHECKING:
    from madkit.core.workspace import Workspace
    from madkit.evaluate.vqa_metric import VqaRule
    from madkit.regions import RegionReader
    from madkit.tasks.data import TaskData
    from madkit.tasks.example import Example
    from madkit.tasks.spec import TaskSpec

RESULT_SCHEMA = 1

# (student folder, examples, region features, task) -> one prediction row per example (metrics.prediction_row)
Scorer = Callable[[Path, "Sequence[Example]", "RegionReader | None", "TaskSpec"], list[dict[str, Any]]]


@dataclass(frozen=True)
class Cell:
    """A run and a suite to score it on."""

    run: Run
    suite: str

    @property
    def place(self) -> str:
        """For messages."""
        return f"{self.run.path.name} on {self.suite}"


def evaluate(
    workspace: Workspace,
    protocol: str = "full",
    *,
    device: str = "auto",
    vqa_rule: VqaRule = "current",
    scorer: Scorer | None = None,
) -> Results:
    """Evaluate every run that the protocol asks for, and put all results into one document.

    Args:
        workspace: holds the runs and their data; neither teacher nor cache is read.
        protocol: a shipped name or the path of a YAML file.
        device: where the students run.
        vqa_rule: version of VQA's official accuracy; predictions that are there are scored by it anew.
        scorer: scores a student folder on examples; the default is `madkit.evaluate.predict.predict`.

    Cells that fail (a suite without data, NaN logits, a broken run) stand in `problems`; all others are computed.

    Raises:
        NotFoundError: no such protocol, or no run in the workspace.
        StoppedResumable, KeyboardInterrupt: asked to stop; finished cells are kept.
    """
    name, wanted = load_protocol(protocol)
    runs, problems, unfinished = find_runs(workspace, wanted)
    groups = group_runs(runs)
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
            cells.extend(Cell(run, suite) for suite in _suites(run, data[run.table], wanted))
        except MadkitError as error:
            problems.append(Problem(run.path.name, error.message, error.hint))
    scores, failed = _score_all(workspace, cells, data, specs, scorer or default_scorer(device), vqa_rule)
    problems += failed

    def spec_of_run(run: Run) -> TaskSpec:
        return specs[run.table]

    known = [group for group in groups if group.first.table in specs]
    total = sum(len(suites_of(group, scores)) for group in known)
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
        protocol=name,
        settings=wanted.model_dump(mode="json"),
        rows=tuple(rows),
        breakdowns=tuple(build_breakdowns(known, scores, spec_of=spec_of_run, vqa_rule=vqa_rule)),
        calibrations=tuple(build_calibrations(known, scores, spec_of=spec_of_run)),
        robustness=tuple(build_robustness(known, scores, spec_of=spec_of_run, baseline=wanted.baseline)),
        agreements=tuple(build_agreements(known, scores)),
        sources=sources_of(runs, scores, data, specs),
        missing=tuple(cell.as_dict() for cell in missing_cells(groups, wanted)),
        problems=tuple(problem.as_dict() for problem in problems),
        runs=tuple(about_run(run, workspace) for run in runs),
        environment=environment(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        unfinished=unfinished,
        metric_version=METRIC_VERSION,
    )


def _suites(run: Run, data: TaskData | None, protocol: Protocol) -> list[str]:
    """The suites to score a run on. Without data only those that have a result already can stand in the table."""
    if data is None:
        held = [str(row["suite"]) for row in _rows_of(run) if row.get("data_revision") == run.revision]
        wanted = [suite for suite in dict.fromkeys(held) if protocol.suites == "any" or suite in protocol.suites]
        if not wanted:
            raise NotFoundError(
                f"The workspace does not hold revision {run.revision} of {run.source}, on which this run was trained.",
                hint="put that data back, or train again on the data that is there",
            )
        return wanted
    return data.suites() if protocol.suites == "any" else list(protocol.suites)


def _score_all(
    workspace: Workspace,
    cells: Sequence[Cell],
    data: Mapping[tuple[str, str], TaskData | None],
    specs: Mapping[tuple[str, str], TaskSpec],
    scorer: Scorer,
    rule: VqaRule,
) -> tuple[dict[tuple[Run, str], Mapping[str, Scores]], list[Problem]]:
    scores: dict[tuple[Run, str], Mapping[str, Scores]] = {}
    problems: list[Problem] = []
    digests = lru_cache(maxsize=None)(student_digest)
    with StopSignals() as stop, progress("Evaluating", len(cells), "run-suites") as bar:
        for cell in cells:
            if stop.requested:
                raise stop.error()
            bar.update(cell.place)
            try:
                scores[cell.run, cell.suite] = score_cell(
                    workspace, cell, data[cell.run.table], scorer, specs[cell.run.table], digests(cell.run.path), rule
                )
            except MadkitError as error:
                problems.append(Problem(cell.place, error.message, error.hint))
            except Exception as error:  # whatever a damaged student raises must not cost the other cells
                if os.environ.get("MADKIT_DEBUG", "0") not in ("", "0"):
                    raise
                text = next(iter(str(error).splitlines()), "")
                hint = "the same command with MADKIT_DEBUG=1 shows where"
                problems.append(Problem(cell.place, f"{type(error).__name__}: {text}", hint))
            bar.advance()
    return scores, problems


def suite_digest(run: Run, suite: str, data: TaskData) -> str:
    """16 hex digits over what a student reads of a suite: its own revision, as it may come later than the data, and the
    region features where they were added.
    """
    regions = data.region_digest(suite)
    return digest_of([run.source, run.revision, suite, data.suite_revision(suite), *([regions] if regions else [])])


def _rows_of(run: Run) -> list[dict[str, Any]]:
    path = run.path / "results.jsonl"
    return read_jsonl(path) if path.exists() else []


def predictions_path(run: Run, suite: str) -> Path:
    """Where the answers of a run to a suite lie."""
    return run.path / "predictions" / f"{suite}.jsonl"


def score_cell(
    workspace: Workspace,
    cell: Cell,
    data: TaskData | None,
    scorer: Scorer,
    spec: TaskSpec,
    student: str,
    rule: VqaRule = "current",
) -> dict[str, Scores]:
    """The scores of one run on one suite: from its predictions where they are there, else the student answers first.

    What is new is kept: predictions first, then the row of `results.jsonl` that vouches for them. Without data only
    predictions that were scored by this metric version count.
    """
    if cell.suite.startswith("submission"):
        raise UsageProblem(
            f"{cell.suite} is an official test set without labels, not a suite.",
            hint=f"madkit predict {cell.run.path.name} --split {cell.suite}",
        )
    answered = _answered(cell, student, data)
    if answered is not None:
        row, rows = answered
        wanted = {"metric_version": METRIC_VERSION, **_rule_entry(spec, rule)}
        if row["metric_version"] == METRIC_VERSION:
            scores = score(spec, rows, rule)
            if not any(
                other.get("predictions_sha256") == row["predictions_sha256"]
                and all(other.get(key) == value for key, value in wanted.items())
                for other in _rows_of(cell.run)
            ):
                append_jsonl(cell.run.path / "results.jsonl", {**row, "metrics": _rounded(scores), **wanted})
            return scores
    if data is None:
        raise NotFoundError(
            f"The workspace does not hold revision {cell.run.revision} of {cell.run.source}.",
            hint="put that data back, or train again on the data that is there",
        )
    examples = data.examples(cell.suite)
    started = time.perf_counter()
    with FileLock(cell.run.path / ".evaluate.lock", what=f"{cell.run.path.name} (another evaluation)"):
        fresh = _again(answered[1], examples) if answered is not None else None
        if fresh is None:
            key, folder = str(cell.run.config.get("cache_key")), cell.run.path / "student"
            with regions_of_run(workspace, folder, key, data, cell.suite) as regions:
                fresh = scorer(folder, examples, regions, spec)
        rows = fresh
        _check(rows, len(examples))
        scores = score(spec, rows, rule)
        path = predictions_path(cell.run, cell.suite)
        write_text_atomic(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
        append_jsonl(
            cell.run.path / "results.jsonl",
            {
                "schema": RESULT_SCHEMA,
                "suite": cell.suite,
                "task": cell.run.task,
                "source": cell.run.source,
                "data_revision": cell.run.revision,
                "metrics": _rounded(scores),
                "n_examples": len(rows),
                "student_digest": student,
                "suite_digest": suite_digest(cell.run, cell.suite, data),
                "metric_version": METRIC_VERSION,
                **_rule_entry(spec, rule),
                "predictions_sha256": sha256_file(path),
                "seconds": round(time.perf_counter() - started, 3),
            },
        )
    return scores


def _rule_entry(spec: TaskSpec, rule: VqaRule) -> dict[str, Any]:
    return {"vqa_rule": rule} if spec.kind == "vqa" else {}


def _rounded(scores: Mapping[str, Scores]) -> dict[str, float]:
    return {name: round(one.percent, 4) for name, one in scores.items()}


def _answered(cell: Cell, student: str, data: TaskData | None) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
    """The row and the predictions of a cell that this student has answered already, None where it has not."""
    wanted: dict[str, Any] = {"schema": RESULT_SCHEMA, "suite": cell.suite, "student_digest": student}
    if data is None:
        wanted["data_revision"] = cell.run.revision
    else:
        wanted["suite_digest"] = suite_digest(cell.run, cell.suite, data)
    path = predictions_path(cell.run, cell.suite)
    for row in reversed(_rows_of(cell.run)):
        if all(row.get(key) == value for key, value in wanted.items()):
            if path.is_file() and sha256_file(path) == row.get("predictions_sha256"):
                return row, read_jsonl(path)
            return None
    return None


def _again(rows: Sequence[Mapping[str, Any]], examples: Sequence[Example]) -> list[dict[str, Any]] | None:
    """Answers of an earlier metric version with this version's fields; None where they are of other examples."""
    held = {str(row["id"]): row for row in rows}
    if len(held) != len(examples):
        return None
    made = []
    for example in examples:
        row = held.get(example.id)
        if row is None:
            return None
        made.append({**row, **prediction_row(example, row["logits"], row["prediction"])})
    return made


def _check(rows: Sequence[Mapping[str, Any]], n_examples: int) -> None:
    if len(rows) != n_examples:
        raise RunError(f"The student answered {len(rows)} of {n_examples} examples.")
    broken = sum(not all(math.isfinite(value) for value in row["logits"]) for row in rows)
    if broken:
        raise RunError(
            f"The student gives NaN or infinite logits on {broken} of {n_examples} examples.",
            hint="look at the losses in the run's metrics.jsonl; a lower learning rate usually mends it",
        )


def default_scorer(device: str) -> Scorer:
    """The students themselves, on a device ("auto": the GPU where there is one)."""

    def scorer(
        student: Path, examples: Sequence[Example], regions: RegionReader | None, spec: TaskSpec
    ) -> list[dict[str, Any]]:
        from madkit.evaluate.predict import predict  # torch: only where there is something to score

        return predict(student, examples, regions, spec=spec, device=device)

    return scorer
