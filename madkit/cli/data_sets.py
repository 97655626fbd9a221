"""Sub-commands of ``madkit data`` that make something from a data set: id lists, answer lists, shifted suites."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from madkit.cli.options import OUTPUT, JsonOption, WorkspaceOption
from madkit.cli.output import emit, print_table

if TYPE_CHECKING:
    from madkit.tasks.data import TaskData

TaskArgument = Annotated[str, typer.Argument(metavar="TASK", help="vcr, snli-ve, vqa or an imported data set.")]


def open_data(workspace: Path | None, task: str) -> TaskData:
    """The data set of that name, imported or embedded; nothing is built."""
    from madkit.core.workspace import Workspace
    from madkit.tasks.data import open_task

    return open_task(Workspace.at(workspace), task, build=False, part="auto")


def shots(
    task: TaskArgument,
    shots: Annotated[
        str | None,
        typer.Option("--shots", metavar="SHOTS", help="Write this subset: 1pct, 200, full or list:NAME."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the subset.")] = 0,
    output: Annotated[
        Path | None, typer.Option(*OUTPUT, metavar="FILE", help="Where to.", show_default="stdout")
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--import", metavar="FILE", help="Keep a list of question ids, for --shots list:NAME."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Of the imported list.", show_default="the file's")
    ] = None,
    workspace: WorkspaceOption = None,
    json_: JsonOption = False,
) -> None:
    """Export the question ids of a low-shot subset, or import a list of them. Without either: the lists there are."""
    import json

    from madkit.core.errors import UsageProblem
    from madkit.core.files import write_json_atomic
    from madkit.tasks.id_lists import export_shots, import_shots

    if shots is not None and source is not None:
        raise UsageProblem("--shots exports and --import imports: give one of them.")
    data = open_data(workspace, task)
    if source is not None:
        kept, count = import_shots(data, source, name)
        emit({"list": kept, "questions": count}, json_, lambda: print(f"{count:,} questions: --shots list:{kept}"))
        return
    if shots is None:
        names = data.named_shots()
        emit({"lists": names}, json_, lambda: print("\n".join(f"list:{one}" for one in names) or "No lists."))
        return
    document = export_shots(data, shots, seed)
    if output is None:
        print(json.dumps(document, indent=2))
        return
    write_json_atomic(output, document)
    count = len(document["questions"])
    emit({"questions": count, "file": str(output)}, json_, lambda: print(f"{count:,} questions\n{output}"))


def answers(
    task: TaskArgument,
    minimum: Annotated[
        int, typer.Option("--min", metavar="N", min=1, help="Questions that an answer has to be the main one of.")
    ] = 9,
    splits: Annotated[
        list[str] | None,
        typer.Option("--split", metavar="SPLIT", help="To count in; may be repeated.", show_default="train and dev"),
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option("--like", metavar="FILE", help="Compare with a published list: UNITER's, LXMERT's, JSON or text."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(*OUTPUT, metavar="FILE", help="Keep the list, for --set answers=FILE.")
    ] = None,
    workspace: WorkspaceOption = None,
    json_: JsonOption = False,
) -> None:
    """Build the answer vocabulary of VQA data by the published rule, or compare it with a published list.

    A head trained by other code needs that code's own order: `madkit distill --set answers=FILE` takes their files.
    """
    from itertools import chain

    from madkit.core.errors import UsageProblem
    from madkit.core.files import write_json_atomic
    from madkit.tasks.answer_vocabulary import answer_vocabulary, read_answer_file

    data = open_data(workspace, task)
    if data.spec.kind != "vqa":
        raise UsageProblem(f"{data.name} has no answer vocabulary: it is a {data.spec.kind} task.")
    chosen = splits or [name for name in ("train", "dev") if name in data.splits()]
    tables = [data.examples(name) for name in chosen]
    examples = tables[0] if len(tables) == 1 else chain.from_iterable(tables)
    built = answer_vocabulary(examples, min_questions=minimum)
    facts: dict[str, Any] = {"dataset": data.name, "splits": chosen, "min_questions": minimum, "answers": len(built)}
    if like is not None:
        theirs = read_answer_file(like)
        both = set(built) & set(theirs)
        facts["like"] = {
            "file": str(like),
            "answers": len(theirs),
            "in_both": len(both),
            "same_set": set(built) == set(theirs),
            "same_order": built == theirs,
        }
    if output is not None:
        write_json_atomic(output, list(built))
        facts["file"] = str(output)

    def human() -> None:
        print(f"{len(built):,} answers are the main one of {minimum} or more questions of {' and '.join(chosen)}.")
        if like is not None:
            same = facts["like"]
            order = "the same order" if same["same_order"] else "another order"
            print(f"{like}: {same['answers']:,} answers, {same['in_both']:,} in both lists, {order}.")
        if output is not None:
            print(output)

    emit(facts, json_, human)


def suite(
    task: TaskArgument,
    name: Annotated[
        str | None, typer.Argument(metavar="[SHIFT]", help="Which; without it, those that fit the task are listed.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the small model, where one is trained.")] = 0,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[int, typer.Option("--threads", metavar="N", min=0, help="Compute threads.")] = 0,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=0, help="Train questions that the small model sees; 0 for all.")
    ] = 0,
    epochs: Annotated[
        int | None, typer.Option("--epochs", metavar="N", min=1, help="Passes over them.", show_default="its own")
    ] = None,
    snli: Annotated[Path | None, typer.Option("--snli", metavar="PATH", help="snli-overlap: SNLI 1.0's files.")] = None,
    workspace: WorkspaceOption = None,
    json_: JsonOption = False,
) -> None:
    """Make a domain-shifted test suite from a data set; results on its other suites stay valid."""
    from madkit.core.workspace import Workspace
    from madkit.shifts import SHIFTS, ShiftOptions, make_shift

    data = open_data(workspace, task)
    if name is None:
        fitting = [shift for shift in SHIFTS.values() if shift.task == data.spec.name]
        rows = [[shift.name, "yes" if shift.trains else "no", shift.about] for shift in fitting]
        document: dict[str, Any] = {"shifts": [{"name": s.name, "about": s.about, "trains": s.trains} for s in fitting]}
        headers = ["shift", "trains a model", "what it makes"]
        none = f"There are no shifts that are made from data of the task {data.spec.name}."
        emit(document, json_, lambda: print_table(headers, rows) if rows else print(none))
        return
    options = ShiftOptions(seed=seed, device=device, threads=threads, limit=limit, epochs=epochs, snli=snli)
    made = make_shift(Workspace.at(workspace), data, name, options)
    found = [{"kind": m.kind, "name": m.name, "path": str(m.path), "counts": dict(m.counts)} for m in made]

    def human() -> None:
        for one in made:
            counts = ", ".join(f"{what} {count:,}" for what, count in one.counts.items())
            print(f"{one.kind} {one.name}: {counts}")
            print(one.path)

    emit({"made": found}, json_, human)
