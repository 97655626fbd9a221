"""Write a task of the embedded benchmark to disk, in the files and formats of the real one."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from madkit.core.console import progress
from madkit.core.errors import UsageProblem
from madkit.core.files import FileLock, digest_of, write_json_atomic, write_text_atomic
from madkit.regions import write_butd_hdf5
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
    splits = {split: _write_split(folder, task, split, entries) for split, entries in rows.items()}
    manifest = {
        "schema": 1,
        "task": task,
        "source": source,
        "part": part,
        "revision": digest_of({"design": DESIGN, "task": task, "part": part, "plans": [_plain(p) for p in plans]}),
        "splits": splits,
        "counts": {split: len(entries) for split, entries in rows.items()},
        "regions": {"format": "butd-hdf5", "path": REGION_FILE},
    }
    write_json_atomic(folder / MANIFEST, manifest)


def _chunks(jobs: list[tuple[str, SplitPlan, int, Path]], workers: int) -> Iterator[Chunk]:
    if workers == 1 or len(jobs) < 4:
        yield from (make_chunk(*job) for job in jobs)
        return
    # Spawned, not forked: the calling process may hold threads of torch.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(make_chunk, *zip(*jobs, strict=True))


def _plain(plan: SplitPlan) -> dict[str, Any]:
    return {name: getattr(plan, name) for name in SplitPlan.__dataclass_fields__}


def _write_split(folder: Path, task: str, split: str, entries: list[Any]) -> dict[str, Any]:
    if task == "vqa":
        subset = subset_of(split)
        questions, annotations = f"{split}_questions.json", f"{split}_annotations.json"
        wrapper = {"info": {"description": "mini-VQA (madkit)"}, "data_type": "mscoco", "data_subtype": subset}
        asked = {**wrapper, "task_type": "Open-Ended", "questions": [q for q, _ in entries]}
        write_text_atomic(folder / questions, json.dumps(asked))
        write_text_atomic(folder / annotations, json.dumps({**wrapper, "annotations": [a for _, a in entries]}))
        return {
            "format": "vqa", "questions": questions, "annotations": annotations, "images": subset,
            "pattern": "COCO_{subset}_{id:012d}.png", "subset": subset,
        }  # fmt: skip
    name = f"snli_ve_{split}.jsonl" if task == "snli-ve" else f"{'val' if split == 'dev' else split}.jsonl"
    write_text_atomic(folder / name, "".join(json.dumps(row) + "\n" for row in entries))
    if task == "snli-ve":
        return {"format": "snli-ve", "annotations": name, "images": "flickr30k-images", "extension": ".png"}
    return {"format": "vcr", "annotations": name, "images": "vcr1images"}


__all__ = ["REWORDED", "SHIFTED", "build_mini"]
