"""The unlabelled pool beside the labelled examples: one set of both, one row of joint batches, one module that learns.

Labelled examples and pool stand in one `ExampleSet`, so images, texts and the teacher's vectors are held once, and an
example that is in both (the pool is the whole train split where there are no soft labels) is one row. To the training
loop a joint batch is a batch like any other: places 0..n-1 are the n labelled examples, n..n+m-1 the m of the pool, and
whatever is cut into micro-batches or shared by processes is that row of places. So accumulation, several processes and
exact resume need nothing of their own. Both parts are padded apart: a joint batch costs what its tokens cost.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from threading import RLock
from typing import Any

import numpy as np

from madkit.core.console import Progress, info
from madkit.core.seeds import derive_seed
from madkit.distill.batches.examples import ExampleSet, targets_of
from madkit.distill.batches.order import Indices, Order, PlainOrder
from madkit.distill.pool.pool import known_to, unlabelled_examples
from madkit.distill.pool.soft_labels import ProbeAnswers, answer_pool
from madkit.distill.settings.config import DistillConfig
from madkit.distill.settings.pool_config import SoftLabelConfig
from madkit.distill.teacher.probe_reader import ProbeReader
from madkit.distill.teacher.teachers import Teachers
from madkit.regions import RegionReader
from madkit.students.heads import HeadSpec
from madkit.students.student import Student
from madkit.tasks.answer_vocabulary import AnswerMatch
from madkit.tasks.example import Example


@dataclass(frozen=True, slots=True)
class Pool:
    """The examples of a run's pool, without labels.

    Attributes:
        examples: m of them.
        answers: what the probe says of them; None where it is not asked.
        facts: for the manifest.
    """

    examples: list[Example]
    answers: ProbeAnswers | None
    facts: dict[str, Any]


def gather_pool(
    config: DistillConfig,
    train: Sequence[Example],
    labelled: Sequence[Example],
    head: HeadSpec,
    teachers: Teachers,
    *,
    seed: int,
) -> Pool | None:
    """The pool that a configuration asks for; None where nothing is left for it.

    Args:
        config: resolved configuration with a `pool`.
        train: the train split; of what is not in `labelled` no label is read.
        labelled: the labelled subset.
        head: what the student decides between.
        teachers: the teachers. The probe reads their caches, or those of the teachers before they were adapted, which
            have not seen the labels.
        seed: the run's seed.

    Raises:
        RunError: a cache knows no image of the pool.
        DataError: the subset is too small for a probe.
    """
    settings, steps = config.pool, config.optim.steps
    assert settings is not None
    assert steps is not None
    candidates = max((len(example.candidates) for example in labelled), default=1)
    each = examples_per_step(settings.batch_size, candidates)
    draws = settings.steps(steps) * each
    gold = {example.question_id for example in labelled} if settings.soft_labels is not None else set[str]()
    found = unlabelled_examples(train, draws=draws, limit=settings.limit, without=gold, seed=seed)
    if not found:
        info(
            "All questions of the train split are labelled, so there is no pool: the labels are all there is to learn."
        )
        return None
    total = len(found)
    asked = [member.asked or member.cache for member in teachers]
    for cache in (*(member.cache for member in teachers), *asked):
        found, _ = known_to(cache, found)
    facts: dict[str, Any] = {"left_out": total - len(found)}
    answers = None
    if settings.asks_probe(weighs=config.weighs):
        reader = ProbeReader(
            asked,
            list(dict.fromkeys(example.image.id for example in (*labelled, *found))),
            permute_seed=derive_seed(seed, "permute") if config.permute_teacher else None,
        )
        found, answers = answer_pool(
            reader,
            labelled,
            targets_of(labelled, head, config.answer_match),
            found,
            settings.soft_labels or SoftLabelConfig(),
            outputs=len(head.outputs) if head.kind == "classification" else None,
            seed=derive_seed(seed, "probe"),
            guess_contexts=settings.rationale_answer != "drawn",
        )
        facts["probe"] = answers.facts
    facts |= {
        "examples": len(found),
        "questions": len({example.question_id for example in found}),
        "images": len({example.image.id for example in found}),
        "examples_per_step": each,
    }
    return Pool(found, answers, facts)


def examples_per_step(sequences: int, candidates: int) -> int:
    """Examples that make up so many sequences, at least one."""
    return max(1, sequences // max(1, candidates))


@dataclass(frozen=True, slots=True)
class JointSet:
    """Labelled examples and pool, encoded together.

    Attributes:
        examples: all of them, the n labelled ones first.
        labelled: the first n, with their targets; it shares everything else with `examples`.
        rows: [m] row in `examples` of each example of the pool.
        pool: where they come from.
    """

    examples: ExampleSet
    labelled: ExampleSet
    rows: Indices
    pool: Pool

    def __str__(self) -> str:
        step, all_ = self.sequences_per_step, len(self.rows) * self.examples.n_candidates
        return f"Beside it stand {step:,} unlabelled sequences of a pool of {all_:,}."

    @property
    def sequences_per_step(self) -> int:
        """Sequences of a pool batch."""
        return min(int(self.pool.facts["examples_per_step"]), len(self.rows)) * self.examples.n_candidates

    @property
    def ids(self) -> list[str]:
        """Ids by place: labelled, then pool."""
        return self.labelled.ids + [self.examples.ids[row] for row in self.rows.tolist()]

    def by_place(self, values: Indices) -> Indices:
        """Values [n + m] by place of the set's [rows] values."""
        return np.concatenate([values[: len(self.labelled)], values[self.rows]])


def encode_together(
    labelled: Sequence[Example],
    pool: Pool | None,
    student: Student,
    regions: RegionReader | None,
    *,
    threads: int,
    answer_match: AnswerMatch,
    progress: Progress | None = None,
) -> tuple[ExampleSet, JointSet | None]:
    """Encode labelled examples, and a pool with them where there is one. Raises as `ExampleSet`."""
    if pool is None:
        alone = ExampleSet(labelled, student, regions, threads=threads, answer_match=answer_match, progress=progress)
        return alone, None
    row_of = {example.id: row for row, example in enumerate(labelled)}
    own: list[Example] = []
    rows = np.empty(len(pool.examples), dtype=np.int64)
    for place, example in enumerate(pool.examples):
        row = row_of.get(example.id)
        if row is None or labelled[row].context != example.context:  # another answer in a rationale's context
            row = len(labelled) + len(own)
            own.append(example)
        rows[place] = row
    whole = ExampleSet([*labelled, *own], student, regions, threads=threads, labelled=False, progress=progress)
    n = len(labelled)
    first = copy.copy(whole)
    first.examples, first.ids = whole.examples[:n], whole.ids[:n]
    first.lengths, first.text_lengths = whole.lengths[:n], whole.text_lengths[:n]
    first.region_counts, first.sequences = whole.region_counts[:n], whole.sequences[:n]
    first.target = targets_of(labelled, student.head_spec, answer_match)
    return first, JointSet(whole, first, rows, pool)


class JointOrder:
    """Batches of a labelled order, each followed by one of the pool: places as `JointSet` counts them.

    Args:
        labelled: the order of the labelled examples, which see the batches that they would see without a pool.
        joint: the set.
        until: steps that have a pool batch.
        seed: of the pool's order. Batch k of the pool is a function of the seed and k alone.
    """

    def __init__(self, labelled: Order, joint: JointSet, *, until: int, seed: int) -> None:
        self._labelled = labelled
        self._n = len(joint.labelled)
        self._until = until
        self._pool = PlainOrder(len(joint.rows), joint.pool.facts["examples_per_step"], "pool", seed)
        self._lengths = joint.examples.lengths[joint.rows]
        self._starts = [(0, 0)]  # samples consumed before each step: of both, and labelled ones
        self._step_of = {0: 0}
        self._lock = RLock()  # batches are made ahead in a thread, which asks for sizes

    def at(self, consumed: int) -> Indices:
        """The joint batch that begins after `consumed` samples. Raises ValueError where no batch begins there."""
        with self._lock:
            while consumed > self._starts[-1][0]:
                self._walk()
            step = self._step_of.get(consumed)
            if step is None:
                raise ValueError(f"no batch begins after {consumed} samples: data or batch settings have changed")
            labelled = self._labelled.at(self._starts[step][1])
        if step >= self._until:
            return labelled
        places = self._pool.at(step * self._pool.batch_size)
        # sorted by length, so that micro-batches hold little padding
        places = places[np.argsort(self._lengths[places], kind="stable")]
        return np.concatenate([labelled, self._n + places])

    def sizes(self, step: int) -> tuple[int, int]:
        """Labelled examples and pool examples of a step."""
        with self._lock:
            while step + 1 >= len(self._starts):
                self._walk()
        (both, labelled), (after, labelled_after) = self._starts[step : step + 2]
        return labelled_after - labelled, (after - both) - (labelled_after - labelled)

    def _walk(self) -> None:
        both, labelled = self._starts[-1]
        step = len(self._starts) - 1
        size = len(self._labelled.at(labelled))
        pooled = self._pool.batch_size if step < self._until else 0
        self._starts.append((both + size + pooled, labelled + size))
        self._step_of[both + size + pooled] = step + 1
