"""``madkit data``: bring in benchmarks and your own questions, look at them, check them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from madkit.cli.data_regions import app as regions_app
from madkit.cli.data_sets import TaskArgument, answers, open_data, shots, suite
from madkit.cli.elsewhere import placed
from madkit.cli.options import JsonOption, WorkspaceOption
from madkit.cli.output import emit, print_table

if TYPE_CHECKING:
    from madkit.tasks.data import TaskData

EXAMPLES = """
madkit data import vcr /data/vcr
madkit data import custom questions.jsonl --kind multiple-choice --images photos
madkit data show vcr --save examples.png
madkit data check vcr
"""

app = typer.Typer(no_args_is_help=True, help="Import, list, show and check data.")
app.add_typer(regions_app, name="regions", help="Region-feature files: add, check, convert, make.")


@app.command("import")
def import_(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="vcr, gd-vcr, snli-ve, e-snli-ve, vqa-v2, vqa-cp-v2 or custom."),
    ],
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="Folder with the owners' files, zipped or not; a file for custom.")
    ],
    images: Annotated[
        Path | None,
        typer.Option("--images", metavar="DIR", help="Folder or zip of the images.", show_default="found below PATH"),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option("--kind", metavar="KIND", help="custom: multiple-choice, classification or vqa."),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="custom: how --task will call it.")
    ] = None,
    dev_cut: Annotated[
        float,
        typer.Option(
            "--dev-cut",
            metavar="SHARE",
            min=0,
            max=0.5,
            help="Share of train that becomes the development split where the official one is reported as test.",
        ),
    ] = 0.05,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave out examples whose image is missing.")
    ] = False,
    without_images: Annotated[
        bool, typer.Option("--without-images", help="The images are not at hand; only region features will be used.")
    ] = False,
    workspace: WorkspaceOption = None,
    json_: JsonOption = False,
) -> None:
    """Read a benchmark in the form in which its owners distribute it, and index it in the workspace.

    The owners' files stay where they are; images and region features are read from there later. Every line is
    checked; when one is wrong, nothing is imported. Importing the same files again changes nothing.
    """
    from madkit.core.workspace import Workspace
    from madkit.tasks.describe import describe
    from madkit.tasks.importing import ImportOptions
    from madkit.tasks.importing.run import import_data

    options = ImportOptions(
        images=images,
        allow_missing=allow_missing,
        without_images=without_images,
        dev_cut=dev_cut,
        name=dataset,
        kind=kind,
    )
    made = import_data(Workspace.at(workspace), name, path, options)
    facts = None if made.data is None else describe(made.data)
    suites = [str(one) for one in made.suites]

    def human() -> None:
        if facts is not None:
            print(f"{'Unchanged' if made.unchanged else 'Imported'}: {facts['dataset']} ({facts['title']})")
            _print_splits(facts)
        for one in made.suites:
            print(f"Suite {one.name} added to {one.parents[1].name}")
        for note in made.notes:
            print(f"Note: {note}")
        if made.data is not None and facts is not None:
            name, regions = facts["dataset"], made.data.region_digest() or "regions" in made.data.manifest
            step = f"extract --teacher NAME --task {name}" if regions else f"data regions add {name} PATH"
            print(placed(f"Next: madkit {step}"))
        print(made.data.root if made.data is not None else made.suites[0].parents[1])

    document = {"unchanged": made.unchanged, "data": facts, "suites": suites, "notes": list(made.notes)}
    emit(document, json_, human)


@app.command("list")
def list_(workspace: WorkspaceOption = None, json_: JsonOption = False) -> None:
    """List the data sets of the workspace."""
    from madkit.core.workspace import Workspace
    from madkit.tasks.describe import dataset_rows

    rows = dataset_rows(Workspace.at(workspace).require())

    def human() -> None:
        if not rows:
            print(placed("No data yet. Import some: madkit data import NAME PATH"))
            return
        print_table(
            ["data set", "task", "train", "dev", "test", "suites", "regions", "revision"],
            [
                [
                    row["dataset"],
                    row["task"],
                    *(_count(row["questions"].get(split)) for split in ("train", "dev", "test")),
                    len([suite for suite in row["suites"] if suite != "test"]),
                    "yes" if row["regions"] else "no",
                    row["revision"][:8],
                ]
                for row in rows
            ],
            right=range(2, 6),
        )

    emit({"datasets": rows}, json_, human)


@app.command("show")
def show(
    task: TaskArgument,
    split: Annotated[str, typer.Option("--split", metavar="SPLIT", help="A split or test suite.")] = "train",
    number: Annotated[int, typer.Option("--number", "-n", metavar="N", min=0, help="Examples to show.")] = 4,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Which examples.")] = 0,
    ids: Annotated[
        list[str] | None, typer.Option("--id", metavar="ID", help="This example or question; may be repeated.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="FILE.png", help="Draw the examples, boxes and all, on one page.")
    ] = None,
    workspace: WorkspaceOption = None,
    json_: JsonOption = False,
) -> None:
    """Print sizes, splits, label balance and a few examples of a data set; draw them with `--save`."""
    from madkit.tasks.describe import describe
    from madkit.tasks.picture import text_lines

    data = open_data(workspace, task)
    facts = describe(data)
    chosen = _chosen(data, split, number, seed, ids)
    if save is not None:
        _save(chosen, data, save)
    texts = [text_lines(example, data.spec) for example in chosen]
    examples = [[{"what": what, "text": text} for what, text in lines] for lines in texts]

    def human() -> None:
        print(f"{facts['dataset']}: {facts['title']}, task {facts['task']}, revision {facts['revision']}")
        _print_splits(facts)
        for note in facts["notes"]:
            print(f"Note: {note}")
        print(f"Region features: {_regions_line(facts)}")
        if facts["id_lists"]:
            print(f"Id lists: {', '.join(f'list:{name}' for name in facts['id_lists'])}")
        for lines in texts:
            print()
            for what, text in lines:
                print(f"{'*' if what == 'right choice' else ' '} {what + ': ' if what in _NAMED else ''}{text}")
        if save is not None:
            print(f"\n{save}")

    emit({**facts, "examples": examples, "picture": None if save is None else str(save)}, json_, human)


_NAMED = ("id", "label", "answers")


@app.command("check")
def check(
    task: TaskArgument,
    deep: Annotated[
        bool, typer.Option("--deep", help="Hash every file and open every image and region entry.")
    ] = False,
    workspace: WorkspaceOption = None,
    json_: JsonOption = False,
) -> None:
    """Compare a data set with the files that it came from: changed, missing, unreadable, out of place (exit 3)."""
    from madkit.core.console import progress
    from madkit.core.errors import VerificationFailed
    from madkit.tasks.check import SIZES, check_dataset

    data = open_data(workspace, task)
    with progress(f"Checking {data.name}", 4, "parts") as bar:
        findings = check_dataset(data, deep=deep, advance=bar.advance)
    rows = [finding.as_row() for finding in findings]

    def human() -> None:
        print_table(
            ["check", "looked at", "wrong"],
            [[row["check"], _count(row["looked_at"]), _count(row["wrong"])] for row in rows],
            right=(1, 2),
        )
        for row in rows:
            for problem in row["first"]:
                print(f"{row['check']}: {problem}")
            for said in row["notes"]:
                print(f"Note: {row['check']}: {said}")
            if (more := row["noted"] - len(row["notes"])) > 0:
                print(f"Note: {row['check']}: {_count(more)} more like these")

    wrong = sum(row["wrong"] for row in rows)
    emit({"dataset": data.name, "revision": data.revision, "checks": rows, "wrong": wrong}, json_, human)
    if wrong:
        checks = [row["check"] for row in rows if row["wrong"]]
        hint = "put the files back as they were, or import them again"
        if all("region features" in check for check in checks):
            hint = f"madkit data regions add {data.name} PATH, with all files of features that there are"
        elif checks == [SIZES]:
            hint = "mend 'width' and 'height', which the boxes are meant in, and import again"
        raise VerificationFailed(
            f"{wrong:,} {'thing is' if wrong == 1 else 'things are'} wrong with {data.name}.",
            hint=hint,
        )


app.command("shots")(shots)
app.command("answers")(answers)
app.command("suite")(suite)


def _chosen(data: TaskData, split: str, number: int, seed: int, ids: list[str] | None) -> list[Any]:
    from madkit.core.errors import NotFoundError
    from madkit.core.registry import suggest
    from madkit.core.seeds import permutation

    examples = data.examples(split)
    if not ids:
        places = permutation(len(examples), "show", seed)[:number].tolist()
        return [examples[place] for place in sorted(places)]
    found = [example for example in examples if example.id in ids or example.question_id in ids]
    missing = set(ids) - {one for example in found for one in (example.id, example.question_id)}
    if missing:
        first = sorted(missing)[0]
        near = suggest(first, [example.question_id for example in examples[:5000]])
        raise NotFoundError(
            f"{data.name} has no example {first!r} in {split}.{near}",
            hint=f"see some: madkit data show {data.name} --split {split}, or look in another split",
        )
    return found


def _save(chosen: list[Any], data: TaskData, path: Path) -> None:
    from madkit.core.errors import NotFoundError, UsageProblem
    from madkit.core.files import write_bytes_atomic
    from madkit.tasks.picture import contact_sheet, draw_example

    if path.suffix.lower() != ".png":
        raise UsageProblem(f"Pictures are saved as PNG, and {path.name} is named otherwise.", hint="--save FILE.png")
    if not chosen:
        raise UsageProblem("There are no examples to draw.", hint="-n 4 draws four")
    from io import BytesIO

    buffer = BytesIO()
    try:
        drawn = [draw_example(example, data.spec) for example in chosen]
    except NotFoundError as error:
        raise NotFoundError(error.message, hint=f"see what else is missing: madkit data check {data.name}") from None
    contact_sheet(drawn).save(buffer, "PNG", optimize=True)
    write_bytes_atomic(path, buffer.getvalue())


def _print_splits(facts: dict[str, Any]) -> None:
    rows = []
    for name, split in facts["splits"].items():
        total = sum(split["balance"].values())
        shares = ", ".join(f"{label} {100 * count / total:.0f} %" for label, count in split["balance"].items())
        if facts["kind"] == "multiple-choice" and total:
            shares = " / ".join(f"{100 * count / total:.0f}" for count in split["balance"].values()) + " %"
        rows.append([name, split.get("official", ""), _count(split["questions"]), _count(split["images"]), shares])
    print_table(["split", "owners' name", "questions", "images", "labels"], rows, right=(2, 3))
    left = [
        f"{name}: {count:,} left out ({why})"
        for name, split in facts["splits"].items()
        for why, count in split.get("left_out", {}).items()
    ]
    print("\n".join(left), end="\n" if left else "")


def _regions_line(facts: dict[str, Any]) -> str:
    if not facts["regions"]:
        return placed(f"none. Add some: madkit data regions add {facts['dataset']} PATH")
    return ", ".join(f"{entry['format']} {entry['path']}" for entry in facts["regions"])


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
