"""The stage behind `madkit score`: a file of answers, from whatever program, against the imported data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Any

from madkit.core.console import progress
from madkit.core.errors import DataError
from madkit.evaluate.answer_files import AnswerFile, first_character, read_answers
from madkit.evaluate.answering import check_split
from madkit.evaluate.metrics import METRIC_VERSION, prediction_row, score
from madkit.evaluate.submission import check_submission
from madkit.evaluate.vqa_metric import VqaItem, VqaRule, summarize_vqa

if TYPE_CHECKING:
    from madkit.core.workspace import Workspace
    from madkit.tasks.example import Example
    from madkit.tasks.spec import TaskSpec

SCHEMA = "madkit.score/1"


@dataclass(frozen=True, slots=True)
class Value:
    """A metric in percent, over `n` questions."""

    score: float
    n: int


@dataclass(frozen=True, slots=True)
class Scored:
    """What a file of answers is worth.

    `questions` counts the questions of the split, `answered` those that the file answers, `partly` those of which it
    answers one part alone (VCR, and only with `subset`). Parts that the file never answers are not asked for: a file
    of VCR's answers without any rationale answers its questions. Each metric is over the questions that have all it
    needs: Q->A the answer, QA->R the rationale, Q->AR both. `metrics` has the headline first; it is empty for a split
    without labels, whose answers are checked and cannot be scored. `by_kind` holds, by metric, the kinds of question
    that the benchmark names (VQA's question types).
    """

    file: str
    task: str
    source: str
    revision: str
    is_mini: bool
    split: str
    questions: int
    answered: int
    vqa_rule: str | None
    partly: int = 0
    metrics: dict[str, Value] = field(default_factory=dict)
    by_kind: dict[str, dict[str, Value]] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"schema": SCHEMA, **asdict(self), "metric_version": METRIC_VERSION}


def score_file(
    workspace: Workspace,
    file: Path,
    task: str,
    split: str = "test",
    *,
    vqa_rule: VqaRule = "current",
    subset: bool = False,
) -> Scored:
    """Score a file of answers with the official metrics.

    Args:
        workspace: holds the data.
        file: see `answer_files`.
        task: a task or an imported data set.
        split: a split or suite; an official test set without labels is checked only.
        vqa_rule: version of VQA's official accuracy.
        subset: whether the file may answer a part of the questions; the others are left out of the score.

    Raises:
        NotFoundError, UsageProblem: no such file, task, data or split.
        DataError: a line that is no answer to this task (file and line are named), or ids that are not the split's.
    """
    from madkit.tasks.data import open_task

    first_character(file)  # before the data is looked for
    data = open_task(workspace, task, build=False, part="auto")
    check_split(data, split)
    given = read_answers(file, data.spec)
    examples = data.examples(split)
    asked: dict[str, None] = {}
    questions: Counter[str] = Counter()  # bits of the parts that are asked, one alone where a task has none
    answered: Counter[str] = Counter()  # and of those that are answered
    official = data.spec.kind == "vqa"  # its evaluation needs the annotators' answers, which not all files have
    with progress("Comparing ids", len(examples), "examples") as bar:
        for example in examples:
            name = example.question_id if given.kind == "vcr" else example.id
            asked[name] = None
            part = 1 << (data.spec.subtasks.index(example.subtask) if example.subtask in data.spec.subtasks else 0)
            questions[example.question_id] |= part
            if name in given.choices:
                answered[example.question_id] |= part
            official = official and bool(example.annotations)
            bar.advance()
    check_submission(given.choices, asked, where=f"{file} does not fit {data.source} {split}", subset=subset)
    if not given.choices:
        raise DataError(f"{file} answers nothing.", hint="give the file with the answers")
    metrics: dict[str, Value] = {}
    by_kind: dict[str, dict[str, Value]] = {}
    if data.labelled(split):
        with progress("Scoring", len(examples), "examples") as bar:
            pairs = _pairs(given, examples, file, bar.advance)
            score_pairs = _official_vqa if official else _by_rows
            metrics, by_kind = score_pairs(pairs, data.spec, vqa_rule)
    taken = reduce(or_, answered.values())  # parts that the file answers at all
    whole = sum(answered[name] == parts & taken for name, parts in questions.items() if parts & taken)
    return Scored(
        file=str(file),
        task=data.spec.name,
        source=data.source,
        revision=data.revision,
        is_mini=data.is_mini,
        split=split,
        questions=len(questions),
        answered=whole,
        partly=len(answered) - whole,
        vqa_rule=vqa_rule if data.spec.kind == "vqa" else None,
        metrics=metrics,
        by_kind=by_kind,
    )


def _pairs(
    given: AnswerFile, examples: Sequence[Example], file: Path, advance: Callable[[], None]
) -> Iterator[tuple[Example, Any]]:
    """Every example that is answered, with its answer: an index, or text (VQA)."""
    right: dict[str, int | None] = {}
    for example in examples:
        advance()
        if given.kind == "plain":
            if example.id in given.choices:
                choice = given.choices[example.id]
                if isinstance(choice, int) and example.candidates and choice >= len(example.candidates):
                    raise DataError(
                        f"{file}: {example.id} has {len(example.candidates)} choices, and the answer is {choice}.",
                        hint="choices are counted from 0",
                    )
                yield example, choice
            continue
        groups = given.choices.get(example.question_id)
        if groups is None:
            continue
        if example.subtask == "answer":
            right[example.question_id] = example.label
            yield example, _best(groups[0])
        elif given.has_rationales:
            answer = right.get(example.question_id)
            if answer is None:
                raise DataError(
                    f"The right answer to {example.question_id} is not in the data, so its rationale cannot be scored.",
                    hint="score the answers alone: a file with the columns answer_0 to answer_3",
                )
            yield example, _best(groups[1 + answer])


def _best(scores: Sequence[float]) -> int:
    """The first of the highest."""
    return max(range(len(scores)), key=scores.__getitem__)


_Metrics = tuple[dict[str, Value], dict[str, dict[str, Value]]]


def _official_vqa(pairs: Iterator[tuple[Example, Any]], spec: TaskSpec, rule: VqaRule) -> _Metrics:
    """As the official evaluation computes and rounds them: overall, by answer type, by question type."""
    types: Counter[str] = Counter()
    kinds: Counter[str] = Counter()

    def items() -> Iterator[VqaItem]:
        for example, answer in pairs:
            types[example.answer_type] += 1
            kinds[example.form] += 1
            yield VqaItem(example.id, answer, example.annotations, example.answer_type, example.form)

    found = summarize_vqa(items(), rule=rule)
    metrics = {spec.metric: Value(found.overall, types.total())}
    metrics |= {
        f"{spec.metric} ({name})": Value(value, types[name]) for name, value in sorted(found.per_answer_type.items())
    }
    by_kind = {name: Value(value, kinds[name]) for name, value in sorted(found.per_question_type.items())}
    return metrics, {spec.metric: by_kind} if by_kind else {}


def _by_rows(pairs: Iterator[tuple[Example, Any]], spec: TaskSpec, rule: VqaRule) -> _Metrics:
    """As `madkit evaluate` computes them from a student's answers."""
    found = score(spec, [prediction_row(example, (), answer) for example, answer in pairs], rule)
    metrics = {name: Value(one.percent, len(one.units)) for name, one in found.items()}
    by_kind = {
        name: {kind: Value(percent, n) for kind, (percent, n) in kinds.items()}
        for name in spec.metrics
        if name in found and (kinds := found[name].by_form())
    }
    return metrics, by_kind
