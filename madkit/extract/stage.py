"""``madkit extract``: read every image and text of tasks with a frozen teacher, into one token store per task.

A finished store is left alone; an unfinished one goes on at the first shard that its journal does not have.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from madkit.cache.layout import DEFAULT_SHARD_MB, MANIFEST, store_folder
from madkit.cache.plan import PARTS, Part, StorePlan
from madkit.cache.quantise import COSINE_FLOOR
from madkit.cache.reader import read_manifest
from madkit.cache.remote import remote_store
from madkit.cache.remote_copy import remote_copy
from madkit.cache.remote_files import RemoteFolder
from madkit.cache.writer import StoreWriter
from madkit.core.console import duration, info, warn
from madkit.core.errors import DataError
from madkit.core.interrupts import StopSignals
from madkit.core.workspace import Workspace
from madkit.extract.choices import Choice, ChoiceLog
from madkit.extract.encoding import encode_missing
from madkit.extract.frozen import load_frozen, with_decoder, with_view
from madkit.extract.items import ExamplesOfTask, Items, ItemsMissing, collect_items, items_missing, split_names
from madkit.extract.options import ExtractOptions
from madkit.extract.pipeline import one_thread_per_operation
from madkit.extract.planning import make_plan, store_identity
from madkit.extract.processes import Processes
from madkit.extract.reports import SomeMissing, StoreReport
from madkit.tasks.data import TaskData, datasets_to_extract, open_task
from madkit.teachers.adapter import named_teacher
from madkit.teachers.interface import Teacher
from madkit.teachers.known import parse_teacher_name


def extract(
    workspace: Workspace,
    teacher_name: str | None,
    tasks: Sequence[str] = (),
    *,
    adapter: str | None = None,
    weights: Path | None = None,
    device: str = "auto",
    workers: int = 0,
    shard_mb: float | None = None,
    splits: Sequence[str] | None = None,
    part: str = "full",
    allow_missing: bool = False,
    tokens: str = "all",
    store_dtype: str = "float16",
    decoder: str = "auto",
    compute_dtype: str = "auto",
    compile: str = "auto",
    view: str = "teacher",
) -> list[StoreReport]:
    """Extract tasks with a teacher.

    Args:
        workspace: where data is read and stores are written.
        teacher_name: see :func:`madkit.teachers.load.load_teacher`; None takes the one that ``adapter`` was made from.
        tasks: names of tasks or imported data sets; none means every imported one, or the embedded three.
        adapter: name in the workspace, or folder, of an adaptation run whose outcome is applied to the teacher.
        weights: weight file or folder for the teacher.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        workers: threads that decode images; 0 for a choice.
        shard_mb: size of a shard in MB.
        splits: only these splits and suites; None for all.
        part: part of the embedded benchmark (see :func:`madkit.tasks.data.open_task`).
        allow_missing: complete a store though images cannot be read or texts have no tokens; they are marked as absent.
        tokens: ``all``, ``selected:K`` image tokens, or ``global`` vectors only (see :mod:`madkit.extract.selection`).
        store_dtype: ``float16`` or ``int8`` (see :mod:`madkit.cache.quantise`).
        decoder: ``auto``, ``torchvision`` or ``pillow`` (see :mod:`madkit.extract.decode`).
        compute_dtype: ``auto``, ``float32``, ``mixed``, ``float16`` or ``bfloat16`` (see :mod:`madkit.extract.frozen`).
        compile: whether the image encoder's blocks are compiled: ``auto``, ``on`` or ``off``.
        view: ``teacher``, or ``whole`` images where the teacher would cut the centre out.

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
    log = ChoiceLog()
    with Processes() as processes, StopSignals() as signals:

        def begin() -> tuple[ExtractOptions, list[str], Teacher]:
            options = ExtractOptions(
                device,
                workers,
                DEFAULT_SHARD_MB if shard_mb is None else shard_mb,
                allow_missing=allow_missing,
                tokens=tokens,
                store_dtype=store_dtype,
                decoder=decoder,
                compute_dtype=compute_dtype,
                compile=compile,
                view=view,
            )
            if workspace.cache_url is not None:
                RemoteFolder(workspace.cache_url).refuse_unusable()
            chosen, reason = processes.device(device)
            names = datasets_to_extract(workspace, tasks)
            name, adaptation = named_teacher(workspace, teacher_name, adapter)
            parse_teacher_name(name)
            teacher, dtype = load_frozen(
                name, weights=weights, device=chosen, compute_dtype=compute_dtype, adapter=adaptation
            )
            log.begin([Choice("device", chosen, reason), dtype])
            info(
                f"Teacher {teacher.name}{_adapted(teacher)} on {chosen} ({reason}), computing in {dtype.value} "
                f"({dtype.reason})."
            )
            return options, names, teacher

        options, names, teacher = processes.together(begin)
        before = log.latest
        reports = []
        missing: ItemsMissing | None = None
        unfinished: list[dict[str, Any]] = []
        for name in names:
            data = processes.one_after_another(partial(_open, workspace, name, part, signals))
            log.begin(before)
            try:
                reports.append(
                    extract_task(
                        workspace,
                        teacher,
                        data,
                        options=options,
                        splits=splits,
                        signals=signals,
                        processes=processes,
                        log=log,
                    )
                )
            except ItemsMissing as error:
                if missing is not None:
                    warn(missing.message)
                missing = error
                unfinished.append({"task": data.spec.name, "dataset": data.source.removeprefix("mini-"), **error.facts})
        if missing is not None:
            raise SomeMissing(missing, reports, unfinished) from missing
        return reports


def _open(workspace: Workspace, name: str, part: str, signals: StopSignals) -> TaskData:
    data = open_task(workspace, name, part=part)
    if signals.requested:
        raise signals.error()
    return data


def _adapted(teacher: Teacher) -> str:
    sides = [side for side in (teacher.vision, teacher.text) if side is not None]
    mark = next((side.identity["adapter"] for side in sides if "adapter" in side.identity), None)
    return "" if mark is None else f", adapted as {mark['name']},"


def extract_task(
    workspace: Workspace,
    teacher: Teacher,
    data: ExamplesOfTask,
    *,
    options: ExtractOptions | None = None,
    splits: Sequence[str] | None = None,
    signals: StopSignals | None = None,
    processes: Processes | None = None,
    log: ChoiceLog | None = None,
) -> StoreReport:
    """Extract one task's data with a loaded teacher. Arguments and errors as for :func:`extract`.

    Args:
        workspace: where the store is written.
        teacher: reads images, texts, or both; the store has what it reads.
        data: the task's examples.
        options: how to extract.
        splits: only these splits and suites.
        signals: asked between units whether to stop.
        processes: the job that this process belongs to; all of them call with the same arguments.
        log: prints what is chosen.
    """
    options = options or ExtractOptions()
    log = log or ChoiceLog()
    teacher, view = with_view(teacher, options.view)
    teacher, decoder = with_decoder(teacher, options.decoder)
    processes = processes or Processes.alone()
    started = time.monotonic()
    names = processes.together(lambda: split_names(data, splits))
    items = processes.together(lambda: collect_items(data, names, teacher))
    total = len(items.image_ids) + len(items.texts)
    with ExitStack() as held:

        def prepare() -> _Prepared:
            identity = store_identity(
                teacher, data, None if splits is None else names, tokens=options.tokens, dtype=options.store_dtype
            )
            plan = make_plan(teacher, items, identity, options.shard_mb)
            folder = store_folder(workspace.cache, parse_teacher_name(teacher.name).slug, data.source, plan.identity)
            writer = held.enter_context(StoreWriter(folder, plan, remote=remote_copy(workspace, folder.name)))
            _look_again(writer, teacher, items)
            return _Prepared(writer.folder, writer.plan, {part: writer.missing(part) for part in PARTS}, writer)

        prepared = processes.together(prepare if processes.first else lambda: None)
        told = processes.share(None if prepared is None else prepared.for_others())
        pending = {part: sum(len(told.plan.items(part, unit)) for unit in told.units[part]) for part in PARTS}
        if prepared is not None:
            _announce(prepared, teacher, data.source, total - sum(pending.values()), total, processes.count)
        writer = None if prepared is None else prepared.writer
        if not told.finished:
            log.add([choice for choice in (decoder, view) if choice is not None])
            processes.together(
                lambda: _do_share(workspace, told, writer, teacher, items, options, signals, processes, log)
            )

        def complete() -> StoreReport:
            assert writer is not None
            remote = remote_store(workspace, told.folder.name)
            if not told.finished:
                writer.gather()
            choices = () if told.finished else log.latest
            size = _complete(writer, options.allow_missing, started, choices)
            seconds = time.monotonic() - started
            if any(pending.values()):
                done = " and ".join(f"{pending[part]:,} {part}" for part in told.plan.parts)
                info(f"{data.source}: {done} in {duration(seconds)}, {size / 1e6:,.1f} MB in {remote or told.folder}.")
            return StoreReport(
                path=told.folder,
                url=None if remote is None else remote.url,
                items=total,
                bytes=size,
                computed=sum(pending.values()),
                skipped=total - sum(pending.values()),
                task=data.spec.name,
                dataset=data.source.removeprefix("mini-"),
                images=len(items.image_ids),
                texts=len(items.texts),
                windowed=int(told.plan.facts["windowed_texts"]),
                seconds=round(seconds, 3),
                absent=sum(len(writer.absent(part)) for part in PARTS),
                choices=choices,
            )

        return processes.share(processes.together(complete if processes.first else lambda: None))


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A store that is ready to be filled: what the first process tells the others of it."""

    folder: Path
    plan: StorePlan
    units: Mapping[Part, Sequence[int]]
    writer: StoreWriter | None
    finished: bool = False

    def for_others(self) -> _Prepared:
        """Return what is to be sent: without names and texts, which every process reads from the data itself."""
        assert self.writer is not None
        plan = replace(self.plan, image_ids=(), image_aliases={}, texts=())
        return replace(self, plan=plan, writer=None, finished=self.writer.finished)


def _announce(prepared: _Prepared, teacher: Teacher, source: str, there: int, total: int, processes: int) -> None:
    plan, name = prepared.plan, prepared.folder.name
    if prepared.writer is not None and prepared.writer.finished:
        info(f"{source}: the cache {name} is complete, nothing to do.")
        return
    if there:
        info(f"{source}: going on with {name}, {there:,} of {total:,} items are there.")
    windowed = int(plan.facts["windowed_texts"])
    if windowed and teacher.text is not None:
        info(
            f"{windowed:,} texts are longer than the teacher's {teacher.text.limit} tokens and are read in overlapping "
            "windows."
        )
    if processes > 1:
        shards = sum(len(units) for units in prepared.units.values())
        info(f"{source}: {processes} processes share {shards:,} shards; what is counted below is the first one's part.")


def _do_share(
    workspace: Workspace,
    told: _Prepared,
    writer: StoreWriter | None,
    teacher: Teacher,
    items: Items,
    options: ExtractOptions,
    signals: StopSignals | None,
    processes: Processes,
    log: ChoiceLog,
) -> None:
    """Encode this process's share of the missing units."""
    with ExitStack() as held:
        if writer is None:  # not the first process
            plan = replace(told.plan, image_ids=items.image_ids, image_aliases=items.aliases, texts=items.texts)
            remote = remote_copy(workspace, told.folder.name, process=processes.number)
            writer = held.enter_context(StoreWriter(told.folder, plan, process=processes.number, remote=remote))
        writer.take(processes.deal(told.units))
        parallel = held.enter_context(one_thread_per_operation(teacher.device))
        encode_missing(writer, teacher, items, options, signals, parallel, log.add)


def _complete(writer: StoreWriter, allow_missing: bool, started: float, choices: Sequence[Choice]) -> int:
    """Complete a store that has all units, unless it is; return its bytes. Raises ItemsMissing where not allowed."""
    _judge(writer, allow_missing)
    if writer.finished:
        return int(read_manifest(writer.folder)["bytes"])
    manifest = writer.finish(seconds=time.monotonic() - started, choices=[choice.as_row() for choice in choices])
    _say_rounding(manifest)
    return int(manifest["bytes"])


def _say_rounding(manifest: Mapping[str, Any]) -> None:
    for part, facts in manifest.get("rounding", {}).items():
        line = (
            f"int8 {part}: cosine to the values before rounding {facts['mean_cosine']:.5f} on average, "
            f"{facts['worst_cosine']:.5f} at worst ({facts['tokens']:,} tokens, {facts['outlier_channels']} outlier "
            "channels scaled)."
        )
        info(line) if facts["worst_cosine"] >= COSINE_FLOOR else warn(line)


def _look_again(writer: StoreWriter, teacher: Teacher, items: Items) -> None:
    """Reopen the units of images that could not be read before and can be now."""
    vision = teacher.vision
    if vision is None:
        return
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
