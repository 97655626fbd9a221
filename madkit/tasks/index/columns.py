"""What the columns of an example file mean, where a type alone does not say it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

NO_LABEL = -1  # in the column `label`

# In the column `answered`: no soft scores, scores that follow from the annotators' answers, or scores that are stored.
NO_ANSWERS, FROM_ANNOTATORS, STORED = 0, 1, 2

# The column `tags` holds four numbers for every box of a tag: the segment's number (context first, then candidates),
# start and end of the tag in its text, and the box.
TAG_FIELDS = 4


def leave_one_out(count: int, annotators: int) -> float:
    """Score of an answer that `count` of the annotators gave: the mean of min(1, k/3) over all ways to leave one out.

    With ten annotators: 0, .3, .6, .9, 1, 1, ... (VQA's evaluation, averaged over its ten subsets).
    """
    if annotators < 2:
        return float(count > 0)
    without = min(1.0, (count - 1) / 3) if count else 0.0
    value = (count * without + (annotators - count) * min(1.0, count / 3)) / annotators
    return round(value, 10)


@lru_cache(maxsize=1024)  # whoever reads an example asks, and then whoever writes it, some hundred examples later
def soft_scores(annotations: tuple[str, ...]) -> Mapping[str, float]:
    """Answer -> soft score of the annotators' raw answers, in the order in which they come. Not to be changed."""
    table = _table(len(annotations))
    counts: dict[str, int] = {}  # for ten strings three times as fast as a Counter
    for answer in annotations:
        counts[answer] = counts.get(answer, 0) + 1
    return {answer: table[count] for answer, count in counts.items()}


_TABLES: dict[int, tuple[float, ...]] = {}


def _table(annotators: int) -> tuple[float, ...]:
    if annotators not in _TABLES:
        _TABLES[annotators] = tuple(leave_one_out(count, annotators) for count in range(annotators + 1))
    return _TABLES[annotators]
