"""The results document: what `results.json` holds, as typed rows (schema `madkit.results/1`, docs/evaluate.md)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from madkit.core.errors import DataError

SCHEMA = "madkit.results/1"
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Difference:
    """Arm minus baseline in points, over the same seeds and examples (see statistics.PairedDifference).

    `p_holm` is `p` after Holm's correction over all comparisons of one source, student, number of labels and metric.
    `seeds` are those that both arms have.
    """

    baseline: str
    mean: float
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None
    p_images: float | None
    p_seeds: float | None
    bootstrap_low: float | None
    bootstrap_high: float | None
    seeds: tuple[int, ...]
    n_seeds: int
    n_examples: int
    n_images: int

    @property
    def significant(self) -> bool:
        """Whether the corrected p value is below 0.05."""
        return self.p_holm is not None and self.p_holm < SIGNIFICANT


@dataclass(frozen=True)
class Row:
    """One cell of a table: an experiment on a suite by a metric. Scores are percent, `difference` is in points.

    `label` is the arm, with the settings that set it apart where the workspace holds several experiments of one arm.
    `mean`, `low`, `high` are over the seeds of `per_seed`. `n_pre_phases` counts the distinct pre-phase seeds behind
    the row: fewer than `n_seeds` means that runs share one, and the interval does not hold its spread. Of `n_labelled`
    training examples the teacher's cache had no values for `n_untaught` (of the seed with most of them). `vqa_rule` is
    the version of VQA's official accuracy ("current" or "pre2021"), None where the task has none.
    """

    task: str
    source: str
    revision: str
    is_mini: bool
    student: str
    teacher: str | None
    arm: str
    label: str
    shots: str
    suite: str
    metric: str
    headline: bool
    chance: float | None
    mean: float
    low: float | None
    high: float | None
    n_seeds: int
    n_examples: int
    n_images: int
    seeds: tuple[int, ...]
    per_seed: tuple[float, ...]
    difference: Difference | None
    n_pre_phases: int | None = None
    n_labelled: int = 0
    n_untaught: int = 0
    vqa_rule: str | None = None


@dataclass(frozen=True)
class Breakdown:
    """One metric of an experiment on a suite, by kind of question (`Example.form`); told, not tested.

    `by` says what the kinds are. `mean` (over seeds, percent) and `n_examples` are by kind.
    """

    task: str
    source: str
    revision: str
    student: str
    arm: str
    label: str
    shots: str
    suite: str
    metric: str
    by: str
    seeds: tuple[int, ...]
    mean: dict[str, float]
    n_examples: dict[str, int]
    vqa_rule: str | None = None


@dataclass(frozen=True)
class Source:
    """Where the examples of a table come from. `part` names a part of the embedded benchmark, "" for all of it."""

    name: str
    task: str
    title: str
    is_mini: bool
    revision: str
    suites: tuple[str, ...]
    part: str = ""


@dataclass(frozen=True)
class Results:
    """Everything that a report shows, and nothing that it would have to look up elsewhere."""

    protocol: str
    settings: dict[str, Any]
    rows: tuple[Row, ...]
    sources: tuple[Source, ...]
    missing: tuple[dict[str, Any], ...] = ()
    problems: tuple[dict[str, Any], ...] = ()
    runs: tuple[dict[str, Any], ...] = ()
    environment: dict[str, Any] = field(default_factory=dict)
    created: str = ""
    unfinished: int = 0
    metric_version: int = 0
    breakdowns: tuple[Breakdown, ...] = ()
    schema: str = SCHEMA

    def document(self) -> dict[str, Any]:
        """Plain JSON values, `schema` and `rows` first."""
        values = asdict(self)
        return {"schema": values.pop("schema"), "rows": values.pop("rows"), **values}

    @classmethod
    def from_document(cls, document: Any, where: str = "the results document") -> Results:
        """Read what `document` wrote. Raises DataError for another schema or a damaged document."""
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            found = document.get("schema") if isinstance(document, dict) else None
            raise DataError(f"{where} has schema {found!r}; this madkit reads {SCHEMA!r}.", hint="madkit evaluate")
        try:
            later: dict[str, Any] = {"breakdowns": []}  # what documents of an earlier madkit lack
            values = {item.name: {**later, **document}[item.name] for item in fields(cls)}
            values["rows"] = tuple(_row(row) for row in values["rows"])
            values["breakdowns"] = tuple(
                Breakdown(**{**one, "seeds": tuple(one["seeds"])}) for one in values["breakdowns"]
            )
            values["sources"] = tuple(Source(**{**one, "suites": tuple(one["suites"])}) for one in values["sources"])
            for name in ("missing", "problems", "runs"):
                values[name] = tuple(values[name])
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{where} is damaged ({type(error).__name__}: {error}).", hint="run madkit evaluate again"
            ) from None


def _row(values: dict[str, Any]) -> Row:
    difference = values["difference"]
    if difference is not None:
        difference = Difference(**{**difference, "seeds": tuple(difference["seeds"])})
    row = {**values, "difference": difference}
    return Row(**{**row, "seeds": tuple(values["seeds"]), "per_seed": tuple(values["per_seed"])})
