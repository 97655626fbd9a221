"""``madkit students``: which students there are, and how files of theirs become madkit's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from madkit.cli.options import OUTPUT, JsonOption, WorkspaceOption
from madkit.cli.output import emit, print_table

if TYPE_CHECKING:
    from madkit.students.convert import Conversion

EXAMPLES = """
madkit students list
madkit students show uniter-large
madkit students convert uniter-base.pt --family uniter --vocab vocab.txt --out uniter
madkit students export mini-uniter-mad-1pct-s0-8a31ed01 --out student.pt2
"""

app = typer.Typer(no_args_is_help=True, help="List, describe, convert and export students.")


@app.command("list")
def list_(json_: JsonOption = False) -> None:
    """List the students by name. The family alone ("uniter") means its base size."""
    from madkit.students.describe import student_rows

    rows = student_rows()

    def human() -> None:
        keys = ("layers", "hidden_size", "parameters_m", "gflops_vqa")
        print_table(
            ["student", "layers", "width", "M params", "GFLOP", "sees"],
            [[row["name"], *(_short(row[key]) for key in keys), row["sees"]] for row in rows],
            right=range(1, 5),
        )
        print()  # no column of the table above: at 80 characters the names would break
        families = {row["family"]: row["title"] for row in rows}
        print_table(["family", "what it is"], list(families.items()))
        print()
        print("mini-uniter has weights of its own, other mini sizes begin with its text layers.")
        print("All others need --init: a checkpoint's folder, its hub name, or `random`.")

    emit({"students": rows}, json_, human)


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A student of the list, such as uniter-base.")],
    json_: JsonOption = False,
) -> None:
    """Describe one student: its sizes, what it reads, where weights can be had, and how its paper trains it."""
    from madkit.distill.settings.recipes import recipe_rows
    from madkit.students.describe import describe_student

    facts = describe_student(name)
    facts["recipes"] = recipe_rows(facts["name"])
    emit(facts, json_, lambda: _print(facts))


@app.command("convert")
def convert(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Official weights: a torch file or safetensors.")],
    family: Annotated[str, typer.Option("--family", metavar="NAME", help="uniter, villa, ...", show_default=False)],
    vocab: Annotated[
        Path,
        typer.Option("--vocab", metavar="PATH", help="vocab.txt of the BERT it began with.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(*OUTPUT, metavar="DIR", help="A new folder.", show_default=False)],
    answers: Annotated[
        Path | None,
        typer.Option("--answers", metavar="FILE", help="Answers of its VQA head.", show_default="head left out"),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option("--labels", metavar="A,B,C", help="Classes of its entailment head.", show_default="head left out"),
    ] = None,
    object_words: Annotated[
        bool, typer.Option("--object-words", help="Add the 81 words that UNITER adds before it learns VCR.")
    ] = False,
    copy_segment: Annotated[
        bool,
        typer.Option("--copy-segment", help="Begin the responses' type as the queries', as VL-BERT does before VCR."),
    ] = False,
    pooler: Annotated[
        Path | None,
        typer.Option("--pooler", metavar="DIR", help="BERT checkpoint that gives the pooler, where FILE has none."),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Turn an official UNITER, VILLA or VL-BERT file into a student, and say what became of every key.

    Files are read as tensors alone: one that would have to run code is refused. The account of all keys lies beside
    the weights, in conversion.json.
    """
    from madkit.students.convert import convert as run
    from madkit.tasks.answer_vocabulary import read_answer_file

    result = run(
        file,
        family,
        out,
        vocabulary=vocab,
        answers=read_answer_file(answers) if answers is not None else (),
        labels=tuple(label.strip() for label in labels.split(",")) if labels else (),
        object_words=object_words,
        copy_segment=copy_segment,
        pooler=pooler,
    )
    document = {
        "folder": str(result.folder),
        "student": result.name,
        "head": None if result.head is None else result.head.as_dict(),
        "counts": result.counts(),
        "keys": [{name: getattr(row, name) for name in ("key", "status", "target", "note")} for row in result.rows],
    }
    emit(document, json_, lambda: _print_conversion(result))


@app.command("export")
def export(
    source: Annotated[
        str, typer.Argument(metavar="STUDENT", help="A run's folder or name, a trained student's folder, or ORG/NAME.")
    ],
    out: Annotated[Path, typer.Option(*OUTPUT, metavar="FILE", help="A new .pt2 or .onnx file.", show_default=False)],
    workspace: WorkspaceOption = None,
    json_: JsonOption = False,
) -> None:
    """Write a trained student as one program of torch.export (.pt2) or in ONNX (.onnx), which runs without madkit.

    It is compared with the student on inputs of other shapes before it is kept. ONNX needs the extra madkit[onnx].
    """
    from madkit.students.export import export_student

    made = export_student(_trained(workspace, source), out)
    document = {"path": str(made.path), "bytes": made.bytes, "difference": made.difference,
                "outputs": list(made.outputs)}  # fmt: skip

    def human() -> None:
        print(f"{made.path}: {made.bytes / 1e6:,.1f} MB, differs from the student by {made.difference:.1e} at most")

    emit(document, json_, human)


def _trained(workspace: Path | None, source: str) -> str | Path:
    """Where the student of a run of the workspace lies; folders and students' own names are left as they are."""
    from madkit.core.errors import NotFoundError
    from madkit.core.registry import suggest
    from madkit.core.workspace import Workspace
    from madkit.evaluate.answering import find_student
    from madkit.students.families import size_names

    if Path(source).is_dir():
        return source
    try:
        return find_student(Workspace.at(workspace), source)
    except NotFoundError:
        if source in size_names() or suggest(source, size_names()):
            return source
        raise


def _print_conversion(result: Conversion) -> None:
    """A line for each group of keys that fared alike, then the counts."""
    groups: dict[tuple[str, str, str], int] = {}
    for row in result.rows:
        part = (row.target or row.key).split(".")
        group = (row.status, ".".join(part[:2]), row.note)
        groups[group] = groups.get(group, 0) + 1
    print_table(
        ["keys", "what", "where", "note"], [[n, status, part, note] for (status, part, note), n in groups.items()],
        right=[0],
    )  # fmt: skip
    print()
    print(f"{result.name}: " + ", ".join(f"{count} {status}" for status, count in result.counts().items()))
    print(f"head: {'none' if result.head is None else result.head.kind}")
    print(result.folder)


def _print(facts: dict[str, Any]) -> None:
    plain = ("title", "paper", "inputs", "parameters_m", "begins_with")
    rows = [[key, _short(facts[key])] for key in plain]
    rows += [["gflops", ", ".join(f"{task} {_short(value)}" for task, value in facts["gflops"].items())]]
    rows += [[key, _short(value)] for key, value in facts["config"].items()]
    print_table(["", facts["name"]], rows)
    if facts["weights"]:
        print()
        print_table(
            ["weights", "how", "licence", "note"],
            [[one[key] for key in ("name", "how", "licence", "note")] for one in facts["weights"]],
        )
    if facts["recipes"]:
        print()
        keys = ("recipe", "learning_rate", "batch", "length", "warmup", "loss", "note")
        print_table(
            ["its paper's recipe", "rate", "batch", "length", "warm-up", "loss", "note"],
            [[one["recipe"], f"{one['learning_rate']:g}", *(one[key] for key in keys[2:])] for one in facts["recipes"]],
            whole=0,
        )


def _short(value: object) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
