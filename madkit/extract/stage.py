"""``madkit extract``: read every image and text of tasks with a frozen teacher, into one token store per task.

A finished store is left alone; an unfinished one goes on at the first shard that its journal does not have.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from madkit.cache.layout import DEFAULT_SHARD_MB, MANIFEST, image_layout, store_folder, text_layout
from madkit.cache.plan import PARTS, Part, StorePlan
from madkit.cache.quantise import COSINE_FLOOR
from madkit.cache.reader import read_manifest
from madkit.cache.writer import StoreWriter
from madkit.core.console import Progress, duration, info, progress, warn
from madkit.core.errors import ConfigError, DataError
from madkit.core.interrupts import StopSignals
from madkit.core.workspace import Workspace
from madkit.extract.items import ExamplesOfTask, Items, ItemsMissing, collect_items, items_missing, split_names
from madkit.extract.options import (
    IMAGE_BATCH,
    TEXT_BATCH_TOKENS,
    ExtractOptions,
    decode_threads,
    resolve_device,
)
from madkit.extract.pipeline import WriterThread, encode_images, encode_texts, one_thread_per_operation, ordered_map
from madkit.extract.selection import stored_tokens
from madkit.tasks.data import datasets_to_extract, open_task
from madkit.teachers.interface import Teacher, TextTeacher, VisionTeacher
from madkit.teachers.known import parse_teacher_name
from madkit.teachers.load import load_teacher
from madkit.teachers.windows import WINDOWS

TOKENIZE_CHUNK = 8192


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
        info(f"Teacher {teacher.name} on {chosen_device} ({reason}), computing in {_dtype(teacher)}.")
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


def store_identity(
    teacher: Teacher,
    data: ExamplesOfTask,
    splits: Sequence[str] | None,
    *,
    tokens: str = "all",
    dtype: str = "float16",
) -> dict[str, Any]:
    """Return what decides the content of a store, as plain JSON values; its digest is the store's key."""
    vision, text = vision_and_text(teacher)
    return {
        "teacher": teacher.name,
        "vision": vision.identity,
        "text": text.identity,
        "shared_space": teacher.shared_space,
        "logit_scale": round(teacher.logit_scale, 6),
        "compute_dtype": _dtype(teacher),
        "dtype": dtype,
        "selection": tokens,
        "task": data.spec.name,
        "source": data.source,
        "revision": data.revision,
        "splits": "all" if splits is None else list(splits),
    }


def make_plan(
    vision: VisionTeacher, text: TextTeacher, items: Items, identity: Mapping[str, Any], shard_mb: float
) -> StorePlan:
    """Tokenize all texts to know their lengths, and lay out the store.

    Where texts are read in windows the way of doing so joins the identity: their tokens depend on it.
    """
    lengths = np.zeros(len(items.texts), dtype=np.int64)
    absent: dict[int, str] = {}
    windowed = approximate = 0
    for start in range(0, len(items.texts), TOKENIZE_CHUNK):
        for row, found in enumerate(text.tokenize(items.texts[start : start + TOKENIZE_CHUNK]), start=start):
            lengths[row] = len(found.ids)
            if not found.ids:
                absent[row] = _why_no_tokens(items.texts[row])
            windowed += len(found.ids) > text.limit
            approximate += found.approximate
    return StorePlan(
        identity={**identity, "long_texts": WINDOWS} if windowed else identity,
        image_ids=items.image_ids,
        image_aliases=items.aliases,
        texts=items.texts,
        lengths=lengths,
        images=image_layout(
            len(items.image_ids),
            vision.grid,
            vision.dim,
            shard_mb,
            tokens=stored_tokens(identity["selection"], vision.grid),
            dtype=identity["dtype"],
        ),
        text=text_layout(
            lengths, text.dim, shard_mb, tokens=identity["selection"] != "global", dtype=identity["dtype"]
        ),
        facts={
            "windowed_texts": windowed,
            "texts_with_approximate_spans": approximate,
            "text_tokens": int(lengths.sum()),
        },
        absent_texts=absent,
    )


def _why_no_tokens(text: str) -> str:
    return f"the teacher finds no token in {text[:60]!r}" if text.strip() else "a text is empty"


def encode_missing(
    writer: StoreWriter,
    teacher: Teacher,
    items: Items,
    options: ExtractOptions,
    signals: StopSignals | None,
    parallel: int,
) -> None:
    """Encode and store every unit that the writer does not have yet, ``parallel`` batches at a time."""
    vision, text = vision_and_text(teacher)
    job = _Job(writer, teacher.device, options, signals, parallel)
    job.images(vision, items)
    job.texts(text, items)


class _Job:
    """The encoding of one store's missing units."""

    def __init__(
        self, writer: StoreWriter, device: str, options: ExtractOptions, signals: StopSignals | None, parallel: int
    ) -> None:
        kind = torch.device(device).type
        self.writer = writer
        self.plan = writer.plan
        self.signals = signals
        self.parallel = parallel
        self.threads = decode_threads(options.workers)
        self.image_batch = options.image_batch or IMAGE_BATCH.get(kind, 32)
        self.text_tokens = options.text_tokens or TEXT_BATCH_TOKENS.get(kind, 2048)

    def images(self, teacher: VisionTeacher, items: Items) -> None:
        """Decode, encode and store the images of all missing units. One that cannot be read is marked as absent."""
        units = self.writer.pending("images")
        rows = [row for unit in units for row in self.plan.items("images", unit)]
        unreadable: dict[int, str] = {}
        blank = torch.zeros((3, *teacher.image_size), dtype=torch.uint8)
        decoded = ordered_map(
            lambda row: _load(teacher, items, row),
            rows,
            threads=self.threads,
            window=2 * self.image_batch + self.threads,
        )

        def readable() -> Iterator[torch.Tensor]:
            for row, future in zip(rows, decoded, strict=True):
                error = future.exception()
                if isinstance(error, DataError):
                    unreadable[row] = error.message.rstrip(".")
                yield blank if isinstance(error, DataError) else future.result()

        images = readable()
        with self._bar("images", len(rows)) as bar, closing(decoded), WriterThread(self.writer) as thread:
            for unit in self._until_stopped(units):
                count = len(self.plan.items("images", unit))
                arrays = encode_images(
                    teacher,
                    islice(images, count),
                    count,
                    self.image_batch,
                    bar.advance,
                    self.parallel,
                    self.plan.images.tokens,
                )
                thread.put("images", unit, arrays, unreadable.copy())
                unreadable.clear()
        self._raise_if_stopped()

    def texts(self, teacher: TextTeacher, items: Items) -> None:
        """Tokenize, encode and store the texts of all missing units."""
        units = self.writer.pending("texts")
        count = sum(len(self.plan.items("texts", unit)) for unit in units)
        with self._bar("texts", count) as bar, WriterThread(self.writer) as thread:
            for unit in self._until_stopped(units):
                rows = self.plan.items("texts", unit)
                tokenized = teacher.tokenize(items.texts[rows.start : rows.stop])
                thread.put(
                    "texts", unit, encode_texts(teacher, tokenized, self.text_tokens, bar.advance, self.parallel)
                )
        self._raise_if_stopped()

    def _bar(self, part: Part, total: int) -> Progress:
        return progress(f"Extracting {part} of {self.plan.identity['source']}", total, part)

    def _until_stopped(self, units: Sequence[int]) -> Iterator[int]:
        for unit in units:
            if self.signals is not None and self.signals.requested:
                return
            yield unit

    def _raise_if_stopped(self) -> None:
        if self.signals is not None and self.signals.requested:
            raise self.signals.error()


def _load(teacher: VisionTeacher, items: Items, row: int) -> torch.Tensor:
    if row in items.not_there:
        raise DataError(f"{items.not_there[row]}.")
    return teacher.load_image(items.image_paths[row])


def vision_and_text(teacher: Teacher) -> tuple[VisionTeacher, TextTeacher]:
    """Return both sides of a teacher (ConfigError when one is missing)."""
    if teacher.vision is None or teacher.text is None:
        reads = "texts" if teacher.vision is None else "images"
        joined = f"dinov2-vit-b14+{teacher.name}" if teacher.vision is None else f"{teacher.name}+roberta-base"
        raise ConfigError(
            f"The teacher '{teacher.name}' reads {reads} only, and a cache needs images and texts.",
            hint=f"join it with another as VISION+TEXT: --teacher {joined}",
        )
    return teacher.vision, teacher.text


def _dtype(teacher: Teacher) -> str:
    return str(teacher.dtype).removeprefix("torch.")
