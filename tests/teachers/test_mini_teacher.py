"""The shipped teacher knows the pictograph world, and the recipe that made it still runs."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from madkit.mad.align import pool_regions
from madkit.tasks.mini.concepts import concepts
from madkit.tasks.mini.draw import Draw
from madkit.tasks.mini.render import SIDE, render
from madkit.tasks.mini.scene import Needs, draw_scene
from madkit.teachers.load import load_teacher

ROOT = Path(__file__).parents[2]
SCENES = 60


def test_zero_shot_quality_on_fresh_renders(tmp_path: Path) -> None:
    """Boxes named among all 131 concepts, through `load_teacher`, from files, as extraction reads them."""
    teacher = load_teacher("mini")
    assert teacher.vision is not None
    assert teacher.text is not None
    assert teacher.shared_space
    draw = Draw("a stream that no recipe uses")
    scenes = [draw_scene(Needs(), draw) for _ in range(SCENES)]
    pixels, boxes, truth = [], [], []
    for i, scene in enumerate(scenes):
        picture = render(scene, draw)
        Image.fromarray(picture.pixels).save(tmp_path / f"{i}.png")
        pixels.append(teacher.vision.load_image(tmp_path / f"{i}.png"))
        boxes.append(np.asarray(picture.boxes, dtype=np.float32) / SIDE)
        truth.append([thing.concept for thing in scene])
    with torch.inference_mode():
        seen = teacher.vision.encode(torch.stack(pixels))
        right: dict[str, list[bool]] = {}
        phrases = {
            "name": [f"a {c.name}" for c in concepts()],
            "fact": [f"thing that {c.facts[0]}" for c in concepts()],
            "second fact": [f"thing that {c.facts[1]}" for c in concepts()],
        }
        for kind, texts in phrases.items():
            words = F.normalize(teacher.text.encode(texts).global_.float(), dim=-1)
            for i, box in enumerate(boxes):
                regions = pool_regions(seen.tokens[i : i + 1].float(), torch.from_numpy(box)[None], seen.grid)
                found = (F.normalize(regions[0], dim=-1) @ words.T).argmax(-1).tolist()
                right.setdefault(kind, []).extend(a == b for a, b in zip(found, truth[i], strict=True))
    for kind, answers in right.items():
        assert np.mean(answers) > 0.95, kind


def test_the_recipe_still_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = ROOT / "examples" / "train_mini_teacher.py"
    command = [str(script), "--steps", "2", "--scenes", "4"]
    command += ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    monkeypatch.setattr(sys, "argv", command)
    runpy.run_path(str(script), run_name="__main__")  # in this process: torch is loaded here already
    teacher = load_teacher(f"local:{tmp_path / 'out'}")
    assert teacher.text is not None
    assert teacher.text.encode(["a red pawn"]).tokens.isfinite().all()
