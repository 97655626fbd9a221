"""One cell of the grid: a run's answers to a suite and their scores, from disk where they are there.

A result is one row of the run's `results.jsonl` with the digests of the student, the suite and the metric version that
it belongs to, appended only after `predictions/<suite>.jsonl` lies complete on disk. A row whose digests no longer
agree is not used. Where only the metric changed (its version, or VQA's rule), the predictions on disk are scored again
and no student runs.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from madkit.core.console import counted
from madkit.core.errors import DataError, NotFoundError, RunError, UsageProblem
from madkit.core.files import FileLock, append_jsonl, digest_of, read_jsonl, sha256_file, write_text_atomic
from madkit.evaluate.grid import Run
from madkit.evaluate.metrics import METRIC_VERSION, Scores, prediction_row, score
from madkit.evaluate.sight import regions_of_run

if TYPE_CHECKING:
    from madkit.core.workspace import Workspace
    from madkit.evaluate.vqa_metric import VqaRule
    from madkit.regions import RegionReader
    from madkit.tasks.data import TaskData
    from madkit.tasks.example import Example
    from madkit.tasks.spec import TaskSpec

RESULT_SCHEMA = 1
BEFORE = "fp32"  # what results were made in that do not say
ROWS_PATIENCE_S = 60.0

# (student folder, examples, region features, task) -> one prediction row per example (metrics.prediction_row).
# Its attributes `precision` (what its answers are computed in) and `wanted` (the one that held answers must have, None
# for any) stand for "fp32" and None where it has none.
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

    @property
    def key(self) -> str:
        """Its name among all cells of a workspace."""
        return f"{self.run.source}/{self.run.path.name}/{self.suite}"


def suite_digest(run: Run, suite: str, data: TaskData) -> str:
    """16 hex digits over what a student reads of a suite: its own revision, as it may come later than the data, and the
    region features where they were added.
    """
    regions = data.region_digest(suite)
    return digest_of([run.source, run.revision, suite, data.suite_revision(suite), *([regions] if regions else [])])


def result_rows(run: Run) -> list[dict[str, Any]]:
    """The rows of a run's `results.jsonl`, oldest first. Raises DataError, naming the line, where one is damaged."""
    path = run.path / "results.jsonl"
    try:
        return read_jsonl(path) if path.exists() else []
    except DataError as error:
        raise DataError(error.message, hint=f"remove the file, and the run is scored again: rm {path}") from None


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
    predictions that were scored by this metric version count. Where the scorer wants a precision, answers that were
    given in another are given anew.
    """
    if cell.suite.startswith("submission"):
        raise UsageProblem(
            f"{cell.suite} is an official test set without labels, not a suite.",
            hint=f"madkit predict {cell.run.path.name} --split {cell.suite}",
        )
    answered = _answered(cell, student, data, getattr(scorer, "wanted", None))
    if answered is not None:
        row, rows = answered
        wanted = {"metric_version": METRIC_VERSION, **_rule_entry(spec, rule)}
        if row["metric_version"] == METRIC_VERSION:
            scores = score(spec, rows, rule)
            if not any(
                other.get("predictions_sha256") == row["predictions_sha256"]
                and all(other.get(key) == value for key, value in wanted.items())
                for other in result_rows(cell.run)
            ):
                _append(cell.run, {**row, "metrics": _rounded(scores), **wanted})
            return _told(scores, row)
    if data is None:
        raise NotFoundError(
            f"The workspace does not hold revision {cell.run.revision} of {cell.run.source}.",
            hint="put that data back, or train again on the data that is there",
        )
    examples = data.examples(cell.suite)
    started = time.perf_counter()
    with FileLock(cell.run.path / f".evaluate-{cell.suite}.lock", what=f"{cell.place} (another evaluation)"):
        fresh = _again(answered[1], examples) if answered is not None else None
        if fresh is not None and answered is not None:
            precision = answered[0].get("precision", BEFORE)
        else:
            key, folder = str(cell.run.config.get("cache_key")), cell.run.path / "student"
            with regions_of_run(workspace, folder, key, data, cell.suite) as regions:
                fresh = scorer(folder, examples, regions, spec)
            precision = getattr(scorer, "precision", BEFORE)
        _check(fresh, len(examples))
        scores = score(spec, fresh, rule)
        path = predictions_path(cell.run, cell.suite)
        write_text_atomic(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in fresh))
        row = {
            "schema": RESULT_SCHEMA,
            "suite": cell.suite,
            "task": cell.run.task,
            "source": cell.run.source,
            "data_revision": cell.run.revision,
            "metrics": _rounded(scores),
            "n_examples": len(fresh),
            "student_digest": student,
            "suite_digest": suite_digest(cell.run, cell.suite, data),
            "metric_version": METRIC_VERSION,
            **_rule_entry(spec, rule),
            "precision": precision,
            "predictions_sha256": sha256_file(path),
            "seconds": round(time.perf_counter() - started, 3),
        }
        _append(cell.run, row)
    return _told(scores, row)


def is_answered(cell: Cell, student: str, data: TaskData | None, scorer: Scorer) -> bool:
    """Whether the answers of a cell lie on disk, so that no student has to run."""
    return _answered(cell, student, data, getattr(scorer, "wanted", None)) is not None


def _append(run: Run, row: Mapping[str, Any]) -> None:
    """Append a row to `results.jsonl`, waiting for others who do: suites of one run can be answered at once."""
    lock = FileLock(run.path / ".results.lock", what=f"results.jsonl of {run.path.name}", patience_s=ROWS_PATIENCE_S)
    with lock:
        append_jsonl(run.path / "results.jsonl", row)


def _told(scores: Mapping[str, Scores], row: Mapping[str, Any]) -> dict[str, Scores]:
    """Scores with the precision that their row tells."""
    precision = str(row.get("precision", BEFORE))
    return {name: replace(one, precision=precision) for name, one in scores.items()}


def _rule_entry(spec: TaskSpec, rule: VqaRule) -> dict[str, Any]:
    return {"vqa_rule": rule} if spec.kind == "vqa" else {}


def _rounded(scores: Mapping[str, Scores]) -> dict[str, float]:
    return {name: round(one.percent, 4) for name, one in scores.items()}


def _answered(
    cell: Cell, student: str, data: TaskData | None, precision: str | None
) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
    """The row and the predictions of a cell that this student has answered already, None where it has not."""
    wanted: dict[str, Any] = {"schema": RESULT_SCHEMA, "suite": cell.suite, "student_digest": student}
    if data is None:
        wanted["data_revision"] = cell.run.revision
    else:
        wanted["suite_digest"] = suite_digest(cell.run, cell.suite, data)
    path = predictions_path(cell.run, cell.suite)
    for row in reversed(result_rows(cell.run)):
        if all(row.get(key) == value for key, value in wanted.items()):
            if path.is_file() and sha256_file(path) == row.get("predictions_sha256"):
                fits = precision is None or row.get("precision", BEFORE) == precision
                return (row, read_jsonl(path)) if fits else None
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
        raise RunError(f"The student answered {len(rows):,} of {counted(n_examples, 'examples')}.")
    broken = sum(not all(math.isfinite(value) for value in row["logits"]) for row in rows)
    if broken:
        raise RunError(
            f"The student gives NaN or infinite logits on {broken:,} of {counted(n_examples, 'examples')}.",
            hint="look at the losses in the run's metrics.jsonl; a lower learning rate usually mends it",
        )
