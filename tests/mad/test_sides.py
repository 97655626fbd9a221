"""What is left of the settings for teachers of one side, and for sides that share no space."""

from __future__ import annotations

from itertools import product

import pytest

from madkit.mad.config import MADConfig
from madkit.mad.sides import teachable

VISION = {"global_image", "token_region", "token_tag"}
TEXT = {"global_text", "token_text"}


def test_a_pair_in_one_space_teaches_everything_as_it_is_set() -> None:
    config = MADConfig(affinity_weight=1.0, relevance="shared", text_weight=0)
    found = teachable(config, images=True, texts=True, shared_space=True)
    assert found.config is config
    assert found.dropped == ()


@pytest.mark.parametrize(("images", "texts", "left"), [(True, False, VISION), (False, True, TEXT)])
def test_one_side_keeps_its_terms_with_their_coefficients(images: bool, texts: bool, left: set[str]) -> None:
    config = MADConfig(affinity_weight=0.5, text_weight=2.0, region_weight=3.0, relevance="shared", layer=(1, -1))
    found = teachable(config, images=images, texts=texts, shared_space=True)  # half of a pair: nothing to compare with
    assert found.config is not None
    assert set(found.config.term_weights) == left
    assert {name: config.term_weights[name] for name in left} == found.config.term_weights
    assert set(found.dropped) == (VISION | TEXT) - left | {"affinity"}
    assert found.relevance
    assert found.config.relevance == "unrelated"
    assert (found.config.affinity_weight, found.config.weight, found.config.layer) == (0.0, 0.1, (1, -1))


def test_sides_without_a_common_space_lose_the_affinity_and_nothing_else() -> None:
    config = MADConfig(affinity_weight=0.5)
    found = teachable(config, images=True, texts=True, shared_space=False)
    assert found.config == config.model_copy(update={"affinity_weight": 0.0})
    assert (found.dropped, found.relevance) == (("affinity",), False)
    chosen = MADConfig(relevance="unrelated")
    assert teachable(chosen, images=True, texts=True, shared_space=False).config is chosen


@pytest.mark.parametrize(
    ("settings", "images", "texts"),
    [
        ({"weight": 0, "affinity_weight": 1}, True, True),
        ({"weight": 0, "affinity_weight": 1}, True, False),
        ({"text_weight": 0, "global_text_weight": 0}, False, True),
        ({"tokens": "global", "global_image_weight": 0, "affinity_weight": 1}, True, False),
    ],
)
def test_nothing_may_be_left(settings: dict[str, float], images: bool, texts: bool) -> None:
    found = teachable(MADConfig(**settings), images=images, texts=texts, shared_space=False)
    assert found.config is None
    assert found.dropped


def test_a_token_part_that_goes_leaves_the_affinity() -> None:
    config = MADConfig(affinity_weight=1.0, tokens="global", global_image_weight=0, global_text_weight=1)
    found = teachable(config, images=True, texts=True, shared_space=True)
    assert found.config is config


def test_whatever_is_set_what_is_left_can_be_taught() -> None:
    for tokens, weight, affinity, images, texts, shared in product(
        ("adaptive", "all", "global", "random"), (0.0, 0.1), (0.0, 1.0), (True, False), (True, False), (True, False)
    ):
        if (weight, affinity) == (0.0, 0.0) or not (images or texts):
            continue
        config = MADConfig(tokens=tokens, weight=weight, affinity_weight=affinity, relevance="shared")
        left = teachable(config, images=images, texts=texts, shared_space=shared).config
        if left is None:
            assert weight == 0
            continue
        assert set(left.term_weights) <= (VISION if images else set()) | (TEXT if texts else set())
        assert left.affinity_weight == (affinity if shared and images and texts else 0.0)
