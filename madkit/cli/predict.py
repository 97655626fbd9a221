"""``madkit predict``: what a trained student answers, as a file."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from madkit.cli.options import OUTPUT, JsonOption, WorkspaceOption
from madkit.cli.output import emit

if TYPE_CHECKING:
    from madkit.core.workspace import Workspace

EXAMPLES = """
madkit predict mini-uniter-mad-1pct-s0-8a31ed01
madkit predict mini-uniter-mad-1pct-s0-8a31ed01 --split submission -o vcr.csv
madkit predict runs/vqa/uniter-finetune-full-s0-153a8755 --format vqa-json
madkit predict my-student --task my-questions -o answers.jsonl
madkit predict my-student questions.jsonl --images photos --regions features.tsv
madkit predict my-name/my-student questions.jsonl --images photos --out answers.jsonl
"""
_SHOWN = 3


class Format(StrEnum):
    """What answers can be written as."""

    jsonl = "jsonl"
    csv = "csv"
    vcr_csv = "vcr-csv"
    vqa_json = "vqa-json"
    snli_ve_jsonl = "snli-ve-jsonl"


def predict(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="A run's folder or name, an exported student's folder, or ORG/NAME on the hub."
        ),
    ],
    questions: Annotated[
        Path | None,
        typer.Argument(metavar="QUESTIONS", help="A JSONL file of your own.", show_default="a split of imported data"),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", metavar="TASK", help="The data to answer.", show_default="what it was trained on"),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            "--split",
            metavar="NAME",
            help="test, dev, submission, or a test suite.",
            show_default="test; your own file: all lines",
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option("--images", metavar="DIR", help="Images of QUESTIONS: a folder or zip.", show_default="beside it"),
    ] = None,
    regions: Annotated[
        list[str] | None,
        typer.Option(
            "--regions",
            metavar="PATH",
            help="Region features of QUESTIONS' images; may be repeated. pixels: small pictures of the boxes.",
            show_default="a mini student: pixels",
        ),
    ] = None,
    regions_format: Annotated[
        str | None,
        typer.Option(
            "--regions-format", metavar="NAME", help="See: madkit data regions formats.", show_default="found out"
        ),
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave out questions whose images or features cannot be read.")
    ] = False,
    format_: Annotated[
        Format | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="jsonl, csv, vcr-csv, vqa-json or snli-ve-jsonl.",
            show_default="by the name of --output; jsonl; submission: the official one",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            *OUTPUT,
            metavar="FILE",
            help="Where to.",
            show_default="into the run's folder; QUESTIONS: to stdout",
        ),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Raw scores in place of softmax probabilities.")] = False,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[
        str, typer.Option("--precision", metavar="NAME", help="fp32, bf16, or auto: bf16 on a GPU that has it.")
    ] = "auto",
    threads: Annotated[
        int, typer.Option("--threads", metavar="N", min=0, help="Compute threads.", show_default="all cores")
    ] = 0,
    workspace: WorkspaceOption = None,
    json_: JsonOption = False,
) -> None:
    """Let a trained student answer a split, or questions of your own, and write the answers as a file.

    It needs no teacher, and a cache only where the student sees with a teacher's tokens (clip-vil). Official
    test sets without labels (`--split submission`) are written as their owners take them: VCR's CSV with 4 + 16 scores
    a question, VQA's JSON. Every file is checked against the questions of the split before it is written, and is whole
    or not there.

    QUESTIONS is a bare JSONL file as for `madkit data import custom FILE`, without labels: nothing is imported. Its
    answers go to stdout, a line each, with probabilities; with `--out` into a file, and an interrupted call goes on
    where it stopped.
    """
    from madkit.core.errors import UsageProblem
    from madkit.core.workspace import Workspace

    place = Workspace.at(workspace)
    form = format_.value if format_ else None
    how: dict[str, Any] = {"raw": raw, "device": device, "precision": precision, "threads": threads}
    if questions is not None:
        if task is not None:
            raise UsageProblem("--task names imported data, and QUESTIONS is a file.", hint="give one of the two")
        sight = {"images": images, "regions": regions or (), "regions_format": regions_format}
        _own(place, run, questions, json_, split=split, allow_missing=allow_missing, format_=form, output=output,
             **sight, **how)  # fmt: skip
        return
    given = {"--images": images, "--regions": regions, "--regions-format": regions_format}
    alone = [name for name, value in given.items() if value not in (None, [])] + ["--allow-missing"] * allow_missing
    if alone:
        raise UsageProblem(
            f"{alone[0]} is for a file of questions, and none is given.", hint=f"madkit predict {run} questions.jsonl"
        )
    _split(place, run, "test" if split is None else split, json_, task=task, format_=form, output=output, **how)


def _split(workspace: Workspace, run: str, split: str, json_: bool, **options: Any) -> None:
    from dataclasses import asdict

    from madkit.core.console import counted
    from madkit.evaluate.answering import answer

    done = answer(workspace, run, split, **options)

    def human() -> None:
        print(f"{done.source} {done.split}: {counted(done.questions, 'questions')} answered, as {done.format}.")
        print(done.path)

    emit(asdict(done), json_, human)


def _own(workspace: Workspace, run: str, questions: Path, json_: bool, **options: Any) -> None:
    import json
    from dataclasses import asdict

    from madkit.core.console import counted, warn
    from madkit.evaluate.answering import answer_questions

    answers: list[dict[str, Any]] = []

    def tell(row: dict[str, Any]) -> None:
        if json_:
            answers.append(row)
        else:
            print(json.dumps(row, ensure_ascii=False), flush=True)

    done = answer_questions(workspace, run, questions, tell=tell, **options)
    if done.left_out:
        shown = "; ".join(f"{one.where}: {one.problem}" for one in done.left_out[:_SHOWN])
        more = "; ..." if len(done.left_out) > _SHOWN else "."
        are = "question is" if len(done.left_out) == 1 else "questions are"
        warn(f"{len(done.left_out):,} {are} left out: {shown}{more}")

    def human() -> None:
        if done.path is not None:
            print(f"{questions}: {counted(done.questions, 'questions')} answered, as {done.format}.")
            print(done.path)

    document = asdict(done)
    emit(document if done.path is not None else {**document, "answers": answers}, json_, human)
