"""``madkit score``: a file of answers, from whatever program, against the imported data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from madkit.cli.evaluate import Rule, VqaRuleOption
from madkit.cli.options import JsonOption, WorkspaceOption
from madkit.cli.output import emit, print_table

if TYPE_CHECKING:
    from madkit.evaluate.score_file import Scored

EXAMPLES = """
madkit score results.json --task vqa
madkit score vcr.csv --task vcr --split test
madkit score predictions.jsonl --task snli-ve --split test-hypothesis-hard
madkit score results.json --task vqa --vqa-rule pre2021 --json
"""

# More kinds of question than this are left to --json: VQA has 65.
_KINDS_SHOWN = 12


def score(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="VQA's JSON, VCR's CSV, or JSONL or CSV.")],
    task: Annotated[
        str,
        typer.Option("--task", metavar="TASK", help="vcr, snli-ve, vqa or an imported data set.", show_default=False),
    ],
    split: Annotated[
        str, typer.Option("--split", metavar="NAME", help="test, dev, a test suite, or submission (checked only).")
    ] = "test",
    vqa_rule: VqaRuleOption = Rule.current,
    subset: Annotated[bool, typer.Option("--subset", help="The file may answer a part of the questions.")] = False,
    workspace: WorkspaceOption = None,
    json_: JsonOption = False,
) -> None:
    """Score a file of answers with the official metrics.

    The answers may come from any program. FILE is VQA's results JSON, VCR's CSV (its 4 answer columns, or all 20), or
    JSONL or CSV with an id (id, pairID, question_id) and a prediction: the name of a class, the number of a choice
    from 0, or an answer. Every question of the split has to be answered once.
    """
    from madkit.core.workspace import Workspace
    from madkit.evaluate.score_file import score_file

    found = score_file(Workspace.at(workspace), file, task, split, vqa_rule=vqa_rule.value, subset=subset)
    emit(found.document(), json_, lambda: _print(found))


def _print(found: Scored) -> None:
    from madkit.core.console import counted

    partly = f", {found.partly:,} more in part" if found.partly else ""
    rule = f", VQA rule {found.vqa_rule}" if found.vqa_rule else ""
    answered = f"{found.answered:,} of {counted(found.questions, 'questions')}"
    print(f"{found.source} {found.split}: {answered} answered{partly}{rule}")
    if found.is_mini:
        print("This is madkit's embedded benchmark, not the real one.")
    if not found.metrics:
        print("The file fits the questions. The split has no labels, so there is no score.")
        return
    rows = [(name, f"{one.score:.2f}", f"{one.n:,}") for name, one in found.metrics.items()]
    left = []
    for metric, kinds in found.by_kind.items():
        if len(kinds) <= _KINDS_SHOWN:
            rows += [(f"{metric}: {kind}", f"{one.score:.2f}", f"{one.n:,}") for kind, one in kinds.items()]
        else:
            left.append(f"{metric} by {len(kinds)} question types: --json")
    print_table(["metric", "%", "questions"], rows, right=[1, 2])
    for line in left:
        print(line)
