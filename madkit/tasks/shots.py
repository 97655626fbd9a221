"""Low-shot subsets: which questions of a training set a run may see.

All sizes are prefixes of one order of the questions, so that 1pct lies within 5pct within 10pct, and any N within any
larger one. The order is a pure function of (dataset revision, seed) and of the set of questions, not of their order in
the file. It walks through the images in random order and takes all questions of an image together; an image whose
labels would upset the balance of the labels waits until it fits.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from madkit.core.errors import DataError, UsageProblem
from madkit.core.seeds import permutation
from madkit.tasks.example import Example
from madkit.tasks.index.reader import ExampleTable

# An image is taken out of turn only when the next one would move a stratum further than this from its share.
_SLACK = 0.5

LIST = "list:"
_EXAMPLES = "use a share such as 1pct, 5pct or 10pct, a number of questions such as 200, full, or list:NAME"


@dataclass(frozen=True, slots=True)
class Shots:
    """How much of a training set to use: everything, a share in percent, a number of questions, or a named list."""

    kind: Literal["full", "percent", "count", "list"]
    value: float
    name: str = ""

    def __str__(self) -> str:
        if self.kind == "full":
            return "full"
        if self.kind == "list":
            return f"{LIST}{self.name}"
        return f"{self.value:g}pct" if self.kind == "percent" else str(int(self.value))

    def questions(self, total: int) -> int:
        """The number of questions out of `total`; a share is rounded half up and gives 1 at least.

        Raises UsageProblem when a number is larger than `total`.
        """
        if self.kind == "full":
            return total
        if self.kind == "percent":
            return min(total, max(1, int(total * self.value / 100 + 0.5)))
        if self.value > total:
            raise UsageProblem(
                f"--shots {int(self.value)} asks for more questions than the training set has ({total}).",
                hint=f"use --shots {total} or less, or --shots full",
            )
        return int(self.value)


def parse_shots(text: str) -> Shots:
    """Read "1pct", "0.5pct", "200", "full" or "list:NAME". Raises UsageProblem, with examples, for anything else."""
    plain = text.strip().lower()
    if plain.startswith(LIST):
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", plain[len(LIST) :]):
            raise UsageProblem(f"--shots {text!r} names no list of ids.", hint="madkit data shots TASK lists them")
        return Shots("list", 0, plain[len(LIST) :])
    if plain == "full":
        return Shots("full", 100)
    if match := re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)pct", plain):
        share = float(match[1])
        if not 0 < share <= 100:
            raise UsageProblem(f"--shots {text} is not between 0 and 100 percent.", hint=_EXAMPLES)
        return Shots("full", 100) if share == 100 else Shots("percent", share)
    if re.fullmatch(r"[0-9]{1,12}", plain):
        if int(plain) == 0:
            raise UsageProblem("--shots 0 leaves nothing to train on.", hint=_EXAMPLES)
        return Shots("count", int(plain))
    raise UsageProblem(f"--shots {text!r} is neither a share, a number of questions, nor full.", hint=_EXAMPLES)


def select_shots(examples: Sequence[Example], shots: str | Shots, *, seed: int, revision: str) -> list[Example]:
    """The examples of a low-shot subset, in the order in which they were given.

    Sizes count questions: both examples of a VCR question come together and count once. The labels (answer types for
    VQA) of every prefix stay within 1 of their share in the whole set, as long as single images allow it.

    Raises UsageProblem for a text that `parse_shots` refuses and for more questions than there are.
    """
    wanted = parse_shots(shots) if isinstance(shots, str) else shots
    if wanted.kind == "full":
        return list(examples)
    if wanted.kind == "list":
        raise UsageProblem(f"{wanted} belongs to a data set.", hint="read it through that data set")
    questions = _questions(examples)
    chosen = set(_order(questions, wanted.questions(len(questions)), seed=seed, revision=revision))
    if isinstance(examples, ExampleTable):
        return [examples[row] for row in range(len(examples)) if examples.question_id(row) in chosen]
    return [example for example in examples if example.question_id in chosen]


def question_order(examples: Sequence[Example], *, seed: int, revision: str, limit: int | None = None) -> list[str]:
    """The question ids in the order of which every low-shot subset is a prefix; the first `limit` of them."""
    questions = _questions(examples)
    return _order(questions, len(questions) if limit is None else limit, seed=seed, revision=revision)


def stratum(example: Example) -> str:
    """What is kept in proportion: the answer type where there is one (VQA), else the label."""
    return example.answer_type or ("" if example.label is None else str(example.label))


@dataclass(slots=True)
class _Question:
    image: str
    stratum: str


def _questions(examples: Sequence[Example]) -> dict[str, _Question]:
    """Question id -> image and stratum; the stratum is that of the question's first example (VCR: the answer)."""
    questions: dict[str, _Question] = {}
    for question_id, image, kept_in_proportion in _facts(examples):
        known = questions.get(question_id)
        if known is None:
            questions[question_id] = _Question(image, kept_in_proportion)
        elif known.image != image:
            raise DataError(f"The examples of question {question_id!r} have different images.")
    return questions


def _facts(examples: Sequence[Example]) -> Iterator[tuple[str, str, str]]:
    """(question, image, stratum) of every example; from the columns where there are some, which is much faster."""
    if isinstance(examples, ExampleTable):
        for row in range(len(examples)):
            yield examples.question_id(row), examples.image_id(row), examples.stratum(row)
    else:
        for example in examples:
            yield example.question_id, example.image.id, stratum(example)


def _order(questions: dict[str, _Question], limit: int, *, seed: int, revision: str) -> list[str]:
    strata = {name: index for index, name in enumerate(sorted({q.stratum for q in questions.values()}))}
    by_image: dict[str, list[tuple[int, str]]] = {}
    ids = sorted(questions)
    # Shuffled over the whole set, so that the questions of an image come in random order within it.
    for index in permutation(len(ids), "shots-questions", revision, seed).tolist():
        question = questions[ids[index]]
        by_image.setdefault(question.image, []).append((strata[question.stratum], ids[index]))
    images = sorted(by_image)
    shuffled = [images[i] for i in permutation(len(images), "shots-images", revision, seed).tolist()]

    totals = np.bincount([strata[q.stratum] for q in questions.values()], minlength=len(strata)).astype(np.int64)
    compositions: dict[tuple[int, ...], int] = {}
    waiting: list[deque[tuple[int, str]]] = []  # for each composition, (place in the shuffle, image)
    for place, image in enumerate(shuffled):
        counts = [0] * len(strata)
        for index, _ in by_image[image]:
            counts[index] += 1
        kind = compositions.setdefault(tuple(counts), len(compositions))
        if kind == len(waiting):
            waiting.append(deque())
        waiting[kind].append((place, image))

    order: list[str] = []
    # Questions taken of each stratum less its share of all taken, times the number of questions: whole numbers, so
    # that the order is the same on every machine.
    deviation = np.zeros(len(strata), dtype=np.int64)
    content = np.array(list(compositions), dtype=np.int64).reshape(len(compositions), len(strata))
    moves = content * len(ids) - content.sum(axis=1, keepdims=True) * totals
    heads = np.array([queue[0][0] for queue in waiting])
    while len(order) < limit:
        kind = _next_kind(deviation, moves, heads, len(ids))
        _, image = waiting[kind].popleft()
        heads[kind] = waiting[kind][0][0] if waiting[kind] else _EXHAUSTED
        order.extend(_within_image(by_image[image], deviation, totals))
        deviation = deviation + moves[kind]
    return order[:limit]


_EXHAUSTED = np.iinfo(np.int64).max


def _next_kind(deviation: NDArray[np.int64], moves: NDArray[np.int64], heads: NDArray[np.int64], total: int) -> int:
    """The composition whose first image comes next: the earliest in the shuffle of those that keep the balance."""
    after = deviation + moves
    distance = np.square(after / total).sum(axis=1)
    distance[heads == _EXHAUSTED] = np.inf
    # The addend keeps the choice the same where two sums differ in their last bits only.
    allowed = (distance <= distance.min() + 1e-9) | (np.abs(after).max(axis=1) <= _SLACK * total)
    return int(np.argmin(np.where(allowed, heads, _EXHAUSTED)))


def _within_image(
    questions: list[tuple[int, str]], deviation: NDArray[np.int64], totals: NDArray[np.int64]
) -> list[str]:
    """The questions of an image, those of the stratum that lacks most first: the cut may fall inside an image."""
    if len(questions) == 1:
        return [questions[0][1]]
    waiting = list(questions)
    state, step = deviation.tolist(), totals.tolist()
    total = sum(step)
    ordered: list[str] = []
    while waiting:
        position = min(range(len(waiting)), key=lambda i: state[waiting[i][0]])
        index, question = waiting.pop(position)
        state = [value - share for value, share in zip(state, step, strict=True)]
        state[index] += total
        ordered.append(question)
    return ordered
