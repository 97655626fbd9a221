"""From scores to masked lines: AdvTop-1 hides the token that gives most away, KeepTop-k hides all but k."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from madkit.shifts.masked.sequences import PARTS, has_rationales
from madkit.tasks.formats.source_lines import Row
from madkit.tasks.formats.tagged_text import MASK, MASKED_TAG

# Losses of the tokens of four choices, for "answer" and, where there are rationales, "rationale".
Losses = Mapping[str, Sequence[Sequence[float]]]


@dataclass(frozen=True, slots=True)
class Masking:
    """One way to mask: hide the `count` highest tokens of a choice ("adv"), or all but those ("keep")."""

    name: str
    keep: bool
    count: int
    about: str

    def hidden(self, losses: Sequence[float]) -> set[int]:
        """Which tokens of a choice are hidden, by the losses without each; of equal ones the first count as higher."""
        top = sorted(range(len(losses)), key=lambda number: (-losses[number], number))[: self.count]
        return set(range(len(losses))).difference(top) if self.keep else set(top)


MASKINGS: tuple[Masking, ...] = (
    Masking("adv-top-1", False, 1, "the token that helps a text-only scorer most is masked in every choice (AdvTop-1)"),
    *(
        Masking(
            f"keep-top-{k}", True, k, f"all but the {k} most helpful tokens of every choice are masked (KeepTop-{k})"
        )
        for k in (1, 3, 5)
    ),
)


def masked_row(row: Row, losses: Losses, masking: Masking, *, only_wrong: bool = False) -> Row:
    """A VCR line with masked choices; question, objects and labels stay.

    A word becomes "[MASK]" and a tag t 10000 + t, still inside its list, as in the published suites.
    """
    new = dict(row)
    for part in PARTS:
        if part not in losses:
            continue
        label = row[f"{part}_label"]
        new[f"{part}_choices"] = [
            list(tokens) if only_wrong and number == label else _masked(tokens, masking.hidden(losses[part][number]))
            for number, tokens in enumerate(row[f"{part}_choices"])
        ]
    if row.get("rationale_choices") is not None and not has_rationales(row):
        new["rationale_choices"] = new["answer_choices"]
    return new


def _masked(tokens: Sequence[Any], hidden: set[int]) -> list[Any]:
    result: list[Any] = []
    number = 0
    for token in tokens:
        if isinstance(token, str):
            result.append(MASK if number in hidden else token)
            number += 1
        else:
            places = range(number, number + len(token))
            result.append(
                [_masked_tag(tag) if place in hidden else tag for place, tag in zip(places, token, strict=True)]
            )
            number += len(token)
    return result


def _masked_tag(tag: int) -> int:
    return tag if tag >= MASKED_TAG else MASKED_TAG + tag
