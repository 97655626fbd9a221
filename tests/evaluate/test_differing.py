from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from madkit.evaluate import differing
from madkit.evaluate.differing import differing_scenes
from madkit.tasks.example import ImageRef


@pytest.fixture
def scenes(made_up, monkeypatch, tmp_path):
    """(made-up workspace with two arms, the path of the picture that all of its examples show)."""
    picture = tmp_path / "scene.png"
    Image.new("RGB", (960, 480), (200, 190, 170)).save(picture)
    data = made_up.add_data("snli-ve", "mini-snli-ve")
    plain = data.examples

    def examples(suite):
        ones = plain(suite)
        return [
            replace(one, image=ImageRef(one.image.id, picture), boxes=((96.0, 48.0, 480.0, 240.0),)) for one in ones
        ]

    data.examples = examples
    monkeypatch.setattr(differing, "find_data", made_up.find)
    for arm in ("finetune", "affinity"):
        for seed in range(2):
            made_up.add_run(arm, seed)
    return made_up, picture


def answers_of(made_up: object, arm: str) -> dict[str, dict[str, object]]:
    folder = Path(made_up.workspace.runs) / "mini-snli-ve" / f"mini-uniter-{arm}-1pct-s0-00000000"
    rows = map(json.loads, (folder / "predictions" / "test.jsonl").read_text().splitlines())
    return {row["id"]: row for row in rows}


def test_as_many_scenes_are_won_as_lost_and_the_answers_are_those_of_the_runs(scenes):
    made_up, _ = scenes
    results = made_up.evaluate("smoke")
    items = differing_scenes(made_up.workspace, results)
    right = [{arm: answer == item.truth for arm, answer in item.answers.items()} for item in items]
    assert right == [{"finetune": False, "affinity": True}] * 2 + [{"finetune": True, "affinity": False}] * 2
    theirs, ours = answers_of(made_up, "finetune"), answers_of(made_up, "affinity")
    labels = ("contradiction", "entailment", "neutral")
    pairs = {(labels[theirs[key]["prediction"]], labels[ours[key]["prediction"]]) for key in ours}
    assert {(item.answers["finetune"], item.answers["affinity"]) for item in items} <= pairs
    assert items == differing_scenes(made_up.workspace, results)  # the lot is fixed
    assert items[0].note == "1pct, seed 0"


def test_pictures_are_made_small_with_their_boxes(scenes):
    made_up, _ = scenes
    item = differing_scenes(made_up.workspace, made_up.evaluate("smoke"))[0]
    assert item.size() == (480, 240)
    assert list(item.boxes) == [(48.0, 24.0, 240.0, 120.0)]
    assert list(item.labels) == ["1"]


def test_what_cannot_be_shown_is_left_out(scenes):
    made_up, picture = scenes
    results = made_up.evaluate("smoke")
    picture.write_bytes(b"no picture")
    assert differing_scenes(made_up.workspace, results) == []
    picture.unlink()
    assert differing_scenes(made_up.workspace, results) == []
    made_up.data.clear()
    assert differing_scenes(made_up.workspace, results) == []
    assert differing_scenes(made_up.workspace, replace(results, rows=())) == []
