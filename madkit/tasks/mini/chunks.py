"""One chunk of a split, from seeds to files: the unit of work that worker processes share.

A chunk is a pure function of (task, split, chunk number), so the number of workers changes nothing. Questions of a
chunk are drawn first, then paired (two questions an image, as far as their needs agree), then their scenes are
drawn.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from .commonsense import Conundrum, draw_conundrum
from .draw import Draw
from .entailment import Hypothesis, draw_hypothesis
from .plan import QUESTIONS_PER_CHUNK, SplitPlan
from .render import SIDE, Picture, region_features, render
from .rows import Row, snli_ve_row, vcr_metadata, vcr_row, vqa_rows
from .scene import Needs, Thing, draw_scene
from .visual_qa import VisualQuestion, draw_visual_question

Question = Hypothesis | VisualQuestion | Conundrum
SHIFTED_CODE = 6
REWORDED, SHIFTED = "test-rewording", "test-rendering"


@dataclass(slots=True)
class Regions:
    """Boxes and features of one image, for the region-feature file."""

    image_id: str
    boxes: npt.NDArray[np.float32]
    features: npt.NDArray[np.float16]


@dataclass(slots=True)
class Chunk:
    """What a worker gives back: rows by split name (for VQA pairs of question and annotation), and regions."""

    rows: dict[str, list[Any]] = field(default_factory=dict)
    regions: list[Regions] = field(default_factory=list)


def draw_question(task: str, draw: Draw, plan: SplitPlan) -> Question:
    """One question of a task."""
    if task == "snli-ve":
        return draw_hypothesis(draw, plan.pool)
    if task == "vqa":
        return draw_visual_question(draw, plan.pool, plan.steep_answers)
    return draw_conundrum(draw, plan.pool)


def paired(questions: list[Question]) -> list[tuple[list[Question], Needs]]:
    """Two questions an image, in order, where their needs agree; what finds no partner gets an image alone."""
    left = list(questions)
    groups: list[tuple[list[Question], Needs]] = []
    while left:
        first = left.pop(0)
        for i, second in enumerate(left):
            needs = first.needs.merged(second.needs)
            if needs is not None:
                groups.append(([first, left.pop(i)], needs))
                break
        else:
            groups.append(([first], first.needs))
    return groups


def scenes_of(task: str, plan: SplitPlan, chunk: int) -> list[tuple[list[Question], tuple[Thing, ...]]]:
    """All questions of a chunk with their scenes; nothing is rendered or written."""
    count = min(QUESTIONS_PER_CHUNK, plan.questions - chunk * QUESTIONS_PER_CHUNK)
    draw = Draw(task, plan.name, chunk, "questions")
    groups = paired([draw_question(task, draw, plan) for _ in range(count)])
    scene_draw = Draw(task, plan.name, chunk, "scenes")
    return [(questions, draw_scene(needs, scene_draw)) for questions, needs in groups]


def make_chunk(task: str, plan: SplitPlan, chunk: int, folder: Path) -> Chunk:
    """Draw, render and write the images of a chunk; give back its rows and regions."""
    result = Chunk()
    written = 0
    for i, (questions, scene) in enumerate(scenes_of(task, plan, chunk)):
        number = chunk * QUESTIONS_PER_CHUNK + i
        picture = render(scene, Draw(task, plan.name, number, "render"))
        image = _save_image(task, plan.name, plan.code, number, picture, folder, result)
        shifted = None
        if plan.also_shifted:
            again = render(scene, Draw(task, plan.name, number, "render", "shifted"), "shifted")
            shifted = _save_image(task, SHIFTED, SHIFTED_CODE, number, again, folder, result)
        for k, question in enumerate(questions):
            position = chunk * QUESTIONS_PER_CHUNK + written
            written += 1
            _add(result, task, plan, question, scene, plan.name, image, position, k, False)
            if shifted is not None:
                _add(result, task, plan, question, scene, SHIFTED, shifted, position, k, False)
                _add(result, task, plan, question, scene, REWORDED, image, position, k, True)
    return result


def _add(
    result: Chunk, task: str, plan: SplitPlan, question: Question, scene: tuple[Thing, ...],
    split: str, image: str, position: int, k: int, reworded: bool,
) -> None:  # fmt: skip
    # One stream for all renderings and wordings of a question, so that only what is meant to shift does.
    draw = Draw(task, plan.name, position, "annotators")
    row: Row | tuple[Row, Row]
    if isinstance(question, Hypothesis):
        row = snli_ve_row(question, scene, image, k, reworded)
    elif isinstance(question, VisualQuestion):
        row = vqa_rows(question, int(image), k, reworded, draw, plan.pool)
    else:
        row = vcr_row(question, scene, image, split, position, reworded, draw)
    result.rows.setdefault(split, []).append(row)


def image_path(task: str, split: str, code: int, number: int) -> tuple[str, str]:
    """(image id as rows spell it, path of its file below the task's folder)."""
    if task == "snli-ve":
        name = str(1_000_000_000 + code * 1_000_000 + number)
        return name, f"flickr30k-images/{name}.png"
    if task == "vqa":
        subset = subset_of(split)
        name = str(code * 1_000_000 + number)
        return name, f"{subset}/COCO_{subset}_{int(name):012d}.png"
    name = f"mini_{split}_{number // 1000:02d}/{number:06d}"
    return name, f"vcr1images/{name}.png"


def subset_of(split: str) -> str:
    """COCO's name for the images of a split."""
    return {"train": "train2014", "dev": "val2014"}.get(split, "test2015")


def _save_image(task: str, split: str, code: int, number: int, picture: Picture, folder: Path, result: Chunk) -> str:
    name, relative = image_path(task, split, code, number)
    path = folder / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.fromarray(picture.pixels).save(buffer, "PNG", compress_level=1)
    path.write_bytes(buffer.getvalue())
    if task == "vcr":
        path.with_suffix(".json").write_text(json.dumps(vcr_metadata(picture)), encoding="utf-8")
    region_id = f"{name}.png" if task == "vcr" else name
    boxes = np.asarray(picture.boxes, dtype=np.float32).reshape(-1, 4)
    result.regions.append(Regions(region_id, boxes, region_features(picture)))
    return name


IMAGE_SIZE = (SIDE, SIDE)
