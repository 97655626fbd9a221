"""`shortcut_scores.jsonl`: what every token of every choice is worth, in the field names of the published study.

One line per question: `annot_id`, `answer_label`, `answer_tokens` (4 lists: words, and tags as 0-based box indices,
each tag of a list by itself), `answer_losses` (4 lists of the same lengths), and the same for `rationale`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from madkit.core.errors import DataError
from madkit.core.files import write_bytes_atomic
from madkit.shifts.masked.masks import Losses
from madkit.shifts.masked.sequences import N_CHOICES, PARTS
from madkit.shifts.masked.words import flatten
from madkit.tasks.formats.source_lines import Row, iter_json_lines

PartLosses = Mapping[str, Sequence[Sequence[NDArray[np.float32]]]]


def write_scores(path: Path, rows: Iterable[Row], losses: Mapping[str, PartLosses]) -> None:
    """Write the file; `losses` maps part and annot_id to the losses of four choices.

    Where rationales repeat the answers (GD-VCR) there are no losses for them, and no `rationale_` keys.
    """
    lines = []
    for row in rows:
        line: dict[str, Any] = {"annot_id": row["annot_id"]}
        for part in PARTS:
            found = losses[part].get(row["annot_id"])
            if found is None:
                continue
            line[f"{part}_label"] = row[f"{part}_label"]
            line[f"{part}_tokens"] = [flatten(tokens) for tokens in row[f"{part}_choices"]]
            # Nine digits are a 32-bit number, exactly: the masks follow from this file alone.
            line[f"{part}_losses"] = [[float(f"{value:.9g}") for value in choice] for choice in found]
        lines.append(json.dumps(line, ensure_ascii=False))
    write_bytes_atomic(path, "".join(f"{line}\n" for line in lines).encode())


def read_scores(path: Path) -> dict[str, Losses]:
    """annot_id -> losses of the choices' tokens.

    Raises DataError for a line that lacks a list, naming file and line.
    """
    scores: dict[str, Losses] = {}
    for place, row in iter_json_lines(path):
        found: dict[str, Sequence[Sequence[float]]] = {}
        for part in PARTS:
            losses, tokens = row.get(f"{part}_losses"), row.get(f"{part}_tokens")
            if losses is None:
                continue
            if not _fits(losses, tokens):
                place.fail(f"'{part}_losses' must be {N_CHOICES} lists, as long as those of '{part}_tokens'")
            found[part] = losses
        scores[str(row.get("annot_id"))] = found
    return scores


def _fits(losses: Any, tokens: Any) -> bool:
    return (
        isinstance(losses, list)
        and isinstance(tokens, list)
        and len(losses) == len(tokens) == N_CHOICES
        and all(
            isinstance(a, list) and isinstance(b, list) and len(a) == len(b)
            for a, b in zip(losses, tokens, strict=True)
        )
    )


def losses_of(scores: Mapping[str, Losses], row: Row, path: Path) -> Losses:
    """The losses of a line, checked against its tokens. Raises DataError where the file does not belong to the line."""
    found = scores.get(row["annot_id"])
    if found is not None and all(
        [len(choice) for choice in losses] == [len(flatten(tokens)) for tokens in row[f"{part}_choices"]]
        for part, losses in found.items()
    ):
        return found
    raise DataError(
        f"{path} does not fit the question {row['annot_id']}.", hint=f"delete {path.parent} and run it again"
    )
