"""``madkit extract --dry-run``: what an extraction would do, and how many bytes it would take. Nothing is encoded."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from madkit.cache.journal import journalled_units
from madkit.cache.layout import DEFAULT_SHARD_MB, store_folder
from madkit.cache.plan import PARTS, StorePlan
from madkit.cache.reader import Place
from madkit.cache.remote import RemoteStore, remote_store
from madkit.cache.remote_copy import remote_units
from madkit.core.workspace import Workspace
from madkit.extract.frozen import load_frozen, with_decoder
from madkit.extract.items import collect_items, split_names
from madkit.extract.options import ExtractOptions
from madkit.extract.planning import make_plan, store_identity
from madkit.tasks.data import datasets_to_extract, open_task
from madkit.teachers.adapter import named_teacher
from madkit.teachers.known import parse_teacher_name


@dataclass(frozen=True, slots=True)
class PlanReport:
    """What would become of one store.

    Attributes:
        path: its folder or URL.
        task: name of the task.
        dataset: what `--task` calls the data.
        images: unique images.
        texts: unique texts.
        text_tokens: tokens of all texts.
        windowed: texts longer than the teacher's limit, which would be read in overlapping windows.
        items: images and texts.
        pending: items that would be encoded.
        skipped: items that are there already.
        bytes: bytes of tokens, spans and global vectors of the complete store.
        free_bytes: free space where it would lie.
    """

    path: Place
    task: str
    dataset: str
    images: int
    texts: int
    text_tokens: int
    windowed: int
    items: int
    pending: int
    skipped: int
    bytes: int
    free_bytes: int

    def as_row(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "path": str(self.path)}


def dry_run(
    workspace: Workspace,
    teacher_name: str | None,
    tasks: Sequence[str] = (),
    *,
    adapter: str | None = None,
    weights: Path | None = None,
    shard_mb: float | None = None,
    tokens: str = "all",
    store_dtype: str = "float16",
    decoder: str = "auto",
    compute_dtype: str = "auto",
) -> list[PlanReport]:
    """Plan an extraction. Arguments and errors as for :func:`madkit.extract.stage.extract`."""
    # refuses what cannot be meant
    ExtractOptions(tokens=tokens, store_dtype=store_dtype, decoder=decoder, compute_dtype=compute_dtype)
    names = datasets_to_extract(workspace, tasks)
    given, adaptation = named_teacher(workspace, teacher_name, adapter)
    teacher, _ = load_frozen(given, weights=weights, compute_dtype=compute_dtype, adapter=adaptation)
    teacher, _ = with_decoder(teacher, decoder)
    rows = []
    for name in names:
        data = open_task(workspace, name)
        items = collect_items(data, split_names(data, None), teacher)
        identity = store_identity(teacher, data, None, tokens=tokens, dtype=store_dtype)
        plan = make_plan(teacher, items, identity, shard_mb or DEFAULT_SHARD_MB)
        folder = store_folder(workspace.cache, parse_teacher_name(teacher.name).slug, data.source, plan.identity)
        total = len(items.image_ids) + len(items.texts)
        place = remote_store(workspace, folder.name) or folder
        there = _journalled(place, plan)
        rows.append(
            PlanReport(
                path=place,
                task=data.spec.name,
                dataset=data.source.removeprefix("mini-"),
                images=len(items.image_ids),
                texts=len(items.texts),
                text_tokens=int(plan.lengths.sum()),
                windowed=int(plan.facts["windowed_texts"]),
                items=total,
                pending=total - there,
                skipped=there,
                bytes=_bytes(plan),
                free_bytes=shutil.disk_usage(_existing(folder)).free,
            )
        )
    return rows


def _journalled(place: Place, plan: StorePlan) -> int:
    done = remote_units(place) if isinstance(place, RemoteStore) else journalled_units(place)
    return sum(
        len(plan.items(part, unit)) for part in PARTS for unit in range(plan.units(part)) if (part, unit) in done
    )


def _bytes(plan: StorePlan) -> int:
    ragged = ("tokens", "spans", "scales")
    return sum(
        spec.rows * spec.row_bytes
        for part in PARTS
        for name, spec in plan.arrays(part).items()
        if not (part == "texts" and name in ragged)
    ) + int(plan.lengths.sum()) * sum(spec.row_bytes for name, spec in plan.arrays("texts").items() if name in ragged)


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
