"""Two runs on the same questions: what each scores, where they differ, and whether that can be chance.

Two runs are two students. The interval of their difference and its p value are for new images and these very students;
what another seed would do is for arms to tell, over several seeds (`madkit evaluate`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from madkit.core.console import warn
from madkit.core.errors import MadkitError, NotFoundError, UsageProblem
from madkit.core.files import read_jsonl
from madkit.core.later_keys import LATER
from madkit.evaluate.agreement import kappa, same_answers
from madkit.evaluate.answering import check_split
from madkit.evaluate.cells import Cell, Scorer, predictions_path, score_cell
from madkit.evaluate.contents import student_digest
from madkit.evaluate.grid import Problem
from madkit.evaluate.metrics import score_key
from madkit.evaluate.origin import find_data, find_run, spec_of, warn_of_other_regions
from madkit.evaluate.scorer import StudentScorer
from madkit.evaluate.statistics import holm, image_difference
from madkit.tasks.picture import numbered

if TYPE_CHECKING:
    from madkit.core.workspace import Workspace
    from madkit.evaluate.grid import Run
    from madkit.evaluate.metrics import Scores
    from madkit.evaluate.vqa_metric import VqaRule
    from madkit.tasks.example import Example
    from madkit.tasks.spec import TaskSpec

SCHEMA = "madkit.comparison/1"
EXAMPLES = 10


@dataclass(frozen=True)
class MetricGap:
    """Both scores by one metric on one suite in percent, and `second` minus `first` in points.

    `low`, `high` and `p` are for new images, `p_holm` is `p` after Holm's correction over the suites, `p_images` that
    of the permutation test (sign flips over images). All None where the suite has one image.
    """

    suite: str
    metric: str
    headline: bool
    first: float
    second: float
    difference: float
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None
    p_images: float | None
    n_examples: int
    n_images: int


@dataclass(frozen=True)
class KindGap:
    """Both scores on one kind of question in percent; `by` says what the kinds are. Told, not tested."""

    suite: str
    metric: str
    by: str
    kind: str
    first: float
    second: float
    n_examples: int


@dataclass(frozen=True)
class SuiteAgreement:
    """How often both give the same answer (percent; `kappa`: Cohen's), by the suite's headline metric.

    `first_better` and `second_better`: percent of questions on which one scores more; `n_different`: how many examples
    (of VCR: answers and rationales, each for itself) are answered differently.
    """

    suite: str
    metric: str
    same: float
    kappa: float | None
    first_better: float
    second_better: float
    n_questions: int
    n_different: int


@dataclass(frozen=True)
class Disagreement:
    """An example that the two answer differently: ids, texts, both answers, the truth, and both scores (0..1)."""

    suite: str
    id: str
    question_id: str
    image: str
    subtask: str
    text: str
    candidates: tuple[str, ...]
    first: str
    second: str
    truth: str
    first_score: float
    second_score: float


@dataclass(frozen=True)
class Comparison:
    """Everything that `madkit compare` tells. `settings`: what was chosen differently, dotted key -> both values."""

    first: str
    second: str
    task: str
    source: str
    revision: str
    is_mini: bool
    settings: dict[str, tuple[Any, Any]]
    metrics: tuple[MetricGap, ...]
    kinds: tuple[KindGap, ...]
    agreements: tuple[SuiteAgreement, ...]
    examples: tuple[Disagreement, ...]
    problems: tuple[dict[str, Any], ...] = ()
    vqa_rule: str | None = None

    def document(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"schema": SCHEMA, **asdict(self)}


def compare(
    workspace: Workspace,
    first: str,
    second: str,
    *,
    suites: Sequence[str] = (),
    limit: int = EXAMPLES,
    device: str = "auto",
    precision: str = "auto",
    vqa_rule: VqaRule = "current",
    resamples: int = 2000,
    scorer: Scorer | None = None,
) -> Comparison:
    """Compare two runs on test suites of the data that both were trained on; what is not answered yet is answered.

    Args:
        workspace: holds the runs and their data.
        first: a run's folder, or its name in the workspace.
        second: another run's.
        suites: names of suites; none for all that the data has.
        limit: how many differing examples of a suite are listed, those that change a score first; 0 for all.
        device: where the students run.
        precision: see `stage.evaluate`.
        vqa_rule: version of VQA's official accuracy.
        resamples: draws of the permutation test.
        scorer: see `stage.evaluate`.

    Raises:
        NotFoundError: no such run, or its data is gone.
        UsageProblem: the same run twice, runs on different data, or a suite that the data lacks.
        RunError: a run that is not finished.
    """
    runs = find_run(workspace, first), find_run(workspace, second)
    _check(*runs)
    data = find_data(workspace, runs[0])
    if data is None:
        raise NotFoundError(
            f"The workspace does not hold revision {runs[0].revision} of {runs[0].source}, on which both were trained.",
            hint="put that data back",
        )
    for run in runs:
        warn_of_other_regions(run, data)
    for suite in suites:
        check_split(data, suite)
    spec = spec_of(runs[0], data)
    metrics: list[MetricGap] = []
    kinds: list[KindGap] = []
    agreements: list[SuiteAgreement] = []
    examples: list[Disagreement] = []
    problems: list[Problem] = []
    students = scorer or StudentScorer(device, precision)
    for suite in dict.fromkeys(suites or data.suites()):
        try:
            one, other = (
                score_cell(workspace, Cell(run, suite), data, students, spec, student_digest(run.path), vqa_rule)
                for run in runs
            )
        except MadkitError as error:
            problems.append(Problem(suite, error.message, error.hint))
            continue
        first_in, second_in = (next(iter(scores.values())).precision for scores in (one, other))
        if first_in != second_in:
            warn(f"On {suite} A answered in {first_in} and B in {second_in}; --precision fp32 has both answer alike.")
        metrics += _metrics(suite, spec, one, other, resamples=resamples)
        kinds += _kinds(suite, spec, one, other)
        rows = [{str(row["id"]): row for row in read_jsonl(predictions_path(run, suite))} for run in runs]
        found = _disagreements(suite, spec, data.examples(suite), rows[0], rows[1], score_key(spec, vqa_rule))
        agreements.append(_agreement(suite, one, other, n_different=len(found)))
        examples += found[:limit] if limit else found
    return Comparison(
        first=f"{runs[0].source}/{runs[0].path.name}",
        second=f"{runs[1].source}/{runs[1].path.name}",
        task=spec.name,
        source=data.source,
        revision=data.revision,
        is_mini=runs[0].is_mini,
        settings=_settings(*runs),
        metrics=tuple(_corrected(metrics)),
        kinds=tuple(kinds),
        agreements=tuple(agreements),
        examples=tuple(examples),
        problems=tuple(problem.as_dict() for problem in problems),
        vqa_rule=vqa_rule if spec.kind == "vqa" else None,
    )


def _check(first: Run, second: Run) -> None:
    if first.path.resolve() == second.path.resolve():
        raise UsageProblem(f"Both are the run {first.path.name}.", hint="name two runs: madkit compare RUN_A RUN_B")
    if first.table != second.table:
        here, there = (f"{run.source} (revision {run.revision})" for run in (first, second))
        raise UsageProblem(
            f"{first.path.name} was trained on {here}, {second.path.name} on {there}; they answer different questions.",
            hint="compare runs of one data set and revision",
        )


def _settings(first: Run, second: Run) -> dict[str, tuple[Any, Any]]:
    """What differs, dotted key -> both values; a section that one of them lacks is one entry."""
    names = ("student", "arm", "shots", "seed", "teacher")
    chosen = [{**{name: getattr(run, name) for name in names}, **run.config} for run in (first, second)]
    hidden = {"student_digest", "cache_key"}  # follow from the others
    keys = dict.fromkeys([*names, *sorted(key for one in chosen for key in one if key not in hidden)])
    found: dict[str, tuple[Any, Any]] = {}
    for key in keys:
        pair = (chosen[0].get(key, LATER.get(key)), chosen[1].get(key, LATER.get(key)))
        whole = [any(other.startswith(f"{key}.") for other in one) for one in chosen]
        if any(whole):
            found[key] = ("given" if whole[0] else pair[0], "given" if whole[1] else pair[1])
        elif pair[0] != pair[1] and key.partition(".")[0] not in found:
            found[key] = pair
    return {key: pair for key, pair in found.items() if pair[0] != pair[1]}


def _metrics(
    suite: str, spec: TaskSpec, first: Mapping[str, Scores], second: Mapping[str, Scores], *, resamples: int
) -> list[MetricGap]:
    made = []
    for position, metric in enumerate(first):
        if metric not in spec.metrics:
            continue
        one, other = first[metric], second[metric]
        found = image_difference(other.values * 100, one.values * 100, one.images, resamples=resamples)
        made.append(
            MetricGap(
                suite=suite,
                metric=metric,
                headline=position == 0,
                first=one.percent,
                second=other.percent,
                difference=found.mean,
                low=found.low,
                high=found.high,
                p=found.p,
                p_holm=None,
                p_images=found.p_images,
                n_examples=found.n_examples,
                n_images=found.n_images,
            )
        )
    return made


def _corrected(metrics: Sequence[MetricGap]) -> list[MetricGap]:
    """Holm over the suites, metric by metric, as in the tables of `madkit evaluate`."""
    corrected = list(metrics)
    for metric in {one.metric for one in metrics}:
        members = [index for index, one in enumerate(metrics) if one.metric == metric and one.p is not None]
        adjusted = holm([p for index in members if (p := metrics[index].p) is not None])
        for index, p in zip(members, adjusted, strict=True):
            corrected[index] = replace(metrics[index], p_holm=p)
    return corrected


def _kinds(suite: str, spec: TaskSpec, first: Mapping[str, Scores], second: Mapping[str, Scores]) -> list[KindGap]:
    made = []
    part = "label" if spec.kind == "classification" else "answer type"
    for metric, one in first.items():
        other = second.get(metric)
        if other is None:
            continue
        if metric not in spec.metrics:
            whole, _, kind = metric.removesuffix(")").partition(" (")
            made.append(KindGap(suite, whole, part, kind, one.percent, other.percent, len(one.units)))
            continue
        theirs = other.by_form()
        for kind, (percent, n) in one.by_form().items():
            made.append(KindGap(suite, metric, "question type", kind, percent, theirs[kind][0], n))
    return made


def _agreement(
    suite: str, first: Mapping[str, Scores], second: Mapping[str, Scores], *, n_different: int
) -> SuiteAgreement:
    metric = next(iter(first))
    one, other = first[metric], second[metric]
    return SuiteAgreement(
        suite=suite,
        metric=metric,
        same=100 * same_answers(one.answers, other.answers),
        kappa=kappa(one.answers, other.answers),
        first_better=100 * float(np.mean(one.values > other.values)),
        second_better=100 * float(np.mean(one.values < other.values)),
        n_questions=len(one.units),
        n_different=n_different,
    )


def _disagreements(
    suite: str,
    spec: TaskSpec,
    examples: Sequence[Example],
    first: Mapping[str, Mapping[str, Any]],
    second: Mapping[str, Mapping[str, Any]],
    key: str,
) -> list[Disagreement]:
    """Examples with different answers: those that change a score first, otherwise in the order of the data."""
    made = []
    for example in examples:
        one, other = first[example.id], second[example.id]
        if one["prediction"] == other["prediction"]:
            continue
        made.append(
            Disagreement(
                suite=suite,
                id=example.id,
                question_id=example.question_id,
                image=example.image.id,
                subtask=example.subtask,
                text=" ".join(map(numbered, example.context)),
                candidates=tuple(map(numbered, example.candidates)),
                first=_answer(spec, example, one["prediction"]),
                second=_answer(spec, example, other["prediction"]),
                truth=_truth(spec, example),
                first_score=float(one[key]),
                second_score=float(other[key]),
            )
        )
    return sorted(made, key=lambda one: -abs(one.first_score - one.second_score))


def _answer(spec: TaskSpec, example: Example, prediction: Any) -> str:
    """An answer in words: the candidate's text, the class's name, or what was said."""
    if isinstance(prediction, str):
        return prediction
    index = int(prediction)
    if example.candidates:
        return numbered(example.candidates[index])
    return spec.labels[index] if index < len(spec.labels) else str(index)


def _truth(spec: TaskSpec, example: Example) -> str:
    if example.label is not None:
        return _answer(spec, example, example.label)
    if example.annotations:
        said = Counter(example.annotations).most_common(3)
        return ", ".join(f"{answer} ({count})" if len(said) > 1 else answer for answer, count in said)
    return max(example.answers, key=lambda answer: (example.answers or {})[answer]) if example.answers else ""
