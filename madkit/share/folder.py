"""A run's student as a folder that stands alone: weights, configuration, words, outputs, manifest and card.

`load_student(folder)` and `madkit predict FOLDER` read it. Its `manifest.json` is the run's, cleaned of everything that
belongs to the machine, with kind "student" and the digest of every file.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from madkit.core.errors import DataError, RunError, UsageProblem
from madkit.core.files import FileLock, read_json, sha256_file, write_json_atomic, write_text_atomic
from madkit.core.folders import replacing
from madkit.evaluate.origin import RUN_MANIFEST, find_data, find_run, spec_of
from madkit.share.card import card_text
from madkit.share.facts import Facts, default_licence, first_weights, public_manifest
from madkit.share.scores import scores_of

if TYPE_CHECKING:
    from madkit.core.workspace import Workspace
    from madkit.students.student import Student

KIND = "student"
CARD = "README.md"


@dataclass(frozen=True, slots=True)
class SharedFolder:
    """A folder to share. `written` is False where it had been there before, as it is now."""

    path: Path
    written: bool
    files: Mapping[str, int]
    licence: str
    scores: int

    @property
    def bytes(self) -> int:
        """Bytes of all its files."""
        return sum(self.files.values())


def export_run(
    workspace: Workspace, run: str, folder: Path, *, licence: str | None = None, overwrite: bool = False
) -> SharedFolder:
    """Write the student of a run into a folder of its own, with a model card.

    A folder that holds this very student is left as it is, its card included: a card may have been edited.

    Args:
        workspace: holds the run, and its reports for intervals.
        run: its folder, or its name in the workspace.
        folder: a new or empty folder, or an earlier export.
        licence: the hub's name of a licence; None: `default_licence`.
        overwrite: write everything anew in a folder that holds something; other files of it stay.

    Raises:
        NotFoundError, RunError: no such run, or it is not finished.
        UsageProblem: the folder holds something else, or this student under another licence.
        DataError: the student cannot be loaded, or its weights are not finite.
    """
    found = find_run(workspace, run)
    source = found.path / "student"
    if not source.is_dir():
        raise RunError(
            f"The run {found.path.name} holds no exported student.", hint="remove its folder and train it again"
        )
    if folder.exists() and not folder.is_dir():
        raise UsageProblem(f"{folder} is a file.", hint="name a folder")
    manifest = public_manifest(read_json(found.path / RUN_MANIFEST))
    digests = {path.name: sha256_file(path) for path in sorted(source.iterdir()) if path.is_file()}
    if _holds(folder) and not overwrite:
        there = _as_it_is(folder, digests)
        if licence is not None and licence != there.licence:
            raise UsageProblem(
                f"{folder} names the licence {there.licence or 'unknown'}, not {licence}.",
                hint="add --overwrite to write it anew",
            )
        return there
    student = _checked(source)
    data = find_data(workspace, found)
    facts = Facts(
        run=found,
        spec=spec_of(found, data),
        manifest=manifest,
        family=student.family,
        head=student.head_spec,
        region_dim=student.region_dim,
        parameters=sum(value.numel() for value in student.parameters()),
        scores=tuple(scores_of(found, spec_of(found, data), workspace.reports)),
        licence=licence or default_licence(workspace, found, manifest),
        started_from=first_weights(workspace, found.student),
    )
    del student
    card = card_text(facts)
    document = {**manifest, "kind": KIND, "run": found.path.name, "licence": facts.licence, "files": digests}
    document["scores"] = [
        {key: getattr(score, key) for key in ("suite", "metric", "percent", "n_examples", "vqa_rule")}
        for score in facts.scores
    ]
    home = Path(os.path.normpath(folder.absolute()))
    with FileLock(home.with_name(f".{home.name}.lock"), what=f"the folder {folder}"):
        if _holds(home):
            _write_into(home, source, digests, card, document)
        else:
            with replacing(home) as fresh:
                _write_into(fresh, source, digests, card, document)
    sizes = {name: (folder / name).stat().st_size for name in (CARD, *digests, RUN_MANIFEST)}
    return SharedFolder(folder, True, sizes, facts.licence, len(facts.scores))


def files_of(folder: Path) -> dict[str, str]:
    """Names and SHA-256 of the student's files in an exported folder, as its manifest tells.

    Raises UsageProblem for a folder that is no export.
    """
    manifest = read_json(folder / RUN_MANIFEST) if (folder / RUN_MANIFEST).is_file() else None
    files = manifest.get("files") if isinstance(manifest, dict) and manifest.get("kind") == KIND else None
    if not isinstance(files, dict):
        raise UsageProblem(f"{folder} is no exported student.", hint=f"madkit export RUN {folder}")
    return {str(name): str(digest) for name, digest in files.items()}


def _holds(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _as_it_is(folder: Path, digests: Mapping[str, str]) -> SharedFolder:
    try:
        there = files_of(folder)
    except UsageProblem:
        raise UsageProblem(
            f"{folder} holds other files.", hint="name a new folder, or add --overwrite to put the student beside them"
        ) from None
    if there != digests:
        raise UsageProblem(
            f"{folder} holds another student.",
            hint="name a new folder, or add --overwrite to put this one in its place",
        )
    for name, digest in there.items():
        if not (folder / name).is_file() or sha256_file(folder / name) != digest:
            raise DataError(f"{folder / name} is not the file that was exported.", hint="write it anew: --overwrite")
    manifest = read_json(folder / RUN_MANIFEST)
    sizes = {name: (folder / name).stat().st_size for name in (CARD, *there, RUN_MANIFEST) if (folder / name).is_file()}
    return SharedFolder(folder, False, sizes, str(manifest.get("licence", "")), len(manifest.get("scores") or []))


def _checked(source: Path) -> Student:
    """The student, loaded as whoever gets it will load it. Raises DataError for weights that are not finite."""
    import torch

    from madkit.students.load import WEIGHTS, load_student

    student = load_student(source)
    broken = [name for name, value in student.state_dict().items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise DataError(
            f"{source / WEIGHTS} holds NaN or infinite weights ({len(broken)} tensors, first: {broken[0]}).",
            hint="train the run again with a lower learning rate",
        )
    return student


def _write_into(folder: Path, source: Path, digests: Mapping[str, str], card: str, document: Mapping[str, Any]) -> None:
    """Every file whole or absent, the manifest last; what an earlier student had and this one has not goes."""
    try:
        earlier = set(files_of(folder)) if (folder / RUN_MANIFEST).is_file() else set()
    except UsageProblem:
        earlier = set()
    (folder / RUN_MANIFEST).unlink(missing_ok=True)
    for name in sorted(earlier - set(digests)):
        if Path(name).name == name:
            (folder / name).unlink(missing_ok=True)
    for name, digest in digests.items():
        temporary = folder / f".{name}.tmp"
        try:
            shutil.copyfile(source / name, temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            if sha256_file(temporary) != digest:
                raise RunError(f"{folder / name} was not written as it was read.", hint="check the disk")
            temporary.replace(folder / name)
        finally:
            temporary.unlink(missing_ok=True)
    write_text_atomic(folder / CARD, card)
    write_json_atomic(folder / RUN_MANIFEST, document)
