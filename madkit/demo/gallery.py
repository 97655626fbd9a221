"""Test scenes for the report: boxes, the teacher's selected tokens and what every arm answered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from madkit.cache import TokenCache, choose_cache
from madkit.core.files import read_json, read_jsonl
from madkit.core.seeds import permutation
from madkit.core.workspace import Workspace
from madkit.evaluate.report.gallery import GalleryItem
from madkit.look.selected import select
from madkit.regions import Regions
from madkit.tasks.data import TaskData
from madkit.tasks.example import Example

SCENES = 8
SHOWN = {"mad.k_region": 2, "mad.k_text": 4}  # fewer boxes than are taught: a scene has few
SUITE = "test"


def demo_gallery(workspace: Workspace, data: TaskData, runs: Sequence[Path]) -> list[GalleryItem]:
    """A few test scenes, chosen by a fixed permutation and not by their outcome, with the answers of seed 0."""
    examples = data.examples(SUITE)
    regions = data.regions()
    chosen = [examples[int(i)] for i in permutation(len(examples), "demo gallery")[:SCENES]]
    answers = {arm: answers_of(path) for arm, path in sorted(first_runs(workspace, runs).items())}
    if regions is None or not answers:
        return []
    with choose_cache(workspace, data, None) as cache:
        return [_item(example, data, regions.get(example.image.id), cache, answers) for example in chosen]


def first_runs(workspace: Workspace, runs: Sequence[Path]) -> dict[str, Path]:
    """Of every arm the run with the smallest seed."""
    found: dict[str, tuple[int, Path]] = {}
    for relative in runs:
        path = workspace.root / relative
        manifest = read_json(path / "manifest.json")
        arm, seed = str(manifest["arm"]), int(manifest["seed"])
        if arm not in found or seed < found[arm][0]:
            found[arm] = (seed, path)
    return {arm: path for arm, (_, path) in found.items()}


def answers_of(run: Path) -> dict[str, int]:
    """Example id -> predicted class, from an evaluated run."""
    return {str(row["id"]): int(row["prediction"]) for row in read_jsonl(run / "predictions" / f"{SUITE}.jsonl")}


def _item(
    example: Example, data: TaskData, regions: Regions, cache: TokenCache, answers: dict[str, dict[str, int]]
) -> GalleryItem:
    labels = data.spec.labels or ()
    text = example.context[0].text
    kept = select(cache, example, [(float(a), float(b), float(c), float(d)) for a, b, c, d in regions.boxes], SHOWN)
    png = example.image.path.read_bytes()
    boxes = regions.boxes * np.asarray(_png_size(png) * 2, dtype=np.float32)
    return GalleryItem(
        image_png=png,
        boxes=[(float(x1), float(y1), float(x2), float(y2)) for x1, y1, x2, y2 in boxes],
        labels=[str(i + 1) for i in range(len(boxes))],
        text=text,
        truth=labels[example.label] if example.label is not None else "",
        answers={arm: labels[given[example.id]] for arm, given in answers.items()},
        selected_regions=() if kept is None else kept.regions,
        selected_spans=() if kept is None else kept.spans[text],
        suite=SUITE,
        source=data.source,
        is_mini=data.is_mini,
    )


def _png_size(png: bytes) -> tuple[int, int]:
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
