"""New rows of the study beside those of other machines.

Arms are paired with their baseline over the questions of one workspace, and Holm's correction goes over one data set at
one number of labels. Such a cell is whole or not at all, can be measured wherever its runs are, and cells of several
machines make one study.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from madkit.core.errors import DataError

Row = Mapping[str, Any]
Cell = tuple[str, str]


def joined(
    before: Sequence[Row], about: Mapping[str, Any], rows: Sequence[Row]
) -> tuple[list[dict[str, Any]], list[str]]:
    """The lines of the results file after `rows` were measured, and what there is to tell about them.

    A cell of `rows` takes the place of the same cell in `before`, unless it lacks a run that stands there. Cells of
    which `rows` has nothing stay. Each line `about` says which cells were measured there.

    Raises DataError for rows on another revision of a data set, or by another rule of scoring, than those that stay.
    """
    old, new = by_cell(before), by_cell(rows)
    measured = set(new)
    told = []
    for cell in sorted(set(old) & set(new)):
        if lost := sorted(runs_of(old[cell]) - runs_of(new[cell])):
            named = ", ".join(f"{label} (seed {seed})" for label, seed in lost[:5])
            told.append(
                f"{cell[0]} at {cell[1]} stays as it was: {len(lost)} of its runs are not in this workspace, {named}"
                f"{' and others' if len(lost) > 5 else ''}."
            )
            del new[cell]
    kept = {cell: lines for cell, lines in old.items() if cell not in new}
    told += [f"{source} at {shots} was measured elsewhere and stays." for source, shots in sorted(set(old) - measured)]
    origins = [line for line in before if line.get("kind") == "about"]
    for origin in origins if kept else ():
        if origin["metric_version"] != about["metric_version"]:
            raise DataError(
                f"The rows of {origin['created']} were scored by version {origin['metric_version']} of the metrics, "
                f"these by version {about['metric_version']}."
            )
    revisions = {row["source"]: row["revision"] for lines in kept.values() for row in lines}
    for source, revision in {(row["source"], row["revision"]) for lines in new.values() for row in lines}:
        if revisions.get(source, revision) != revision:
            raise DataError(f"{source} is at revision {revision} here, and at {revisions[source]} in rows that stay.")
    heads = [{**origin, "cells": held} for origin in origins if (held := held_by(origin, kept))]
    heads += [{"kind": "about", **about, "cells": sorted(map(list, new))}] if new else []
    cells = {**old, **new}  # in the order of the file, what is new behind
    return [*heads, *(dict(row) for lines in cells.values() for row in lines)], told


def by_cell(rows: Sequence[Row]) -> dict[Cell, list[Row]]:
    """Rows by data set and number of labels, in the order in which they come."""
    cells: dict[Cell, list[Row]] = {}
    for row in rows:
        if row.get("kind") != "about":
            cells.setdefault((row["source"], row["shots"]), []).append(row)
    return cells


def runs_of(rows: Sequence[Row]) -> set[tuple[str, int]]:
    """The runs behind rows, by the name of their arm and their seed."""
    return {(row["label"], seed) for row in rows for seed in row["seeds"]}


def held_by(origin: Row, kept: Mapping[Cell, Sequence[Row]]) -> list[list[str]]:
    """Which of the cells that stay were measured where `origin` says; all where it does not say."""
    asked = {tuple(cell) for cell in origin["cells"]} if "cells" in origin else set(kept)
    return sorted(list(cell) for cell in kept if cell in asked)
