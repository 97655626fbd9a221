"""The cheapest shortcut of VCR: take the choice that shares the most tags with the question.

It reads no word and sees no picture. How often it is right tells how much of the shortcut is left in a suite (Ye and
Kovashka, AAAI 2021).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from madkit.tasks.formats.source_lines import Row
from madkit.tasks.formats.tagged_text import MASKED_TAG
from madkit.tasks.formats.vcr import has_rationales


def tag_overlap(rows: Iterable[Row]) -> dict[str, int]:
    """How many questions the shortcut answers.

    A choice scores the number of distinct boxes that it shares with the question (rationales: with question and right
    answer together); the first of the best is taken. Masked tags count as none.

    Returns "questions", "answers by tag overlap", "rationales by tag overlap" (questions where that choice is the right
    one); the last only where a row asks for a rationale, which those of GD-VCR do not. Rows need their labels.
    """
    questions = answers = rationales = with_rationales = 0
    for row in rows:
        questions += 1
        asked = _tags(row["question"])
        answers += _best(row["answer_choices"], asked) == row["answer_label"]
        if not has_rationales(row):
            continue
        with_rationales += 1
        known = asked | _tags(row["answer_choices"][row["answer_label"]])
        rationales += _best(row["rationale_choices"], known) == row["rationale_label"]
    found = {"questions": questions, "answers by tag overlap": answers}
    return found | ({"rationales by tag overlap": rationales} if with_rationales else {})


def _tags(tokens: Sequence[Any]) -> set[int]:
    return {tag for token in tokens if isinstance(token, list) for tag in token if tag < MASKED_TAG}


def _best(choices: Sequence[Sequence[Any]], known: set[int]) -> int:
    scores = [len(_tags(choice) & known) for choice in choices]
    return scores.index(max(scores))
