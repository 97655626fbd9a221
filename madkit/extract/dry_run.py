"""``madkit extract --dry-run``: what an extraction would do, how many bytes it would take, and about how long.

Nothing is stored but a sample for the estimate of time, in a folder that goes away.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from madkit.cache.layout import DEFAULT_SHARD_MB, store_folder
from madkit.cache.plan import PARTS, Part, StorePlan
from madkit.cache.reader import Place
from madkit.cache.remote import remote_store
from madkit.cache.remote_files import RemoteFolder
from madkit.cache.resuming import begun_with, resumed_plan, units_there
from madkit.core.console import info, warn
from madkit.core.workspace import Workspace
from madkit.extract.broken_files import broken_files
from madkit.extract.frozen import load_frozen, with_decoder, with_view
from madkit.extract.items import Items, collect_items, split_names
from madkit.extract.options import ExtractOptions, resolve_device
from madkit.extract.planning import lay_out, make_plan, store_identity
from madkit.extract.selection import selected_count
from madkit.extract.warm_up import Measured, warm_up
from madkit.tasks.data import datasets_to_extract, open_task
from madkit.teachers.adapter import named_teacher
from madkit.teachers.interface import Teacher
from madkit.teachers.known import parse_teacher_name

_SELECTED = 64
"""How many tokens the table of sizes supposes for a selection, where none was asked for."""


@dataclass(frozen=True, slots=True)
class PlanReport:
    """What would become of one store.

    Attributes:
        path: its folder or URL.
        task: name of the task.
        dataset: what `--task` calls the data.
        images: unique images.
        texts: unique texts.
        mentions: how often the examples name an image, and a text.
        counts: of each part how many items are unique, are there already, and would be encoded.
        text_tokens: tokens of all texts.
        windowed: texts longer than the teacher's limit, which would be read in overlapping windows.
        items: images and texts.
        pending: items that would be encoded.
        skipped: items that are there already.
        absent: image files that do not exist or are none (`broken_files`) and texts without tokens, which would have no
            values.
        bytes: bytes of tokens, spans and global vectors of the complete store.
        needed_bytes: those that are not there yet.
        free_bytes: free space where it would lie (of a store at a URL: where its mirror lies).
        sizes: bytes for every choice of tokens and dtype.
        device: where it would be encoded.
        measured: what a sample took, for each part that has anything to be done.
        seconds: about how long it would take on this device; 0.0 where nothing is to be done.
    """

    path: Place
    task: str
    dataset: str
    images: int
    texts: int
    mentions: tuple[int, int]
    counts: dict[Part, tuple[int, int, int]]
    text_tokens: int
    windowed: int
    items: int
    pending: int
    skipped: int
    absent: int
    bytes: int
    needed_bytes: int
    free_bytes: int
    sizes: tuple[dict[str, Any], ...]
    device: str
    measured: dict[Part, Measured] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def fits(self) -> bool:
        """Whether there is room for what is not there yet."""
        return self.needed_bytes <= self.free_bytes

    def as_row(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        measured = {part: one.as_row() for part, one in self.measured.items()}
        return {**asdict(self), "path": str(self.path), "fits": self.fits, "measured": measured}


def dry_run(
    workspace: Workspace,
    teacher_name: str | None,
    tasks: Sequence[str] = (),
    *,
    adapter: str | None = None,
    weights: Path | None = None,
    device: str = "auto",
    workers: int = 0,
    shard_mb: float | None = None,
    tokens: str = "all",
    store_dtype: str = "float16",
    decoder: str = "auto",
    compute_dtype: str = "auto",
    view: str = "teacher",
) -> list[PlanReport]:
    """Plan an extraction. Arguments and errors as for :func:`madkit.extract.stage.extract`."""
    options = ExtractOptions(
        device,
        workers,
        DEFAULT_SHARD_MB if shard_mb is None else shard_mb,
        tokens=tokens,
        store_dtype=store_dtype,
        decoder=decoder,
        compute_dtype=compute_dtype,
        view=view,
    )
    if workspace.cache_url is not None:
        RemoteFolder(workspace.cache_url).refuse_unusable()
    chosen, reason = resolve_device(device)
    names = datasets_to_extract(workspace, tasks)
    given, adaptation = named_teacher(workspace, teacher_name, adapter)
    teacher, dtype = load_frozen(given, weights=weights, device=chosen, compute_dtype=compute_dtype, adapter=adaptation)
    teacher, _ = with_view(teacher, view)
    teacher, _ = with_decoder(teacher, decoder)
    info(f"Teacher {teacher.name} on {chosen} ({reason}), computing in {dtype.value}; a sample is measured.")
    return [_plan_one(workspace, teacher, name, options) for name in names]


def _plan_one(workspace: Workspace, teacher: Teacher, name: str, options: ExtractOptions) -> PlanReport:
    data = open_task(workspace, name)
    items = collect_items(data, split_names(data, None), teacher)
    identity = store_identity(teacher, data, None, tokens=options.tokens, dtype=options.store_dtype)
    plan = make_plan(teacher, items, identity, options.shard_mb)
    folder = store_folder(workspace.cache, parse_teacher_name(teacher.name).slug, data.source, plan.identity)
    place = remote_store(workspace, folder.name) or folder
    begun = begun_with(place)
    if begun is not None:  # its shards have the sizes that it was begun with
        plan = resumed_plan(plan, begun, place)
    todo = _pending(place, plan)
    total, pending = len(items.image_ids) + len(items.texts), sum(len(rows) for rows in todo.values())
    size = _bytes(plan)
    broken = broken_files([items.image_paths[row] for row in todo["images"] if row not in items.not_there])
    measured = warm_up(teacher, data, items, todo, options)
    report = PlanReport(
        path=place,
        task=data.spec.name,
        dataset=data.source.removeprefix("mini-"),
        images=len(items.image_ids),
        texts=len(items.texts),
        mentions=items.mentions,
        counts={
            "images": (len(items.image_ids), len(items.image_ids) - len(todo["images"]), len(todo["images"])),
            "texts": (len(items.texts), len(items.texts) - len(todo["texts"]), len(todo["texts"])),
        },
        text_tokens=int(plan.lengths.sum()),
        windowed=int(plan.facts["windowed_texts"]),
        items=total,
        pending=pending,
        skipped=total - pending,
        absent=len(items.not_there) + len(plan.absent_texts) + len(broken),
        bytes=size,
        needed_bytes=round(size * _share(plan, todo)),
        free_bytes=shutil.disk_usage(_existing(folder)).free,
        sizes=tuple(_sizes(teacher, items, plan, options)),
        device=teacher.device,
        measured=measured,
        seconds=round(_seconds(plan, todo, measured), 2),
    )
    if broken:
        more = f" and {len(broken) - 1:,} more" if len(broken) > 1 else ""
        warn(f"{report.dataset}: {broken[0]}{more}: no images, or damaged ones.")
    if not report.fits:
        warn(
            f"{report.dataset}: {report.needed_bytes / 1e6:,.1f} MB are needed and {report.free_bytes / 1e6:,.1f} MB "
            f"are free at {_existing(folder)}."
        )
    return report


def _pending(place: Place, plan: StorePlan) -> dict[Part, list[int]]:
    """Return the rows that are still to be done."""
    done = units_there(place)
    return {
        part: [row for unit in range(plan.units(part)) if (part, unit) not in done for row in plan.items(part, unit)]
        for part in PARTS
    }


def _share(plan: StorePlan, todo: dict[Part, list[int]]) -> float:
    """How much of the bytes is still to be written, by bytes of both parts."""
    left = whole = 0.0
    for part in PARTS:
        n = plan.images.n if part == "images" else plan.text.n
        size = _bytes(plan, part)
        whole += size
        left += size * len(todo[part]) / n if n else 0.0
    return left / whole if whole else 0.0


def _seconds(plan: StorePlan, todo: dict[Part, list[int]], measured: dict[Part, Measured]) -> float:
    seconds = 0.0
    for part, one in measured.items():
        if part == "images":
            seconds += one.seconds_for(len(todo[part]) / one.items)
        else:  # by tokens: the sample's texts need not be as long as the others
            tokens = int(plan.lengths[todo[part]].sum()) + 2 * len(todo[part])
            seconds += one.seconds_for(tokens / (one.tokens + 2 * one.items))
    return seconds


def _sizes(teacher: Teacher, items: Items, plan: StorePlan, options: ExtractOptions) -> list[dict[str, Any]]:
    """Bytes of the store for all tokens, a selection and global vectors alone, in both dtypes."""
    kept = selected_count(options.tokens) or _SELECTED
    choices = ["all", "global"]
    if teacher.vision is not None and kept < teacher.vision.grid[0] * teacher.vision.grid[1]:
        choices.insert(1, f"selected:{kept}")
    rows = []
    for tokens in choices:
        for dtype in ("float16", "int8") if tokens != "global" else ("float16",):
            images, text = lay_out(teacher, items, plan.lengths, tokens, dtype, options.shard_mb)
            size = _bytes(replace(plan, images=images, text=text))
            rows.append({"tokens": tokens, "dtype": dtype, "bytes": size})
    return rows


def _bytes(plan: StorePlan, *parts: Part) -> int:
    ragged = ("tokens", "spans", "scales")
    total = 0
    for part in parts or PARTS:
        for name, spec in plan.arrays(part).items():
            rows = int(plan.lengths.sum()) if part == "texts" and name in ragged else spec.rows
            total += rows * spec.row_bytes
    return total


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
