"""Write a task of the embedded benchmark to disk, in the files and formats of the real one, and index it like that."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from madkit.core.console import progress
from madkit.core.errors import UsageProblem
from madkit.core.files import FileLock, digest_of, write_text_atomic
from madkit.regions import write_butd_hdf5
from madkit.tasks.example import Example
from madkit.tasks.importing.plan import Advance, ImportPlan
from madkit.tasks.importing.plan import SplitPlan as SplitFiles
from madkit.tasks.importing.write import write_dataset
from madkit.tasks.shortcuts import rule_plural, rule_singular

from .chunks import IMAGE_SIZE, REWORDED, SHIFTED, Chunk, make_chunk, subset_of
from .plan import DESIGN, PARTS, QUESTIONS_PER_CHUNK, SOURCES, SplitPlan, splits_of

MANIFEST = "manifest.json"
REGION_FILE = "regions.h5"


def build_mini(folder: Path, source: str, *, part: str = "full", workers: int | None = None) -> None:
    """Build one task ("mini-vcr", "mini-snli-ve", "mini-vqa") into `folder`; the manifest is written last.

    `part`: "full", or less of the same questions ("demo", "tiny"). Does nothing where the manifest already stands. The
    files are the same whatever `workers` is.
    """
    task = next((task for task, name in SOURCES.items() if name == source), None)
    if task is None or part not in PARTS:
        raise UsageProblem(f"the embedded benchmark has no {source!r} with part {part!r}")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if not (folder / MANIFEST).is_file():
            _build(folder, task, source, part, workers or os.cpu_count() or 1)


def _build(folder: Path, task: str, source: str, part: str, workers: int) -> None:
    plans = splits_of(task, part)
    jobs = [(task, plan, i, folder) for plan in plans for i in range(-(-plan.questions // QUESTIONS_PER_CHUNK))]
    rows: dict[str, list[Any]] = {}

    def regions() -> Iterator[tuple[str, npt.NDArray[np.float32], npt.NDArray[np.float16], tuple[int, int]]]:
        with progress(f"Drawing {source}", total=sum(plan.questions for plan in plans), unit="questions") as bar:
            for (_, plan, i, _), chunk in zip(jobs, _chunks(jobs, workers), strict=True):
                for split, more in chunk.rows.items():
                    rows.setdefault(split, []).extend(more)
                for entry in chunk.regions:
                    yield entry.image_id, entry.boxes, entry.features, IMAGE_SIZE
                bar.advance(min(QUESTIONS_PER_CHUNK, plan.questions - i * QUESTIONS_PER_CHUNK))

    write_butd_hdf5(folder / REGION_FILE, regions())
    if task == "vcr":
        rows["test-shortcut-singular"] = rule_singular(rows["test"])
        rows["test-shortcut-plural"] = rule_plural(rows["test"])
    for split, entries in rows.items():
        _write_split(folder, task, split, entries)
    plan = ImportPlan(
        task=task,
        source=source,
        title=source,
        splits=[_split_plan(folder, task, split) for split in rows],
        images_root=folder,
    )
    write_dataset(
        folder,
        plan,
        check_images=False,  # written a moment ago
        revision=digest_of({"design": DESIGN, "task": task, "part": part, "plans": [_plain(p) for p in plans]}),
        extra={"part": part, "regions": {"format": "butd-hdf5", "path": REGION_FILE}},
    )


def _chunks(jobs: list[tuple[str, SplitPlan, int, Path]], workers: int) -> Iterator[Chunk]:
    if workers == 1 or len(jobs) < 4:
        yield from (make_chunk(*job) for job in jobs)
        return
    # Spawned, not forked: the calling process may hold threads of torch.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(make_chunk, *zip(*jobs, strict=True))


def _plain(plan: SplitPlan) -> dict[str, Any]:
    return {name: getattr(plan, name) for name in SplitPlan.__dataclass_fields__}


def _write_split(folder: Path, task: str, split: str, entries: list[Any]) -> None:
    if task == "vqa":
        questions, annotations = _vqa_names(split)
        wrapper = {
            "info": {"description": "mini-VQA (madkit)"}, "data_type": "mscoco", "data_subtype": subset_of(split),
        }  # fmt: skip
        asked = {**wrapper, "task_type": "Open-Ended", "questions": [q for q, _ in entries]}
        write_text_atomic(folder / questions, json.dumps(asked))
        write_text_atomic(folder / annotations, json.dumps({**wrapper, "annotations": [a for _, a in entries]}))
    else:
        write_text_atomic(folder / _lines_name(task, split), "".join(json.dumps(row) + "\n" for row in entries))


def _vqa_names(split: str) -> tuple[str, str]:
    return f"{split}_questions.json", f"{split}_annotations.json"


def _lines_name(task: str, split: str) -> str:
    return f"snli_ve_{split}.jsonl" if task == "snli-ve" else f"{'val' if split == 'dev' else split}.jsonl"


def _split_plan(folder: Path, task: str, split: str) -> SplitFiles:
    """How the files of a split are read: by the readers of the real benchmarks' files."""
    read: Callable[[Advance], Iterator[Example]]
    if task == "vqa":
        from madkit.tasks.formats.vqa import iter_vqa

        questions, annotations = (folder / name for name in _vqa_names(split))
        files: tuple[Path, ...] = (questions, annotations)
        subset = subset_of(split)

        def read(advance: Advance) -> Iterator[Example]:
            pattern = "COCO_{subset}_{id:012d}.png"
            return iter_vqa(questions, annotations, folder / subset, pattern=pattern, subset=subset, advance=advance)

    elif task == "snli-ve":
        from madkit.tasks.formats.snli_ve import iter_snli_ve

        files = (folder / _lines_name(task, split),)

        def read(advance: Advance) -> Iterator[Example]:
            return iter_snli_ve(files[0], folder / "flickr30k-images", extension=".png", advance=advance)

    else:
        from madkit.tasks.formats.vcr import iter_vcr

        files = (folder / _lines_name(task, split),)

        def read(advance: Advance) -> Iterator[Example]:
            return iter_vcr(files[0], folder / "vcr1images", advance=advance)

    return SplitFiles(name=split, official=split, read=read, files=files)


__all__ = ["REWORDED", "SHIFTED", "build_mini"]
