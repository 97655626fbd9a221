"""Test scenes for the report: boxes, the teacher's selected tokens and what every arm answered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from madkit.cache import TokenCache, choose_cache
from madkit.core.files import read_json, read_jsonl
from madkit.core.seeds import permutation
from madkit.core.workspace import Workspace
from madkit.evaluate.report.gallery import GalleryItem
from madkit.mad.align import pool_regions
from madkit.mad.select import (
    cosine_relevance,
    function_word_mask_of_spans,
    select_tokens,
)
from madkit.regions import Regions
from madkit.tasks.data import TaskData
from madkit.tasks.example import Example

SCENES = 8
SELECTED_REGIONS, SELECTED_WORDS = 2, 4
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


def select(example: Example, regions: Regions, cache: TokenCache) -> tuple[list[int], list[tuple[int, int]]]:
    """What adaptive selection takes of an example: indices of regions, and character spans of the first text."""
    text = example.context[0].text
    image_row, text_row = cache.images.rows([example.image.id]), cache.texts.rows([text])
    image_global = torch.from_numpy(np.ascontiguousarray(cache.images.globals(image_row))).float()
    text_global = torch.from_numpy(np.ascontiguousarray(cache.texts.globals(text_row))).float()
    patches = torch.from_numpy(np.ascontiguousarray(cache.images.tokens(image_row))).float()
    boxes = torch.from_numpy(regions.boxes)[None].float()
    seen = pool_regions(patches, boxes, cache.images.grid, image_global=image_global)
    shared = cache.shared_space
    region_relevance = cosine_relevance(seen, text_global if shared else image_global)
    picked = select_tokens(region_relevance, torch.ones(1, seen.shape[1], dtype=torch.bool), k=SELECTED_REGIONS)
    ragged = cache.texts.tokens(text_row)
    words = torch.from_numpy(np.ascontiguousarray(ragged.tokens)).float()[None]
    spans = [(int(a), int(b)) for a, b in ragged.spans]
    content = ~function_word_mask_of_spans(text, spans)[None]
    kept = select_tokens(cosine_relevance(words, image_global if shared else text_global), content, k=SELECTED_WORDS)
    return picked[0].nonzero().flatten().tolist(), [spans[i] for i in kept[0].nonzero().flatten().tolist()]


def _item(
    example: Example, data: TaskData, regions: Regions, cache: TokenCache, answers: dict[str, dict[str, int]]
) -> GalleryItem:
    labels = data.spec.labels or ()
    picked, spans = select(example, regions, cache)
    png = example.image.path.read_bytes()
    boxes = regions.boxes * np.asarray(_png_size(png) * 2, dtype=np.float32)
    return GalleryItem(
        image_png=png,
        boxes=[(float(x1), float(y1), float(x2), float(y2)) for x1, y1, x2, y2 in boxes],
        labels=[str(i + 1) for i in range(len(boxes))],
        text=example.context[0].text,
        truth=labels[example.label] if example.label is not None else "",
        answers={arm: labels[given[example.id]] for arm, given in answers.items()},
        selected_regions=picked,
        selected_spans=spans,
        suite=SUITE,
        source=data.source,
        is_mini=data.is_mini,
    )


def _png_size(png: bytes) -> tuple[int, int]:
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
