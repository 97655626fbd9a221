"""Repairing a store: the units whose files are missing, truncated or damaged are computed again, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from madkit.cache.layout import MANIFEST
from madkit.cache.plan import PARTS, Part, unit_of_file
from madkit.cache.reader import Place, extract_command, read_manifest
from madkit.cache.remote import RemoteStore
from madkit.cache.remote_copy import RemoteCopy
from madkit.cache.verify import VerifyReport, verify_cache
from madkit.cache.writer import StoreWriter
from madkit.core.console import info, warn
from madkit.core.errors import CacheError
from madkit.core.interrupts import StopSignals
from madkit.core.workspace import Workspace
from madkit.extract.encoding import encode_missing
from madkit.extract.frozen import load_as_stored
from madkit.extract.items import collect_items, items_missing, split_names
from madkit.extract.options import ExtractOptions, resolve_device
from madkit.extract.pipeline import one_thread_per_operation
from madkit.extract.planning import make_plan, store_identity
from madkit.tasks.data import find_dataset, open_task
from madkit.teachers.adapter import adapter_of_store, adapters_folder


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What a repair did.

    Attributes:
        path: the store's folder or URL.
        problems: how many problems the verification had found.
        files: files written again, by name.
        items: images and texts encoded again.
        changed: files that did not come out as they had been (another device or version); the manifest follows them.
        left: files that the manifest does not know; they are left alone.
    """

    path: Place
    problems: int
    files: tuple[str, ...]
    items: int
    changed: tuple[str, ...]
    left: tuple[str, ...]

    def as_row(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "path": str(self.path),
            "problems": self.problems,
            "files": list(self.files),
            "items": self.items,
            "changed": list(self.changed),
            "left": list(self.left),
        }


def repair(
    workspace: Workspace,
    path: Place,
    *,
    weights: Path | None = None,
    device: str = "auto",
    workers: int = 0,
    on_file: Callable[[int], None] | None = None,
) -> RepairReport:
    """Verify a complete store, and compute its damaged units again with the live teacher.

    Damaged files are removed first, so that a killed repair leaves a store that the next repair, or the extraction,
    goes on with. Metadata, ids and texts are written again from the data.

    Args:
        workspace: where the data is.
        path: the store's folder, or the store at a URL: then damaged objects are removed and uploaded again.
        weights: weight file or folder for the teacher.
        device: as for :func:`madkit.extract.stage.extract`.
        workers: threads that decode images.
        on_file: called with the bytes of each verified file.

    Raises:
        CacheError: the store is unfinished, its manifest is damaged, or teacher or data are no longer those it was
            made with, so that nothing equal could be computed.
        StoppedResumable, KeyboardInterrupt: stopped by a signal after a shard.
    """
    manifest = read_manifest(path)
    report = verify_cache(path, on_file=on_file)
    left = tuple(problem.file for problem in report.problems if problem.kind == "foreign")
    bad = _damaged_files(report)
    if not bad:
        return RepairReport(path, len(report.problems), (), 0, (), left)
    chosen, _ = resolve_device(device)
    identity = manifest["identity"]
    with StopSignals() as signals:
        adapter = adapter_of_store(adapters_folder(workspace), identity)
        teacher = load_as_stored(identity, weights=weights, device=chosen, adapter=adapter)
        data = find_dataset(workspace, str(identity["source"]), str(identity["revision"])) or open_task(
            workspace, str(identity["task"]), build=False, part="auto"
        )
        splits = None if identity.get("splits", "all") == "all" else identity["splits"]
        items = collect_items(data, split_names(data, splits), teacher)
        kept = {"tokens": identity.get("selection", "all"), "dtype": identity.get("dtype", "float16")}
        here = store_identity(teacher, data, splits, **kept)
        plan = make_plan(teacher, items, here, 1.0)
        different = sorted(
            name for name in {*identity, *plan.identity} if identity.get(name) != plan.identity.get(name)
        )
        if different:
            raise CacheError(
                f"The cache {path.name} was made with something else than what is at hand ({', '.join(different)}), so "
                "nothing equal can be computed.",
                hint=f"make another cache: {extract_command(plan.identity)}",
            )
        remote = RemoteCopy(path, damaged=bad) if isinstance(path, RemoteStore) else None
        folder = path.mirror if isinstance(path, RemoteStore) else path
        with StoreWriter(folder, plan, known=manifest, remote=remote) as writer:
            for name in bad:
                place = unit_of_file(name)
                if place is not None:  # what belongs to no unit has just been written again
                    (folder / name).unlink(missing_ok=True)
                    writer.reopen(*place)
            again = sum(len(writer.plan.items(part, unit)) for part in PARTS for unit in writer.pending(part))
            files = "1 file is" if len(bad) == 1 else f"{len(bad)} files are"
            info(f"{path.name}: {files} damaged or missing, {again:,} items are encoded again.")
            (folder / MANIFEST).unlink(missing_ok=True)
            before = {part: set(writer.absent(part)) for part in PARTS}
            with one_thread_per_operation(teacher.device) as parallel:
                encode_missing(writer, teacher, items, ExtractOptions(chosen, workers), signals, parallel)
            _refuse_new_losses(writer, before, manifest)
            fresh = writer.finish(seconds=float(manifest["seconds"]), keep=manifest)
    old, new = manifest["files"], fresh["files"]
    changed = tuple(name for name in new if old.get(name) != new[name])
    if changed:
        warn(f"{len(changed)} files did not come out as they were, {changed[0]} first: another device or version.")
    return RepairReport(path, len(report.problems), tuple(bad), again, changed, left)


def _refuse_new_losses(writer: StoreWriter, before: Mapping[Part, set[int]], manifest: Mapping[str, Any]) -> None:
    """An image that was read then and cannot be read now would be lost by completing the store."""
    known = {part: {int(item["row"]) for item in manifest.get("absent", {}).get(part, ())} for part in PARTS}
    images, texts = (
        [error for row, error in writer.absent(part).items() if row not in known[part] | before[part]] for part in PARTS
    )
    if images or texts:
        ids, said = writer.plan.image_ids, writer.plan.texts
        raise items_missing(images, len(ids), texts, len(said), writer.list_absent())


def _damaged_files(report: VerifyReport) -> list[str]:
    broken = [problem for problem in report.problems if problem.kind in ("manifest", "layout")]
    if broken:
        about = "" if broken[0].kind == "manifest" else f"{broken[0].file}: "
        raise CacheError(
            f"The manifest of {report.path} cannot be trusted: {about}{broken[0].detail}.",
            hint=f"extract again: madkit cache prune --store {report.path.name} --yes, then madkit extract",
        )
    return list(dict.fromkeys(problem.file for problem in report.problems if problem.kind != "foreign"))
