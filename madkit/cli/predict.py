"""``madkit predict``: what a trained student answers, as a file."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from madkit.cli.options import JsonOption, WorkspaceOption
from madkit.cli.output import emit

EXAMPLES = """
madkit predict mini-uniter-mad-1pct-s0-8a31ed01
madkit predict mini-uniter-mad-1pct-s0-8a31ed01 --split submission -o vcr.csv
madkit predict runs/vqa/uniter-finetune-full-s0-153a8755 --format vqa-json
madkit predict my-student --task my-questions -o answers.jsonl
"""


class Format(StrEnum):
    """What answers can be written as."""

    jsonl = "jsonl"
    csv = "csv"
    vcr_csv = "vcr-csv"
    vqa_json = "vqa-json"
    snli_ve_jsonl = "snli-ve-jsonl"


def predict(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder or name, or an exported student's folder.")],
    task: Annotated[
        str | None,
        typer.Option("--task", metavar="TASK", help="The data to answer.", show_default="what it was trained on"),
    ] = None,
    split: Annotated[
        str, typer.Option("--split", metavar="NAME", help="test, dev, submission, or a test suite.")
    ] = "test",
    format_: Annotated[
        Format | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="jsonl, csv, vcr-csv, vqa-json or snli-ve-jsonl.",
            show_default="jsonl; submission: the official one",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where to.", show_default="into the run's folder"),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Raw scores in place of softmax probabilities.")] = False,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[
        int, typer.Option("--threads", metavar="N", min=0, help="Compute threads.", show_default="all cores")
    ] = 0,
    workspace: WorkspaceOption = None,
    json_: JsonOption = False,
) -> None:
    """Let a trained student answer a split, and write the answers as a file.

    It needs no teacher, and a cache only where the student sees with a teacher's tokens (clip-vil). Official
    test sets without labels (`--split submission`) are written as their owners take them: VCR's CSV with 4 + 16 scores
    a question, VQA's JSON. Every file is checked against the questions of the split before it is written, and is whole
    or not there.
    """
    from dataclasses import asdict

    from madkit.core.workspace import Workspace
    from madkit.evaluate.answering import answer

    done = answer(
        Workspace.at(workspace),
        run,
        split,
        task=task,
        format_=format_.value if format_ else None,
        output=output,
        raw=raw,
        device=device,
        threads=threads,
    )

    def human() -> None:
        print(f"{done.source} {done.split}: {done.questions:,} questions answered, as {done.format}.")
        print(done.path)

    emit(asdict(done), json_, human)
