"""``madkit extract``: read every image and text of tasks with a frozen teacher, into one token store per task.

A finished store is left alone; an unfinished one goes on at the first shard that its journal does not have.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from madkit.cache.layout import DEFAULT_SHARD_MB, MANIFEST, store_folder
from madkit.cache.plan import PARTS
from madkit.cache.quantise import COSINE_FLOOR
from madkit.cache.reader import read_manifest
from madkit.cache.writer import StoreWriter
from madkit.core.console import duration, info, warn
from madkit.core.errors import DataError
from madkit.core.interrupts import StopSignals
from madkit.core.workspace import Workspace
from madkit.extract.encoding import encode_missing
from madkit.extract.items import ExamplesOfTask, Items, ItemsMissing, collect_items, items_missing, split_names
from madkit.extract.options import (
    ExtractOptions,
    resolve_device,
)
from madkit.extract.pipeline import one_thread_per_operation
from madkit.extract.planning import dtype_name, make_plan, store_identity, vision_and_text
from madkit.tasks.data import datasets_to_extract, open_task
from madkit.teachers.interface import Teacher, VisionTeacher
from madkit.teachers.known import parse_teacher_name
from madkit.teachers.load import load_teacher


@dataclass(frozen=True, slots=True)
class StoreReport:
    """What became of one store.

    Attributes:
        path: its folder.
        items: images and texts in it.
        bytes: bytes of its files.
        computed: items encoded now.
        skipped: items that were there already.
        task: name of the task.
        dataset: what `--task` calls the data, which may be one of several of that task.
        images: images in it.
        texts: texts in it.
        windowed: texts longer than the teacher's limit, read in overlapping windows.
        seconds: how long it took now.
        absent: images that could not be read and texts without tokens; the store has no values for them.
    """

    path: Path
    items: int
    bytes: int
    computed: int
    skipped: int
    task: str = ""
    dataset: str = ""
    images: int = 0
    texts: int = 0
    windowed: int = 0
    seconds: float = 0.0
    absent: int = 0

    def as_row(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "path": str(self.path)}


def extract(
    workspace: Workspace,
    teacher_name: str,
    tasks: Sequence[str] = (),
    *,
    weights: Path | None = None,
    device: str = "auto",
    workers: int = 0,
    shard_mb: float | None = None,
    splits: Sequence[str] | None = None,
    part: str = "full",
    allow_missing: bool = False,
    tokens: str = "all",
    store_dtype: str = "float16",
) -> list[StoreReport]:
    """Extract tasks with a teacher.

    Args:
        workspace: where data is read and stores are written.
        teacher_name: see :func:`madkit.teachers.load.load_teacher`.
        tasks: names of tasks or imported data sets; none means every imported one, or the embedded three.
        weights: weight file or folder for the teacher.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        workers: threads that decode images; 0 for a choice.
        shard_mb: size of a shard in MB.
        splits: only these splits and suites; None for all.
        part: part of the embedded benchmark (see :func:`madkit.tasks.data.open_task`).
        allow_missing: complete a store though images cannot be read or texts have no tokens; they are marked as absent.
        tokens: ``all``, ``selected:K`` image tokens, or ``global`` vectors only (see :mod:`madkit.extract.selection`).
        store_dtype: ``float16`` or ``int8`` (see :mod:`madkit.cache.quantise`).

    Returns:
        One report per task.

    Raises:
        UsageProblem: unknown teacher, task, split or device.
        NotFoundError: no weights or no data.
        DataError: damaged weights or data.
        ItemsMissing: images that cannot be read or texts without tokens, and not ``allow_missing``; raised at the end,
            when everything else has been done.
        CacheError: another process writes the same store.
        StoppedResumable: SIGTERM; the current shard is finished and the same command goes on.
        KeyboardInterrupt: Ctrl-C, likewise.
    """
    options = ExtractOptions(
        device,
        workers,
        DEFAULT_SHARD_MB if shard_mb is None else shard_mb,
        allow_missing=allow_missing,
        tokens=tokens,
        store_dtype=store_dtype,
    )
    chosen_device, reason = resolve_device(device)
    names = datasets_to_extract(workspace, tasks)
    parse_teacher_name(teacher_name)
    with StopSignals() as signals:
        teacher = load_teacher(teacher_name, weights=weights, device=chosen_device)
        info(f"Teacher {teacher.name} on {chosen_device} ({reason}), computing in {dtype_name(teacher)}.")
        reports = []
        missing: ItemsMissing | None = None
        for name in names:
            data = open_task(workspace, name, part=part)
            if signals.requested:
                raise signals.error()
            try:
                reports.append(extract_task(workspace, teacher, data, options=options, splits=splits, signals=signals))
            except ItemsMissing as error:
                if missing is not None:
                    warn(missing.message)
                missing = error
        if missing is not None:
            raise missing
        return reports


def extract_task(
    workspace: Workspace,
    teacher: Teacher,
    data: ExamplesOfTask,
    *,
    options: ExtractOptions | None = None,
    splits: Sequence[str] | None = None,
    signals: StopSignals | None = None,
) -> StoreReport:
    """Extract one task's data with a loaded teacher. Arguments and errors as for :func:`extract`."""
    options = options or ExtractOptions()
    started = time.monotonic()
    vision, text = vision_and_text(teacher)
    names = split_names(data, splits)
    items = collect_items(data, names)
    identity = store_identity(
        teacher, data, None if splits is None else names, tokens=options.tokens, dtype=options.store_dtype
    )
    plan = make_plan(vision, text, items, identity, options.shard_mb)
    folder = store_folder(workspace.cache, parse_teacher_name(teacher.name).slug, data.source, plan.identity)
    windowed = int(plan.facts["windowed_texts"])
    with StoreWriter(folder, plan) as writer:
        _look_again(writer, vision, items)
        pending = {part: sum(len(writer.plan.items(part, unit)) for unit in writer.pending(part)) for part in PARTS}
        computed = sum(pending.values())
        total = len(items.image_ids) + len(items.texts)
        if writer.finished:
            info(f"{data.source}: the cache {folder.name} is complete, nothing to do.")
            size = int(read_manifest(folder)["bytes"])
            _judge(writer, options.allow_missing)
        else:
            if computed < total:
                info(f"{data.source}: going on with {folder.name}, {total - computed:,} of {total:,} items are there.")
            if windowed:
                info(
                    f"{windowed:,} texts are longer than the teacher's {text.limit} tokens and are read in overlapping "
                    "windows."
                )
            with one_thread_per_operation(teacher.device) as parallel:
                encode_missing(writer, teacher, items, options, signals, parallel)
            _judge(writer, options.allow_missing)
            manifest = writer.finish(seconds=time.monotonic() - started)
            size = int(manifest["bytes"])
            _say_rounding(manifest)
    seconds = time.monotonic() - started
    if computed:
        info(
            f"{data.source}: {pending['images']:,} images and {pending['texts']:,} texts in {duration(seconds)}, "
            f"{size / 1e6:,.1f} MB in {folder}."
        )
    return StoreReport(
        path=folder,
        items=total,
        bytes=size,
        computed=computed,
        skipped=total - computed,
        task=data.spec.name,
        dataset=data.source.removeprefix("mini-"),
        images=len(items.image_ids),
        texts=len(items.texts),
        windowed=windowed,
        seconds=round(seconds, 3),
        absent=sum(len(writer.absent(part)) for part in PARTS),
    )


def _say_rounding(manifest: Mapping[str, Any]) -> None:
    for part, facts in manifest.get("rounding", {}).items():
        line = (
            f"int8 {part}: cosine to the values before rounding {facts['mean_cosine']:.5f} on average, "
            f"{facts['worst_cosine']:.5f} at worst ({facts['tokens']:,} tokens, {facts['outlier_channels']} outlier "
            "channels scaled)."
        )
        info(line) if facts["worst_cosine"] >= COSINE_FLOOR else warn(line)


def _look_again(writer: StoreWriter, vision: VisionTeacher, items: Items) -> None:
    """Reopen the units of images that could not be read before and can be now."""
    for row in writer.absent("images"):
        try:
            vision.load_image(items.image_paths[row])
        except DataError:
            continue
        writer.reopen("images", row // writer.plan.images.unit)


def _judge(writer: StoreWriter, allow_missing: bool) -> None:
    """Say what is absent; raise ItemsMissing unless that is allowed."""
    images, texts = (list(writer.absent(part).values()) for part in PARTS)
    if not images and not texts:
        return
    plan = writer.plan
    where = writer.folder / MANIFEST if writer.finished else writer.list_absent()
    error = items_missing(images, len(plan.image_ids), texts, len(plan.texts), where)
    if not allow_missing:
        raise error
    warn(f"{error.message} The cache has no values for them.")
