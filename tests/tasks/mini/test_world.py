"""The pictograph world: its concepts, its pixels, its scenes."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from madkit.tasks.mini.atlas import glyph, resize_area
from madkit.tasks.mini.captions import caption_of
from madkit.tasks.mini.chunks import paired, scenes_of
from madkit.tasks.mini.concepts import COLOURS, categories, concepts, members
from madkit.tasks.mini.draw import Draw
from madkit.tasks.mini.entailment import Hypothesis
from madkit.tasks.mini.plan import splits_of
from madkit.tasks.mini.render import REGION_DIM, SIDE, region_features, render
from madkit.tasks.mini.scene import CELLS, MOST_THINGS, Needs, Wanted, draw_scene
from madkit.tasks.mini.vocabulary import words_of, world_words
from madkit.tasks.mini.wording import SIDES


def test_there_are_enough_concepts_and_none_twice() -> None:
    assert len(concepts()) >= 120
    assert len(COLOURS) == 8
    names = [c.name for c in concepts()]
    facts = [fact for c in concepts() for fact in c.facts]
    assert len(set(names)) == len(names)
    assert len(set(facts)) == len(facts) == 2 * len(names)
    assert all(len(members(category)) >= 4 for category in categories())


def test_no_fact_gives_its_name_away() -> None:
    for concept in concepts():
        for fact in concept.facts:
            assert concept.name not in fact.split(), concept


def test_glyphs_are_different_pictures() -> None:
    tiles = {resize_area(glyph(c.index, 30), 16, 16).tobytes() for c in concepts()}
    assert len(tiles) == len(concepts())


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31))
@settings(max_examples=60)
def test_area_resize_is_the_exact_average(rows: int, columns: int, height: int, width: int, seed: int) -> None:
    """Against repeating every pixel to the common grid and averaging blocks, in integers."""
    image = np.random.RandomState(seed).randint(0, 256, size=(rows, columns))
    fine = image.repeat(height, axis=0).repeat(width, axis=1)
    blocks = fine.reshape(height, rows, width, columns).sum(axis=(1, 3))
    total = rows * columns
    assert np.array_equal(resize_area(image, height, width), (blocks * 2 + total) // (2 * total))


def test_pixels_and_features_are_the_same_everywhere() -> None:
    """Golden: a change of these bytes is a change of the benchmark, and needs a new `DESIGN` number."""
    digest = hashlib.sha256()
    for task in ("snli-ve", "vqa", "vcr"):
        for i, (_, scene) in enumerate(scenes_of(task, splits_of(task, "full")[0], 0)[:10]):
            for style in ("plain", "shifted"):
                picture = render(scene, Draw("golden", i), style)
                digest.update(picture.pixels.tobytes())
                digest.update(region_features(picture).tobytes())
    assert digest.hexdigest()[:16] == "1d8a65c21db8d1a9"


def test_boxes_are_tight_and_inside() -> None:
    draw = Draw("boxes")
    for _ in range(20):
        things = draw_scene(Needs(), draw)
        state = draw.state.get_state()
        picture = render(things, draw)
        draw.state.set_state(state)
        empty = render([], draw).pixels.astype(int)
        changed = np.abs(picture.pixels.astype(int) - empty).sum(axis=2) > 0
        outside = changed.copy()
        for x1, y1, x2, y2 in picture.boxes:
            assert 0 <= x1 < x2 <= SIDE
            assert 0 <= y1 < y2 <= SIDE
            outside[y1:y2, x1:x2] = False
            assert changed[y1:y2, x1:x2].any(axis=0).mean() > 0.9
        assert not outside.any()
        assert region_features(picture).shape == (len(things), REGION_DIM)


@given(st.data())
@settings(max_examples=80)
def test_scenes_meet_their_needs(data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 10**6))
    draw = Draw("needs", seed)
    wanted = draw.sample(range(len(concepts())), 4)
    sides = tuple(SIDES.values())
    needs = Needs(
        {wanted[0]: Wanted(2), wanted[1]: Wanted(cells=sides[draw.below(4)][0])}, {wanted[2]}, {5}, least_things=4
    )
    scene = draw_scene(needs, draw)
    found = {thing.concept: thing for thing in scene}
    assert 4 <= len(scene) == len(found) <= MOST_THINGS
    assert len({t.colour for t in scene}) == len({t.cell for t in scene}) == len(scene)
    assert found[wanted[0]].colour == 2
    assert found[wanted[1]].cell in (needs.present[wanted[1]].cells or CELLS)
    assert wanted[2] not in found
    assert all(t.colour != 5 for t in scene)


def test_contradicting_needs_do_not_share_a_scene() -> None:
    red = Needs({1: Wanted(0)})
    assert red.merged(Needs({1: Wanted(3)})) is None
    assert red.merged(Needs({2: Wanted(0)})) is None
    assert red.merged(Needs(absent_concepts={1})) is None
    assert red.merged(Needs(absent_colours={0})) is None
    assert Needs({1: Wanted(cells=(4,))}).merged(Needs({2: Wanted(cells=(4,))})) is None
    assert red.merged(Needs({2: Wanted(1)})) is not None


def test_pairing_keeps_every_question() -> None:
    plan = splits_of("snli-ve", "tiny")[0]
    groups = scenes_of("snli-ve", plan, 0)
    questions = [q for pair, _ in groups for q in pair]
    assert len(questions) == plan.questions
    assert len(groups) < 0.6 * len(questions)
    again = [q for pair, _ in paired(questions) for q in pair]
    assert sorted(id(q) for q in again) == sorted(id(q) for q in questions)


def test_hypotheses_are_true_of_their_scenes() -> None:
    """An interpreter that reads sentence and scene gives the label: for the colour and place kinds, by name."""
    checked = 0
    for pair, scene in scenes_of("snli-ve", splits_of("snli-ve", "full")[0], 0):
        for question in pair:
            assert isinstance(question, Hypothesis)
            words = words_of(question.text)
            named = [t for t in scene if concepts()[t.concept].name in words]
            if "that" in words or question.kind == "identity":
                continue
            checked += 1
            if not named:
                assert question.label == "neutral", question
            elif question.kind == "colour":
                assert (COLOURS[named[0].colour].name in words) == (question.label == "entailment"), question
            else:
                side = next(cells for name, (cells, _) in SIDES.items() if name in question.text)
                assert (named[0].cell in side) == (question.label == "entailment"), question
    assert checked > 50


def test_the_vocabulary_reads_every_question_and_caption() -> None:
    known = set(world_words())
    for task in ("snli-ve", "vqa", "vcr"):
        for pair, _ in scenes_of(task, splits_of(task, "full")[0], 1):
            for question in pair:
                text = getattr(question, "text", "") + " " + getattr(question, "reworded", "")
                assert set(words_of(text)) <= known
    draw = Draw("captions")
    for _ in range(200):
        assert set(words_of(caption_of(draw_scene(Needs(), draw)[0], draw))) <= known


def test_draws_are_pure() -> None:
    one, two = Draw("x", 1), Draw("x", 1)
    assert [one.below(1000) for _ in range(5)] == [two.below(1000) for _ in range(5)]
    assert Draw("x", 1).below(10**9) != Draw("x", 2).below(10**9)
    counts = [0, 0, 0]
    draw = Draw("weights")
    for _ in range(3000):
        counts[draw.weighted((0, 1, 2), (1, 2, 1))] += 1
    assert counts[1] == pytest.approx(1500, abs=120)
