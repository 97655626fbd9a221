from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from PIL import Image

from madkit.core.errors import DataError
from madkit.evaluate import differing
from madkit.evaluate.differing import differing_scenes, gallery_scenes
from madkit.tasks.example import ImageRef, Segment, Tag


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
    assert items[0].note == "1 % of the labels, seed 0"


def test_a_source_that_is_damaged_has_no_scenes_and_costs_no_page(scenes):
    made_up, _ = scenes
    results = made_up.evaluate("smoke")
    assert gallery_scenes(made_up.workspace, results)

    def damaged(*_: object) -> None:
        raise DataError("The index file test.arrow is damaged.")

    (data,) = made_up.data.values()
    plain, data.examples = data.examples, damaged
    assert gallery_scenes(made_up.workspace, results) == differing_scenes(made_up.workspace, results) == []
    data.examples = lambda suite: [replace(one, boxes=()) for one in plain(suite)]
    assert gallery_scenes(made_up.workspace, results)
    data.regions = damaged  # what pictures without boxes are drawn with
    assert gallery_scenes(made_up.workspace, results) == []


def test_pictures_are_made_small_with_their_boxes(scenes):
    made_up, _ = scenes
    item = differing_scenes(made_up.workspace, made_up.evaluate("smoke"))[0]
    assert item.size() == (480, 240)
    assert list(item.boxes) == [(48.0, 24.0, 240.0, 120.0)]
    assert list(item.labels) == ["1"]


def test_boxes_are_drawn_in_the_size_that_they_are_meant_in(scenes):
    made_up, _ = scenes
    results = made_up.evaluate("smoke")
    (data,) = made_up.data.values()
    plain = data.examples
    data.examples = lambda suite: [replace(one, width=1920, height=960) for one in plain(suite)]
    assert list(differing_scenes(made_up.workspace, results)[0].boxes) == [(24.0, 12.0, 120.0, 60.0)]
    data.examples = lambda suite: [replace(one, width=600, height=960) for one in plain(suite)]
    assert differing_scenes(made_up.workspace, results) == []


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


@dataclass(frozen=True)
class Kept:
    regions: tuple[int, ...] = (0,)
    patches: tuple[tuple[float, float, float, float], ...] = ()
    spans: dict[str, tuple[tuple[int, int], ...]] = field(default_factory=lambda: {"What is it?": ((0, 4), (8, 10))})


def test_scenes_by_lot_stand_first_and_tell_probabilities_and_selected_tokens(scenes):
    made_up, _ = scenes
    results = made_up.evaluate("smoke")
    asked = []

    def choose(data, settings, example, boxes):
        asked.append((settings["arm"], example.id, tuple(boxes)))
        return Kept()

    items = gallery_scenes(made_up.workspace, results, choose)
    assert [item.group for item in items] == ["Drawn by lot"] * 4 + ["Where finetune and affinity differ"] * 4
    assert items[4:] == differing_scenes(made_up.workspace, results, choose)
    assert len({id for _, id, _ in asked}) == 8  # no question twice
    assert asked[0][2] == ((0.1, 0.1, 0.5, 0.5),)  # in shares of the image
    answers = {arm: answers_of(made_up, arm) for arm in ("finetune", "affinity")}
    for item, (_, number, _) in zip(items, asked, strict=False):
        assert item.candidates == ["contradiction", "entailment", "neutral"]
        assert list(item.selected_regions) == [0]
        assert [item.text[start:end] for start, end in item.selected_spans] == ["What", "it"]
        for arm, chances in item.chances.items():
            row = answers[arm][number]
            weights = [math.exp(value) for value in row["logits"]]
            assert chances == pytest.approx([weight / sum(weights) for weight in weights])
            assert item.scores[arm] == row["score"]
            assert item.verdict(arm) == ("right" if row["score"] else "wrong")


def test_without_a_cache_or_a_second_arm_the_gallery_goes_on(scenes):
    made_up, _ = scenes
    results = made_up.evaluate("smoke")
    items = gallery_scenes(made_up.workspace, results, lambda *_: None)
    assert len(items) == 8
    assert not any(item.selects for item in items)
    alone = replace(results, rows=tuple(replace(row, difference=None) for row in results.rows if row.arm == "affinity"))
    items = gallery_scenes(made_up.workspace, alone)
    assert [list(item.answers) for item in items] == [["affinity"]] * 4
    assert gallery_scenes(made_up.workspace, replace(results, settings={"tasks": 7})) == []


def test_marks_move_with_the_numbers_of_boxes_and_pieces_of_a_word_are_one():
    question = Segment("Is person near the umbrella?", (Tag(3, 9, (0,)), Tag(19, 27, (1, 2))))
    kept = Kept(spans={question.text: ((3, 9), (9, 14), (19, 22), (22, 27))})
    text, spans = differing._marked([Segment("Look."), question], kept)
    assert text == "Look. Is person [1] near the umbrella [2, 3]?"
    assert [text[start:end] for start, end in spans] == ["person", "near", "umbrella"]
