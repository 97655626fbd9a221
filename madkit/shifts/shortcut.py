"""Shortcut-mitigated VCR by rule: the suites test-shortcut-singular and test-shortcut-plural."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any

from madkit.core.console import info
from madkit.core.errors import DataError
from madkit.core.workspace import Workspace
from madkit.shifts.interface import Made, ShiftOptions
from madkit.shifts.rows import examples_of_rows, raw_rows
from madkit.shifts.tag_overlap import tag_overlap
from madkit.tasks.data import TaskData
from madkit.tasks.formats.source_lines import many_small_objects
from madkit.tasks.shortcuts import rule_plural, rule_singular
from madkit.tasks.suites import finished_suite, write_suite

_VERSION = 1
_SPLIT = "test"
_ABOUT = {
    "singular": "questions about one person; tags of wrong choices became the question's, those of right choices "
    "pronouns (Rule-Singular)",
    "plural": "questions about one group of people; groups and 'they' exchanged in the same way (Rule-Plural)",
}
_Rule = Callable[..., list[dict[str, Any]]]


def build_singular(workspace: Workspace, data: TaskData, options: ShiftOptions) -> list[Made]:
    """Make test-shortcut-singular from the data's test split. Raises DataError for lines without labels."""
    return _build(data, "singular", rule_singular)


def build_plural(workspace: Workspace, data: TaskData, options: ShiftOptions) -> list[Made]:
    """Make test-shortcut-plural from the data's test split. Raises DataError for lines without labels."""
    return _build(data, "plural", rule_plural)


def _build(data: TaskData, kind: str, rule: _Rule) -> list[Made]:
    suite = f"test-shortcut-{kind}"
    if suite in data.manifest["splits"]:
        info(f"{suite} is a part of {data.source}; nothing to make.")
        return [Made("suite", suite, data.root, {"questions": int(data.about(suite).get("questions", 0))})]
    made_by: dict[str, Any] = {"shift": f"shortcut-{kind}", "version": _VERSION, "split": _SPLIT}
    home = finished_suite(data, suite, made_by)
    if home is not None:
        info(f"{suite} of {data.source} is there already; nothing to make.")
        return [Made("suite", suite, home, data.about(suite)["made_by"]["counts"])]
    home, counts = _write(data, suite, kind, rule, made_by)
    return [Made("suite", suite, home, counts)]


@many_small_objects()
def _write(data: TaskData, suite: str, kind: str, rule: _Rule, made_by: MutableMapping[str, Any]) -> Any:
    originals = list(raw_rows(data, _SPLIT))
    counts: dict[str, int] = {}
    kept = rule((row for _, row in originals), counts=counts)
    if not kept:
        raise DataError(f"No question of the test split of {data.source} is of the kind that {suite} is made from.")
    places = {row["annot_id"]: place for place, row in originals}
    counts = {
        "questions": counts["kept"],
        "questions of the test split": counts["questions"],
        "answers changed": counts["answers changed"],
        "rationales changed": counts["rationales changed"],
    }
    ids = {row["annot_id"] for row in kept}
    before = tag_overlap(row for _, row in originals if row["annot_id"] in ids)
    counts |= tag_overlap(kept)
    made_by = {**made_by, "counts": counts, "tag overlap before": before}
    examples = examples_of_rows(data, _SPLIT, ((places[row["annot_id"]], row) for row in kept))
    return write_suite(data, suite, examples, made_by=made_by, about=_ABOUT[kind]), counts
