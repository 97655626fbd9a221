"""Agreement with the teacher: how often a student answers as its teacher does, where the teacher's cache is at hand.

What is found of a run is kept as rows of its `agreement.jsonl`, each with a digest of the answers that it belongs to.
Rows that fit are told by every later evaluation; new ones are made where they are asked for, because a probe on a large
training set takes minutes. Runs without a teacher are laid beside the teachers of the other arms on the same data, with
the same student and labels: what is agreed on without being taught is what the others have to be read against.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from madkit.core.console import progress, warn
from madkit.core.errors import MadkitError
from madkit.core.files import append_jsonl, digest_of, read_json, read_jsonl
from madkit.evaluate.grid import Group, Run, suites_of
from madkit.evaluate.metrics import METRIC_VERSION, Scores, score
from madkit.evaluate.results import TeacherAgreement
from madkit.evaluate.statistics import mean_interval

if TYPE_CHECKING:
    from madkit.core.workspace import Workspace
    from madkit.evaluate.stage import Plan
    from madkit.evaluate.table import ScoreTable
    from madkit.evaluate.teacher_answers import TeacherAnswers
    from madkit.evaluate.vqa_metric import VqaRule

FILE = "agreement.jsonl"
SCHEMA = 1
FOLDS = 5
METHODS = ("zero-shot", "probe")  # as in teacher_answers, which imports torch


@dataclass(frozen=True)
class Asked:
    """A teacher to lay beside a run: its name, and the cache, or caches, that speak for it."""

    teacher: str
    cache_key: str


def build_teacher_agreements(
    workspace: Workspace, plan: Plan, scores: ScoreTable, *, ask: bool, rule: VqaRule = "current"
) -> list[TeacherAgreement]:
    """Agreement of every experiment with its teacher on every suite.

    Args:
        workspace: with the caches.
        plan: the runs, their data and tasks.
        scores: by run and suite.
        ask: whether teachers are asked for what is not there yet; otherwise only kept rows are told.
        rule: VQA's, for the teacher's own score.

    Teachers that cannot be asked (no cache, a suite that the cache was made without) are told as warnings, and cost
    nothing else.
    """
    teachers = _Teachers(workspace, plan)
    groups = [group for group in plan.groups if group.first.table in plan.specs]
    beside = _beside(groups)
    made: list[TeacherAgreement] = []
    total = sum(len(suites_of(group, scores)) for group in groups) if ask else 0
    with progress("Asking teachers", total, "cells") as bar, teachers:
        for group in groups:
            for suite in suites_of(group, scores):
                for teacher, asked in beside[id(group)].items():
                    rows: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
                    for run in group.runs:
                        if run.seed in asked and (run, suite) in scores:
                            one = Asked(teacher, asked[run.seed])
                            for row in _rows(teachers, run, suite, one, scores[run, suite], ask=ask, rule=rule):
                                rows.setdefault((row["method"], row["metric"]), {})[run.seed] = row
                    made += [_told(group, suite, teacher, *key, by_seed) for key, by_seed in rows.items()]
                if ask:
                    bar.advance()
    return made


def _beside(groups: Sequence[Group]) -> dict[int, dict[str, dict[int, str]]]:
    """By group: teacher -> seed -> cache key. A group without a teacher has all teachers of its condition."""
    found: dict[int, dict[str, dict[int, str]]] = {}
    for group in groups:
        kin = [group]
        if group.first.teacher is None:
            kin = [other for other in groups if other.condition() == group.condition()]
        asked: dict[str, dict[int, str]] = {}
        for other in kin:
            for run in other.runs:
                key = run.config.get("cache_key")
                if run.teacher is not None and key is not None:
                    asked.setdefault(run.teacher, {}).setdefault(run.seed, str(key))
        for by_seed in asked.values():
            if len(set(by_seed.values())) == 1:  # one cache for all seeds, those without a run of the teacher's, too
                by_seed |= dict.fromkeys(group.seeds, next(iter(by_seed.values())))
        found[id(group)] = asked
    return found


def _rows(
    teachers: _Teachers,
    run: Run,
    suite: str,
    asked: Asked,
    scores: Mapping[str, Scores],
    *,
    ask: bool,
    rule: VqaRule,
) -> Iterator[dict[str, Any]]:
    """The rows of a run, suite and teacher, kept or new, by method and metric."""
    spec = teachers.plan.specs[run.table]
    kept = read_jsonl(run.path / FILE) if (run.path / FILE).is_file() else []
    for method in METHODS:
        theirs: Mapping[str, Scores] | None = None
        for metric, ours in scores.items():
            if metric not in spec.metrics:
                continue
            about = {
                "schema": SCHEMA,
                "suite": suite,
                "metric": metric,
                "teacher": asked.teacher,
                "cache_key": asked.cache_key,
                "method": method,
                "metric_version": METRIC_VERSION,
                "vqa_rule": rule if spec.kind == "vqa" else None,
                "answers": digest_of([list(ours.units), [str(one) for one in ours.answers]]),
            }
            row = next((one for one in reversed(kept) if about.items() <= one.items()), None)
            if row is None and ask:
                theirs = teachers.scores(run, suite, asked.cache_key, method, rule) if theirs is None else theirs
                if metric in theirs:
                    row = {**about, **_compared(ours, theirs[metric])}
                    append_jsonl(run.path / FILE, row)
            if row is not None:
                yield row


def _compared(ours: Scores, theirs: Scores) -> dict[str, Any]:
    """Shares in percent, over the questions that both have answered; `when_*` is None where there is no such one."""
    place = {unit: index for index, unit in enumerate(theirs.units)}
    pairs = [(index, place[unit]) for index, unit in enumerate(ours.units) if unit in place]
    same = np.array([ours.answers[a] == theirs.answers[b] for a, b in pairs])
    taught = np.array([theirs.values[b] for _, b in pairs])
    right, wrong = taught >= 0.5, taught < 0.5  # soft scores of VQA: right where three of ten say so
    return {
        "same": 100 * float(same.mean()),
        "when_right": 100 * float(same[right].mean()) if right.any() else None,
        "when_wrong": 100 * float(same[wrong].mean()) if wrong.any() else None,
        "teacher_score": 100 * float(taught.mean()),
        "n_examples": len(pairs),
    }


def _told(
    group: Group, suite: str, teacher: str, method: str, metric: str, by_seed: Mapping[int, Mapping[str, Any]]
) -> TeacherAgreement:
    shares = {seed: float(row["same"]) for seed, row in sorted(by_seed.items())}
    interval = mean_interval(list(shares.values()))

    def mean(name: str) -> float | None:
        values = [float(row[name]) for row in by_seed.values() if row[name] is not None]
        return float(np.mean(values)) if values else None

    score = mean("teacher_score")
    assert score is not None
    return TeacherAgreement(
        **group.about(),
        suite=suite,
        metric=metric,
        teacher=teacher,
        method=method,
        seeds=tuple(shares),
        n_examples=min(int(row["n_examples"]) for row in by_seed.values()),
        mean=interval.mean,
        low=interval.low,
        high=interval.high,
        per_seed=tuple(shares.values()),
        when_right=mean("when_right"),
        when_wrong=mean("when_wrong"),
        teacher_score=score,
    )


class _Teachers(ExitStack):
    """The teachers of a plan's runs: each is asked once for a subset and a suite, however many runs want to know."""

    def __init__(self, workspace: Workspace, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self._workspace = workspace
        self._open: dict[str, Any] = {}
        self._answers: dict[tuple[str, ...], TeacherAnswers] = {}
        self._scores: dict[tuple[str, ...], Mapping[str, Scores]] = {}
        self._said: set[str] = set()

    def scores(self, run: Run, suite: str, cache_key: str, method: str, rule: VqaRule) -> Mapping[str, Scores]:
        """What the teacher scores, by metric; empty, with a warning, where it cannot be asked."""
        head = read_json(run.path / "student" / "config.json").get("head", {})
        how = {
            "outputs": head.get("outputs", ()) if self.plan.specs[run.table].kind == "vqa" else (),
            "match": run.config.get("answer_match") or "normalized",
            "folds": int(run.config.get("confidence.folds") or FOLDS),
            "seed": run.seed,
        }
        about = (*run.table, run.shots, cache_key, digest_of(how))
        key = (*about, suite, method, rule)
        if key not in self._scores:
            try:
                self._scores[key] = self._ask(run, suite, cache_key, method, rule, about, how)
            except MadkitError as error:
                self._scores[key] = {}
                if error.message not in self._said:
                    self._said.add(error.message)
                    warn(f"{run.teacher or 'The teacher'} cannot be asked about {run.source}, {suite}: {error.message}")
        return self._scores[key]

    def _ask(
        self,
        run: Run,
        suite: str,
        cache_key: str,
        method: str,
        rule: VqaRule,
        about: tuple[str, ...],
        how: dict[str, Any],
    ) -> Mapping[str, Scores]:
        from madkit.evaluate.teacher_answers import TeacherAnswers
        from madkit.tasks.id_lists import labelled_examples

        data, spec = self.plan.data[run.table], self.plan.specs[run.table]
        if data is None:
            return {}
        if about not in self._answers:
            caches = [self._cache(name) for name in cache_key.split(", ")]
            self._answers[about] = TeacherAnswers(caches, labelled_examples(data, run.shots, run.seed), spec, **how)
        rows = self._answers[about].rows(method, data.examples(suite))
        return score(spec, rows, rule) if rows else {}

    def _cache(self, name: str) -> Any:
        from madkit.cache import TokenCache
        from madkit.cache.manage import find_store

        if name not in self._open:
            self._open[name] = self.enter_context(TokenCache.open(find_store(self._workspace, name)[0]))
        return self._open[name]
