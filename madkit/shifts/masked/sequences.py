"""VCR questions as the scorer reads them: [CLS] query [SEP] choice [SEP], one sequence for every choice.

The query of an answer is the question; the query of a rationale is the question and the right answer. A tag is its
object class and the place of its box among the boxes that the query mentions, in order of first mention: what a reader
without the picture can know of it.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from madkit.core.errors import DataError
from madkit.shifts.masked.words import CLS, MASKED_TAG, SEP, Flat, Vocabulary, flatten
from madkit.tasks.formats import tagged_text
from madkit.tasks.formats.source_lines import Row
from madkit.tasks.formats.vcr import N_CHOICES, has_rationales

Part = Literal["answer", "rationale"]
PARTS: tuple[Part, ...] = ("answer", "rationale")

MAX_LENGTH = 384
_MAX_CHOICE = 300
# Mention orders: words (and masked tags) have none, boxes that the query does not mention the second.
NO_BOX, NOT_MENTIONED, FIRST = 0, 1, 2
N_ORDERS = 12


@dataclass(frozen=True, slots=True)
class Sequences:
    """S = 4 Q sequences of Q questions, one after another.

    Attributes:
        ids: token numbers, int32 [N].
        orders: mention orders, int8 [N].
        starts: where each sequence begins in `ids`, int64 [S + 1].
        choice_starts: where the choice begins within its sequence, int64 [S].
        labels: the right choice, int64 [Q].
        question_ids: Q annot_ids.
    """

    ids: NDArray[np.int32]
    orders: NDArray[np.int8]
    starts: NDArray[np.int64]
    choice_starts: NDArray[np.int64]
    labels: NDArray[np.int64]
    question_ids: list[str]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sequence, int64 [S]."""
        return np.diff(self.starts)

    @property
    def choice_lengths(self) -> NDArray[np.int64]:
        """Tokens of each choice, int64 [S]; [SEP] not counted."""
        return self.lengths - self.choice_starts - 1

    def subset(self, questions: NDArray[np.int64]) -> Sequences:
        """The sequences of some questions, by their numbers."""
        which = (questions[:, None] * N_CHOICES + np.arange(N_CHOICES)).reshape(-1)
        lengths = self.lengths[which]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        at = np.arange(starts[-1]) + np.repeat(self.starts[which] - starts[:-1], lengths)
        return Sequences(
            ids=self.ids[at],
            orders=self.orders[at],
            starts=starts,
            choice_starts=self.choice_starts[which],
            labels=self.labels[questions],
            question_ids=[self.question_ids[number] for number in questions],
        )


class SequenceBuilder:
    """Collects the sequences of one part of VCR's questions.

    Args:
        part: which choices.
        vocabulary: of the training split; an empty one grows.
    """

    def __init__(self, part: Part, vocabulary: Vocabulary) -> None:
        self.part = part
        self.vocabulary = vocabulary
        self._ids, self._orders = array("i"), array("b")
        self._starts, self._choice_starts, self._labels = array("q", [0]), array("q"), array("q")
        self._question_ids: list[str] = []

    def add(self, row: Row) -> None:
        """Add a line with labels; for rationales, one whose rationales repeat its answers is left out (GD-VCR)."""
        if self.part == "rationale" and not has_rationales(row):
            return
        objects = row["objects"]
        query = flatten(row["question"])
        if self.part == "rationale":
            query += flatten(row["answer_choices"][row["answer_label"]])
        mentions: dict[int, int] = {}
        for token in query:
            if isinstance(token, int) and token < tagged_text.MASKED_TAG:
                mentions.setdefault(token, min(FIRST + len(mentions), N_ORDERS - 1))
        query_ids, query_orders = self._encode(query, objects, mentions)
        for choice in row[f"{self.part}_choices"]:
            ids, orders = self._encode(flatten(choice), objects, mentions)
            if len(ids) > _MAX_CHOICE:
                raise DataError(
                    f"VCR line {row['annot_id']}: a choice has {len(ids)} tokens; {_MAX_CHOICE} can be read."
                )
            room = min(len(query_ids), MAX_LENGTH - 3 - len(ids))
            self._ids.extend([CLS, *query_ids[:room], SEP, *ids, SEP])
            self._orders.extend([NO_BOX, *query_orders[:room], NO_BOX, *orders, NO_BOX])
            self._starts.append(len(self._ids))
            self._choice_starts.append(room + 2)
        self._labels.append(row[f"{self.part}_label"])
        self._question_ids.append(row["annot_id"])

    def _encode(self, tokens: Flat, objects: list[str], mentions: dict[int, int]) -> tuple[list[int], list[int]]:
        ids, orders = [], []
        for token in tokens:
            if isinstance(token, str):
                ids.append(self.vocabulary.word(token))
                orders.append(NO_BOX)
            elif token >= tagged_text.MASKED_TAG:
                ids.append(MASKED_TAG)
                orders.append(NO_BOX)
            else:
                ids.append(self.vocabulary.tag(objects[token]))
                orders.append(mentions.get(token, NOT_MENTIONED))
        return ids, orders

    def build(self, *, at_least: int = 0, at_most: int = 0) -> Sequences:
        """The sequences; with `at_most` the vocabulary settles on that many entries."""
        ids = np.array(self._ids, dtype=np.int32)
        if at_most:
            ids = self.vocabulary.settle(ids, at_least=at_least, at_most=at_most)
        return Sequences(
            ids=ids,
            orders=np.array(self._orders, dtype=np.int8),
            starts=np.array(self._starts, dtype=np.int64),
            choice_starts=np.array(self._choice_starts, dtype=np.int64),
            labels=np.array(self._labels, dtype=np.int64),
            question_ids=self._question_ids,
        )


__all__ = ["N_CHOICES", "PARTS", "Part", "SequenceBuilder", "Sequences", "has_rationales"]
