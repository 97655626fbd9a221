"""New rows of the study beside those of other machines.

Arms are paired with their baseline over the questions of one workspace, and Holm's correction goes over one data set at
one number of labels. Such a cell is measured as a whole wherever its runs are, and cells of several machines make one
study. Another machine may bring further arms to a cell where it makes the same baseline: all of its runs must have the
same scores on every suite, to the last digit. Then the pairs are those that they would have been on the first machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from madkit.core.errors import DataError
from madkit.evaluate.results import read_row
from madkit.evaluate.table import corrected

Row = Mapping[str, Any]
Cell = tuple[str, str]


def joined(
    before: Sequence[Row], about: Mapping[str, Any], rows: Sequence[Row]
) -> tuple[list[dict[str, Any]], list[str]]:
    """The lines of the results file after `rows` were measured, and what there is to tell about them.

    A cell of `rows` takes the place of the same cell in `before`. One that lacks a run which stands there brings its
    further arms, if they can stand beside the others (`extended`), and nothing else. Cells of which `rows` has nothing
    stay. Each line `about` says of which cells it has all or something.

    Raises DataError for rows on another revision of a data set, or by another rule of scoring, than those that stay.
    """
    old, new = by_cell(before), by_cell(rows)
    measured = set(new)
    told = []
    brought = set()
    for cell in sorted(set(old) & set(new)):
        if lost := sorted(runs_of(old[cell]) - runs_of(new[cell])):
            further, why = extended(old[cell], new.pop(cell))
            if further:
                old[cell] = further
                brought.add(cell)
            elif not why:
                named = ", ".join(f"{label} (seed {seed})" for label, seed in lost[:5])
                why = f"{len(lost)} of its runs are not in this workspace, {named}" + " and others" * (len(lost) > 5)
            told.append(f"{cell[0]} at {cell[1]} {why if further else f'stays as it was: {why}'}.")
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
    here = sorted(map(list, {*new, *brought}))
    heads += [{"kind": "about", **about, "cells": here}] if here else []
    cells = {**old, **new}  # in the order of the file, what is new behind
    return [*heads, *(dict(row) for lines in cells.values() for row in lines)], told


def extended(old: Sequence[Row], new: Sequence[Row]) -> tuple[list[Row], str]:
    """The rows of a cell with the arms that only `new` has, corrected anew, and what is to be told.

    No rows where there is no such arm, or where `new` cannot stand beside `old`; then it is told why not.
    """
    arms = list(dict.fromkeys(row["label"] for row in new if row["label"] not in {one["label"] for one in old}))
    if not arms:
        return [], ""
    there, here = scores_of(old), scores_of(new)
    kinds = {row["kind"] for row in new if row["label"] in arms}
    held = [row for row in (*old, *new) if row["kind"] in kinds and row.get("difference")]
    baselines = {(row["kind"], row["difference"]["baseline"]) for row in held}
    if not baselines:
        return [], f"{', '.join(arms)} would come to it, but there is nothing that they are held against"
    revisions = {row["revision"] for row in (*old, *new)}
    if len(revisions) > 1:
        return [], f"{', '.join(arms)} would come to it, but they are of revisions {' and '.join(sorted(revisions))}"
    if lacking := [key for key in there if key[:2] in baselines and key not in here]:
        return [], f"{', '.join(arms)} would come to it, but {_place(lacking[0])} was not measured here"
    common = sorted(there.keys() & here.keys(), key=str)
    for key in common:
        if key[:2] in baselines and there[key] != here[key]:
            return [], (
                f"{', '.join(arms)} would come to it, but {_place(key)} scores {here[key]:.6g} here and "
                f"{there[key]:.6g} there: another machine that computes otherwise"
            )
    apart = [abs(there[key] - here[key]) for key in common if there[key] != here[key]]
    same = f"{len(common) - len(apart)} of {len(common)} scores that both have are the same to the digit"
    whole: list[Row] = []
    joint = [*old, *(row for row in new if row["label"] in arms)]
    for kind in dict.fromkeys(row["kind"] for row in joint):
        rows = [{key: value for key, value in row.items() if key != "kind"} for row in joint if row["kind"] == kind]
        whole += [{"kind": kind, **asdict(row)} for row in corrected([read_row(row) for row in rows])]
    return whole, f"has {', '.join(arms)} from here: {same}" + (f", the rest within {max(apart):.2g}" if apart else "")


def scores_of(rows: Sequence[Row]) -> dict[tuple[Any, ...], float]:
    """What every run scored, by kind of row, name of the arm, suite, metric, rule and seed."""
    return {
        (row["kind"], row["label"], row["suite"], row["metric"], row["vqa_rule"], seed): score
        for row in rows
        for seed, score in zip(row["seeds"], row["per_seed"], strict=True)
    }


def _place(key: tuple[Any, ...]) -> str:
    return f"{key[1]} (seed {key[5]}) on {key[2]}, {key[3]}"


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
