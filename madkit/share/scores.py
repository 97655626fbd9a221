"""What a run scored, for its card: its own figures, and the interval over seeds where an evaluation has one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from madkit.core.errors import MadkitError
from madkit.core.files import read_json, read_jsonl
from madkit.evaluate.results import Results
from madkit.evaluate.stage import student_digest

if TYPE_CHECKING:
    from madkit.evaluate.grid import Run
    from madkit.evaluate.results import Row
    from madkit.tasks.spec import TaskSpec

_SAME = 5e-4  # results.jsonl keeps four decimals of a percentage


@dataclass(frozen=True, slots=True)
class Score:
    """One metric of a run on one suite.

    Attributes:
        suite: the test suite.
        metric: its name.
        percent: this run's score.
        n_examples: examples behind it.
        vqa_rule: version of VQA's official accuracy, None where the task has none.
        mean: mean over `seeds`, in percent; None where no evaluation compared several seeds.
        low: lower end of the mean's 95 % interval.
        high: its upper end.
        seeds: the seeds behind the mean.
    """

    suite: str
    metric: str
    percent: float
    n_examples: int
    vqa_rule: str | None = None
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    seeds: tuple[int, ...] = ()


def scores_of(run: Run, spec: TaskSpec, reports: Path) -> list[Score]:
    """The scores of the student that a run holds now, in-domain test first; none before it was evaluated.

    Args:
        run: a complete run.
        spec: its task, whose metrics are told.
        reports: folder of the workspace's reports, each with a `results.json`.

    Raises DataError for a damaged `results.jsonl`. Reports that cannot be read give no intervals, and nothing else.
    """
    path = run.path / "results.jsonl"
    if not path.is_file():
        return []
    student = student_digest(run.path)
    newest: dict[tuple[str, str | None], dict[str, Any]] = {}
    for row in read_jsonl(path):
        if row.get("student_digest") == student and isinstance(row.get("metrics"), dict):
            newest[str(row.get("suite")), row.get("vqa_rule")] = row  # appended later: of a later metric version
    rows = sorted(newest.items(), key=lambda item: item[0][0] != "test")
    found = list(_report_rows(run, reports))
    return [
        _over_seeds(
            Score(suite, metric, float(row["metrics"][metric]), int(row.get("n_examples", 0)), rule), run.seed, found
        )
        for (suite, rule), row in rows
        for metric in spec.metrics
        if metric in row["metrics"]
    ]


def _report_rows(run: Run, reports: Path) -> Iterator[Row]:
    """Rows of all reports that may be of this run's experiment."""
    for path in sorted(reports.glob("*/results.json")):
        try:
            results = Results.from_document(read_json(path), str(path))
        except MadkitError:  # of another version, or half-written: a card needs no intervals
            continue
        for row in results.rows:
            here = (row.source, row.revision, row.student, row.arm, row.shots)
            if here == (*run.table, run.student, run.arm, run.shots) and run.seed in row.seeds:
                yield row


def _over_seeds(score: Score, seed: int, rows: list[Row]) -> Score:
    """The score with mean and interval of the report's row that holds this very figure for this seed.

    A workspace may hold several experiments of one arm, so the figure itself says which row is meant. Of several
    reports the one with the most seeds counts; two different rows that fit equally give nothing.
    """
    fitting = {
        (row.mean, row.low, row.high, row.seeds)
        for row in rows
        if (row.suite, row.metric, row.vqa_rule) == (score.suite, score.metric, score.vqa_rule)
        and row.low is not None
        and row.high is not None
        and abs(row.per_seed[row.seeds.index(seed)] - score.percent) < _SAME
    }
    most = max((len(seeds) for *_, seeds in fitting), default=0)
    best = [one for one in fitting if len(one[3]) == most]
    if len(best) != 1:
        return score
    mean, low, high, seeds = best[0]
    return replace(score, mean=mean, low=low, high=high, seeds=seeds)
