"""``madkit cache``: what the token caches of a workspace are, and whether they are sound."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from madkit.cli.elsewhere import placed
from madkit.cli.options import CacheOption, JsonOption, WorkspaceOption
from madkit.cli.output import emit, print_table

if TYPE_CHECKING:
    from madkit.look.relevance import Relevance

EXAMPLES = """
madkit cache list
madkit cache verify
madkit cache list --cache s3://bucket/caches
madkit cache show --id 'val-12' --save relevant.png
madkit cache repair mini-mini-vcr-9bc0bf26a5ae
madkit cache prune --yes
"""

app = typer.Typer(no_args_is_help=True, help="List, inspect, verify, repair and remove token caches.")

_SHOWN_ABSENT = 20

StoreArgument = Annotated[
    str | None,
    typer.Argument(metavar="[STORE]", help="Folder, its name, or key of one cache.", show_default="all"),
]


@app.command("list")
def list_(cache: CacheOption = None, workspace: WorkspaceOption = None, json_: JsonOption = False) -> None:
    """List the caches of the workspace."""
    from madkit.cache.manage import list_stores
    from madkit.core.workspace import Workspace

    rows = [row.as_row() for row in list_stores(Workspace.at(workspace, cache=cache).require_cache())]

    def human() -> None:
        print_table(
            ["cache", "teacher", "data", "tokens", "dtype", "images", "texts", "absent", "MB", "state"],
            [
                [
                    row["name"],
                    row["adapter"] or row["teacher"],
                    row["source"],
                    row["selection"],
                    row["dtype"],
                    row["images"],
                    row["texts"],
                    row["absent"],
                    _mb(row["bytes"]),
                    row["state"],
                ]
                for row in rows
            ],
            right=(5, 6, 7, 8),
            whole=0,
        )

    emit({"stores": rows}, json_, human)


@app.command("info")
def info(
    store: StoreArgument = None, cache: CacheOption = None, workspace: WorkspaceOption = None, json_: JsonOption = False
) -> None:
    """Print all that the manifests say, without the list of files."""
    from madkit.cache.manage import find_store
    from madkit.cache.reader import read_manifest
    from madkit.core.workspace import Workspace

    documents = []
    for path in find_store(Workspace.at(workspace, cache=cache).require_cache(), store):
        manifest = read_manifest(path)
        documents.append({"path": str(path), **manifest, "files": len(manifest["files"])})

    def human() -> None:
        for document in documents:
            absent = document.get("absent", {})
            counts = {part: len(absent.get(part, ())) for part in ("images", "texts")}
            print_table(["key", "value"], _flat({**document, "absent": counts}))
            items = [[part, item["row"], item["error"]] for part, found in absent.items() for item in found]
            if items:
                print_table(["absent", "row", "what is wrong"], items[:_SHOWN_ABSENT])
            if len(items) > _SHOWN_ABSENT:
                print(placed(f"... and {len(items) - _SHOWN_ABSENT:,} more; all: madkit cache info --json"))

    emit({"stores": documents}, json_, human)


@app.command("show")
def show(
    store: StoreArgument = None,
    example: Annotated[
        str | None,
        typer.Option("--id", metavar="ID", help="An example or question of its data.", show_default="the first"),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", metavar="TEXT", help="A text of the cache, in place of the example's; may be repeated."),
    ] = None,
    top: Annotated[int, typer.Option("--top", metavar="K", min=1, help="Patches and words to choose.")] = 8,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="FILE.png", help="Draw the image and the texts with their tokens.")
    ] = None,
    cache: CacheOption = None,
    workspace: WorkspaceOption = None,
    json_: JsonOption = False,
) -> None:
    """Print the patches and words of one example that are most relevant to the other modality; draw them with --save.

    The choice is the one that distillation makes, over patches instead of the student's regions.
    """
    from madkit.cache import TokenCache
    from madkit.cache.manage import find_store
    from madkit.core.errors import UsageProblem
    from madkit.core.workspace import Workspace
    from madkit.look.example import show_example

    if save is not None and save.suffix.lower() != ".png":
        raise UsageProblem(f"Pictures are saved as PNG, and {save.name} is named otherwise.", hint="--save FILE.png")
    place = Workspace.at(workspace, cache=cache).require_cache()
    found = find_store(place, store)
    if store is None and len(found) > 1:
        raise UsageProblem(
            f"The workspace has {len(found)} caches, and one is shown.", hint=f"madkit cache show {found[0].name}"
        )
    with TokenCache.open(found[0]) as opened:
        shown = show_example(place, opened, example=example, texts=text or (), top=top)
        teacher = opened.teacher
    if save is not None:
        _save(shown.path, shown.found, teacher, save)
    rows = [relevance.as_row() for relevance in shown.found]

    def human() -> None:
        for row in rows:
            print(f"{shown.example}, image {row['image']}: {row['text']}")
            print_table(
                ["word", "cosine", "patch (row, column)", "cosine"],
                [
                    [
                        *((word["text"].strip(), f"{word['cosine']:.3f}") if word else ("", "")),
                        *((f"{patch['row']}, {patch['column']}", f"{patch['cosine']:.3f}") if patch else ("", "")),
                    ]
                    for word, patch in zip_longest(row["words"], row["patches"])
                ],
                right=(1, 3),
            )
        if save is not None:
            print(save)

    document = {"cache": found[0].name, "teacher": teacher, "example": shown.example, "image_file": str(shown.path)}
    emit({**document, "texts": rows, "picture": None if save is None else str(save)}, json_, human)


def _save(image: Path, found: Sequence[Relevance], teacher: str, path: Path) -> None:
    from io import BytesIO

    from madkit.core.files import write_bytes_atomic
    from madkit.look.picture import draw_relevance

    buffer = BytesIO()
    draw_relevance(image, found, teacher=teacher).save(buffer, "PNG", optimize=True)
    write_bytes_atomic(path, buffer.getvalue())


@app.command("verify")
def verify(
    store: StoreArgument = None,
    cache: CacheOption = None,
    workspace: WorkspaceOption = None,
    json_: JsonOption = False,
    sample: Annotated[
        int,
        typer.Option("--sample", metavar="N", min=0, help="Also encode N images and texts again and compare."),
    ] = 0,
    weights: Annotated[
        Path | None, typer.Option("--weights", metavar="PATH", help="The teacher's weights, for --sample.")
    ] = None,
) -> None:
    """Read every byte of the caches and compare it with its checksums. Exits 3 where something is wrong."""
    from madkit.cache.manage import find_store
    from madkit.cache.reader import again_command, read_manifest
    from madkit.cache.verify import verify_cache
    from madkit.core.console import progress
    from madkit.core.errors import MadkitError, VerificationFailed
    from madkit.core.workspace import Workspace

    place = Workspace.at(workspace, cache=cache).require_cache()
    rows: list[dict[str, Any]] = []
    for path in find_store(place, store):
        try:
            total = int(read_manifest(path)["bytes"])
        except MadkitError:
            total = 0
        with progress(f"Verifying {path.name}", total, "bytes") as bar:
            report = verify_cache(path, on_file=bar.advance)
        row = report.as_row()
        if sample and report.ok:
            from madkit.extract.recheck import recheck

            live = recheck(place, path, sample, weights=weights)
            row["sample"] = live.as_row()
            row["ok"] = live.ok
        rows.append(row)

    emit({"stores": rows}, json_, lambda: _print_verified(rows))
    bad = [row for row in rows if not row["ok"]]
    if bad:
        one = f" {Path(bad[0]['path']).name}" if len(bad) == 1 else ""
        hint = f"madkit cache repair{one}, which computes just the damaged shards again"
        if all(row["problems"] and row["problems"][0]["kind"] == "manifest" for row in bad):
            hint = again_command(find_store(place, Path(bad[0]["path"]).name)[0])
        elif any(problem["kind"] == "layout" for row in bad for problem in row["problems"]):
            hint = f"remove it and extract again: madkit cache prune --store{one or ' NAME'} --yes"
        elif all(problem["kind"] == "foreign" for row in bad for problem in row["problems"]) and bad[0]["problems"]:
            hint = "no reader looks at files that the manifest does not know: move them elsewhere"
        elif not any(row["problems"] for row in bad):
            hint = "its files are whole; extract into another workspace and compare the weights (madkit cache info)"
        raise VerificationFailed(
            f"{len(bad)} of {len(rows)} caches {'is' if len(bad) == 1 else 'are'} not sound.", hint=hint
        )


@app.command("repair")
def repair(
    store: StoreArgument = None,
    cache: CacheOption = None,
    workspace: WorkspaceOption = None,
    json_: JsonOption = False,
    weights: Annotated[
        Path | None, typer.Option("--weights", metavar="PATH", help="Weight file or folder, in place of the hub's.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    workers: Annotated[
        int, typer.Option("--workers", metavar="N", min=0, help="Threads that decode images.", show_default="cores")
    ] = 0,
) -> None:
    """Verify complete caches, and compute just their missing, truncated or damaged shards again with the live teacher.

    Sound shards are not touched. Unfinished caches are not repaired: `madkit extract` goes on with them.
    """
    from madkit.cache.manage import describe, find_store
    from madkit.cache.reader import again_command
    from madkit.core.console import info as say
    from madkit.core.console import progress
    from madkit.core.workspace import Workspace
    from madkit.extract.repair import repair as mend

    place = Workspace.at(workspace, cache=cache).require_cache()
    rows: list[dict[str, Any]] = []
    for path in find_store(place, store):
        state = describe(path)
        if store is None and state.state != "complete":
            say(f"{path.name} is {state.state} and left alone. Try: {again_command(path)}")
            continue
        with progress(f"Verifying {path.name}", state.bytes, "bytes") as bar:
            done = mend(place, path, weights=weights, device=device, workers=workers, on_file=bar.advance)
        rows.append(done.as_row())

    def human() -> None:
        if not rows:
            print("Nothing was repaired: no cache is complete.")
            return
        print_table(
            ["cache", "problems", "files redone", "items", "with other bytes"],
            [[row["path"], row["problems"], len(row["files"]), row["items"], len(row["changed"])] for row in rows],
            right=(1, 2, 3, 4),
            whole=0,
        )
        left = [[file] for row in rows for file in row["left"]]
        if left:
            print_table(["files that the manifest does not know, left alone"], left)

    emit({"stores": rows}, json_, human)


@app.command("prune")
def prune(
    store: Annotated[
        str | None,
        typer.Option("--store", metavar="NAME", help="Remove this one cache.", show_default="useless ones"),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove; without it, only say what would go.")] = False,
    cache: CacheOption = None,
    workspace: WorkspaceOption = None,
    json_: JsonOption = False,
) -> None:
    """Remove unfinished, unreadable and superseded caches, or one by its name.

    Only what carries madkit's mark is touched, and nothing that a process is writing.
    """
    from madkit.cache import pruning
    from madkit.core.workspace import Workspace

    removals = pruning.plan_prune(Workspace.at(workspace, cache=cache).require_cache(), store)
    if yes and store is None:
        removals = pruning.prune(removals)
    elif yes:
        for removal in removals:
            pruning.remove_store(removal.row.path)
    rows = [{**removal.row.as_row(), "reason": removal.reason, "removed": yes} for removal in removals]

    def human() -> None:
        if not rows:
            print("Nothing to remove: every cache is complete and the newest of its kind.")
            return
        print_table(
            ["cache", "MB", "why"],
            [[row["name"], _mb(row["bytes"]), row["reason"]] for row in rows],
            right=(1,),
            whole=0,
        )
        if not yes:
            one = "" if store is None else f" --store {store}"
            print(placed(f"\nNothing was removed; to remove: madkit cache prune{one} --yes"))

    emit({"removed" if yes else "would_remove": rows}, json_, human)


def _print_verified(rows: list[dict[str, Any]]) -> None:
    print_table(
        ["cache", "files", "MB", "result"],
        [[row["path"], row["files"], _mb(row["bytes"]), _result(row)] for row in rows],
        right=(1, 2),
        whole=0,
    )
    problems = [[problem["file"], problem["kind"], problem["detail"]] for row in rows for problem in row["problems"]]
    if problems:
        print_table(["file", "", "what is wrong"], problems)
    samples = [
        [row["path"], part, values["n"], f"{values['mean']:.6f}", f"{values['worst']:.6f}"]
        for row in rows
        for part, values in row.get("sample", {}).items()
        if isinstance(values, dict)
    ]
    if samples:
        print_table(["cache", "encoded again", "tokens", "mean cosine", "worst"], samples, right=(2, 3, 4))


def _result(row: dict[str, Any]) -> str:
    found = len(row["problems"])
    if found:
        return "1 problem" if found == 1 else f"{found} problems"
    return "sound" if row["ok"] else "not what the teacher gives"


def _flat(document: dict[str, Any], prefix: str = "") -> list[list[object]]:
    rows: list[list[object]] = []
    for key, value in document.items():
        if isinstance(value, dict):
            rows.extend(_flat(value, f"{prefix}{key}."))
        elif key == "choices":
            rows.extend([f"{key}.{one['name']}", f"{one['value']} ({one['reason']})"] for one in value)
        else:
            rows.append([prefix + key, value])
    return rows


def _mb(bytes_: int) -> str:
    return f"{bytes_ / 1e6:,.1f}"
