"""Selected tokens of one example: equal to a calculation by hand, and nothing where no cache tells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from madkit.cache import TokenCache
from madkit.core.workspace import Workspace
from madkit.look.selected import Selector, select
from madkit.mad.select import function_word_mask_of_spans
from madkit.tasks.data import TaskData, open_task
from madkit.tasks.example import Example, ImageRef


@pytest.fixture(scope="module")
def data(place: tuple[Workspace, Path]) -> TaskData:
    return open_task(place[0], "vcr", part="tiny")


def unit(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.float64)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def boxes_of(data: TaskData, example: Example) -> list[tuple[float, float, float, float]]:
    regions = data.regions()
    assert regions is not None
    return [tuple(map(float, box)) for box in regions.get(example.image.id).boxes]


def test_words_and_patches_are_those_of_a_calculation_by_hand(place, data):
    path = place[1]
    example = data.examples("dev")[0]
    said = [example.context[0].text, example.candidates[example.label].text]
    with TokenCache.open(path) as cache:
        found = select(cache, example, [], {"mad.k_region": 3, "mad.k_text": 2})
        row = cache.images.rows([example.image.id])
        image, patches = cache.images.globals(row)[0], cache.images.tokens(row)[0]
        sentence = cache.texts.globals(cache.texts.rows(said)).astype(np.float64).mean(0)
        best = np.argsort(-(unit(patches) @ unit(sentence)))[:3]
        rows, columns = cache.images.grid
        corners = [(int(at) % columns / columns, int(at) // columns / rows) for at in best]
        relevance = {}
        for text in said:
            ragged = cache.texts.tokens(cache.texts.rows([text]))
            spans = [tuple(span) for span in ragged.spans.tolist()]
            empty = function_word_mask_of_spans(text, spans).tolist()
            for span, value, grammar in zip(spans, unit(ragged.tokens) @ unit(image), empty, strict=True):
                if not grammar:
                    relevance[text, span] = value
    assert cache.shared_space
    assert found.regions == ()
    assert sorted(patch[:2] for patch in found.patches) == [pytest.approx(corner) for corner in sorted(corners)]
    kept = {(text, span) for text, spans in found.spans.items() for span in spans}
    assert kept == set(sorted(relevance, key=lambda key: -relevance[key])[:2])  # of both texts together


def test_boxes_are_chosen_by_the_mean_of_their_patches(place, data):
    path = place[1]
    example = data.examples("dev")[1]
    grid = [(x / 4, y / 4, (x + 1) / 4, (y + 1) / 4) for y in range(4) for x in range(4)]
    with TokenCache.open(path) as cache:
        row = cache.images.rows([example.image.id])
        rows, columns = cache.images.grid
        patches = cache.images.tokens(row)[0].astype(np.float64).reshape(rows, columns, -1)
        said = [example.context[0].text, example.candidates[example.label].text]
        sentence = cache.texts.globals(cache.texts.rows(said)).astype(np.float64).mean(0)
        high, wide = rows // 4, columns // 4
        assert (high * 4, wide * 4) == (rows, columns)
        means = patches.reshape(4, high, 4, wide, -1).mean((1, 3)).reshape(16, -1)
        by_hand = set(np.argsort(-(unit(means) @ unit(sentence)))[:5].tolist())
        found = select(cache, example, grid, {"mad.k_region": 5})
        share = select(cache, example, grid, {"mad.fraction": 0.25})
    assert set(found.regions) == by_hand
    assert found.patches == ()
    assert len(share.regions) == 4


def test_what_no_cache_knows_is_none(place, data, tmp_path):
    workspace, path = place
    example = data.examples("dev")[0]
    boxes = boxes_of(data, example)
    with Selector(workspace) as choose:
        assert choose(data, {"cache_key": path.name}, example, boxes).regions
        assert choose(data, {}, example, boxes).regions  # the only cache of the data
        assert choose(data, {"cache_key": "gone"}, example, boxes) is None
        stranger = replace(example, image=ImageRef("nobody", example.image.path))
        assert choose(data, {}, stranger, boxes) is None
    with Selector(Workspace.at(tmp_path / "empty")) as choose:
        assert choose(data, {}, example, boxes) is None
