"""The results document: what `results.json` holds, as typed rows (schema `madkit.results/1`, docs/evaluate.md)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from madkit.core.errors import DataError
from madkit.evaluate.experiment import Condition, Experiment

SCHEMA = "madkit.results/1"
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Difference:
    """Arm minus baseline in points, over the same seeds and examples (see statistics.PairedDifference).

    `p_holm` is `p` after Holm's correction over all comparisons of one source, student, number of labels and metric.
    `seeds` are those that both arms have. `variance`: of the mean, by its sources (statistics.VarianceParts).
    `n_comparisons`: how many Holm's correction counted. `seeds_needed`: how many seeds would show this difference with
    power 0.8 at the level 0.05 / `n_comparisons` (power.seeds_needed); None where it is shown, where there is nothing
    to go by (one seed, no difference), or where 1,000 seeds would not do, because the test set is too small.
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
    variance: dict[str, float] | None = None
    n_comparisons: int | None = None
    seeds_needed: int | None = None

    @property
    def significant(self) -> bool:
        """Whether the corrected p value is below 0.05."""
        return self.p_holm is not None and self.p_holm < SIGNIFICANT

    @property
    def hopeless(self) -> bool:
        """Whether no number of seeds would show this difference: not on so few images."""
        known = self.n_comparisons is not None and not self.significant and self.mean != 0
        return known and self.seeds_needed is None


@dataclass(frozen=True)
class Row(Experiment):
    """One cell of a table: an experiment on a suite by a metric. Scores are percent, `difference` is in points.

    `mean`, `low`, `high` are over the seeds of `per_seed`. `n_pre_phases` counts the distinct pre-phase seeds behind
    the row: fewer than `n_seeds` means that runs share one, and the interval does not hold its spread. Of `n_labelled`
    training examples the teacher's cache had no values for `n_untaught` (of the seed with most of them). `vqa_rule` is
    the version of VQA's official accuracy ("current" or "pre2021"), None where the task has none. `precision` is what
    the answers were computed in: "fp32", "bf16", or both where seeds differ ("bf16, fp32"). `steps` with labels, of
    `batch_size` examples each, are what the runs were trained for.
    """

    is_mini: bool
    teacher: str | None
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
    precision: str = "fp32"
    steps: int | None = None
    batch_size: int | None = None


@dataclass(frozen=True)
class Breakdown(Experiment):
    """One metric of an experiment on a suite, by kind of question (`Example.form`); told, not tested.

    `by` says what the kinds are. `mean` (over seeds, percent) and `n_examples` are by kind.
    """

    suite: str
    metric: str
    by: str
    seeds: tuple[int, ...]
    mean: dict[str, float]
    n_examples: dict[str, int]
    vqa_rule: str | None = None


@dataclass(frozen=True)
class Calibration(Experiment):
    """How well the probabilities of an experiment's answers to a suite fit its scores (see calibration.py).

    `ece` is in points, `brier` as it is; both are means over seeds with Student's interval. `brier_of` says which
    probabilities are compared. `confidence` and `score` are the mean probability and the mean score of the answers in
    percent, `bins` the reliability diagram over all seeds (calibration.Bin, 0..1).
    """

    suite: str
    metric: str
    seeds: tuple[int, ...]
    n_examples: int
    ece: float
    ece_low: float | None
    ece_high: float | None
    ece_per_seed: tuple[float, ...]
    brier: float
    brier_low: float | None
    brier_high: float | None
    brier_per_seed: tuple[float, ...]
    brier_of: str
    confidence: float
    score: float
    n_bins: int
    bins: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Robustness(Experiment):
    """What an experiment loses under a shift, and whether that is more or less than its in-domain score lets expect.

    `gap` is the score on `suite` minus that on `in_domain`, in points, over seeds. `effective` is the effective
    robustness (robustness.py): the score on `suite` minus what the line of the `baseline` arm's runs foretells from the
    in-domain score; None without a line. `line` holds `slope`, `intercept` (of logits), `n_runs`, `shots` and `r2`;
    `beyond`: the in-domain score lies outside those of the line's runs. `gap_difference` is `gap` minus the baseline's
    over common seeds, paired.
    """

    suite: str
    in_domain: str
    metric: str
    baseline: str
    seeds: tuple[int, ...]
    in_domain_score: float
    shifted_score: float
    gap: float
    gap_low: float | None
    gap_high: float | None
    gap_difference: float | None
    gap_difference_low: float | None
    gap_difference_high: float | None
    effective: float | None
    effective_low: float | None
    effective_high: float | None
    effective_per_seed: tuple[float, ...]
    line: dict[str, Any] | None
    beyond: bool


@dataclass(frozen=True)
class Agreement(Condition):
    """How often two experiments give the same answer to a question, in percent, over common seeds.

    `first_better` and `second_better` are the shares of questions on which one scores more than the other. Where
    `first` and `second` are the same experiment, its seeds are compared with each other, and there is no interval.
    """

    suite: str
    metric: str
    first: str
    second: str
    seeds: tuple[int, ...]
    n_examples: int
    mean: float
    low: float | None
    high: float | None
    first_better: float
    second_better: float


@dataclass(frozen=True)
class TeacherAgreement(Experiment):
    """How often an experiment answers a question as a teacher does, in percent (see teacher_agreement.py).

    `teacher` is the experiment's own, or one of the other arms' where it has none. `method` says how it was asked:
    "zero-shot" or "probe". `when_right` and `when_wrong` are the shares where the teacher is right or wrong, None where
    it never is; `teacher_score` is its own score on these questions. All are means over seeds; `mean` has Student's
    interval. `n_examples`: questions that the teacher's cache knows.
    """

    suite: str
    metric: str
    teacher: str
    method: str
    seeds: tuple[int, ...]
    n_examples: int
    mean: float
    low: float | None
    high: float | None
    per_seed: tuple[float, ...]
    when_right: float | None
    when_wrong: float | None
    teacher_score: float


@dataclass(frozen=True)
class Published:
    """A result quoted from a publication or its code, in percent; nothing that madkit measured.

    `split` is the split it is for, `metrics` name the values. `source` says where the figure was read, `url` where that
    is.
    """

    task: str
    data: str
    model: str
    split: str
    metrics: dict[str, float]
    source: str
    url: str
    note: str = ""


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
    calibrations: tuple[Calibration, ...] = ()
    robustness: tuple[Robustness, ...] = ()
    agreements: tuple[Agreement, ...] = ()
    teacher_agreements: tuple[TeacherAgreement, ...] = ()
    published: tuple[Published, ...] = ()
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
            later: dict[str, Any] = {name: [] for name in _PARTS}  # what documents of an earlier madkit lack
            values = {item.name: {**later, **document}[item.name] for item in fields(cls)}
            values["rows"] = tuple(read_row(row) for row in values["rows"])
            for name, made in _PARTS.items():
                values[name] = tuple(made(**_tuples(one)) for one in values[name])
            values["sources"] = tuple(Source(**_tuples(one)) for one in values["sources"])
            for name in ("missing", "problems", "runs"):
                values[name] = tuple(values[name])
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{where} is damaged ({type(error).__name__}: {error}).", hint="run madkit evaluate again"
            ) from None


_PARTS: dict[str, Callable[..., Any]] = {
    "breakdowns": Breakdown,
    "calibrations": Calibration,
    "robustness": Robustness,
    "agreements": Agreement,
    "teacher_agreements": TeacherAgreement,
    "published": Published,
}


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def read_row(values: dict[str, Any]) -> Row:
    """One row of a document (KeyError or TypeError for one that lacks or has more than a row's fields)."""
    difference = values["difference"]
    if difference is not None:
        difference = Difference(**{**difference, "seeds": tuple(difference["seeds"])})
    row = {**values, "difference": difference}
    return Row(**{**row, "seeds": tuple(values["seeds"]), "per_seed": tuple(values["per_seed"])})
