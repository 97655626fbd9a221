"""``madkit export``: a trained student as a folder to share, or on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from madkit.cli.options import JsonOption, WorkspaceOption
from madkit.cli.output import emit

EXAMPLES = """
madkit export mini-uniter-mad-1pct-s0-8a31ed01 my-student
madkit export mini-uniter-mad-1pct-s0-8a31ed01 my-student --licence apache-2.0 --overwrite
madkit export mini-uniter-mad-1pct-s0-8a31ed01 my-student --push my-name/my-student
"""


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, or its name in the workspace.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder, or an earlier export.")],
    push: Annotated[
        str | None,
        typer.Option("--push", metavar="ORG/NAME", help="Upload it to the hub, too.", show_default=False),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Make a new repository public; without it, it is private.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="BRANCH", help="Push to it.", show_default="main")
    ] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request on the hub instead.")] = False,
    licence: Annotated[
        str | None,
        typer.Option(
            "--licence",
            metavar="ID",
            help="The hub's name of a licence, such as apache-2.0 or cc-by-nc-4.0.",
            show_default="apache-2.0 where all is embedded, else unknown",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write card and files anew.")] = False,
    workspace: WorkspaceOption = None,
    json_: JsonOption = False,
) -> None:
    """Write a trained student into a folder of its own, with a model card.

    The folder holds weights (safetensors), configuration, words, labels or answers, the run's manifest without paths,
    and a card with the run's results. `load_student` and `madkit predict DIR` read it. A folder that holds this
    student already is left alone, its card included, and can be pushed.
    """
    from madkit.core.console import warn
    from madkit.core.errors import UsageProblem
    from madkit.core.workspace import Workspace
    from madkit.share.names import UNKNOWN, check_licence, check_repository

    if push is None and (public or create_pr or revision is not None):
        raise UsageProblem("--public, --revision and --create-pr say how to push.", hint="--push ORG/NAME")
    if push is not None:
        check_repository(push)
    if licence is not None:
        check_licence(licence)
    from madkit.share.folder import export_run

    done = export_run(Workspace.at(workspace), run, folder, licence=licence, overwrite=overwrite)
    if done.licence == UNKNOWN:
        warn("The card names no licence; say one with --licence ID --overwrite.")
    if not done.scores:
        warn("The run has no results yet, so its card has none: madkit evaluate, then export with --overwrite.")
    pushed = None
    if push is not None:
        from madkit.share.push import push_folder

        pushed = push_folder(folder, push, private=not public, revision=revision, create_pr=create_pr)
    document = {
        "path": str(done.path),
        "written": done.written,
        "licence": done.licence,
        "scores": done.scores,
        "bytes": done.bytes,
        "files": dict(done.files),
        "pushed": None
        if pushed is None
        else {
            "repository": pushed.repository,
            "url": pushed.url,
            "commit": pushed.commit,
            "private": pushed.private,
        },
    }

    def human() -> None:
        scores = "1 score" if done.scores == 1 else f"{done.scores or 'no'} scores"
        what = f"{len(done.files)} files, {done.bytes / 1e6:,.1f} MB, {scores} on its card"
        print(f"Exported: {what}." if done.written else f"Nothing to do: this student was there ({what}).")
        print(done.path)
        if pushed is not None:
            print(f"Pushed: {pushed.repository} ({'private' if pushed.private else 'public'}).")
            print(pushed.url)

    emit(document, json_, human)
