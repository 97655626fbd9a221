from __future__ import annotations

from madkit.core.later_keys import LATER, without_later
from madkit.distill.settings.config import DistillConfig


def test_only_keys_that_came_later_and_hold_their_default_are_left_out():
    values = {"arm": "mad", "answers": None, "optim": {"momentum": 0.9, "optimizer": "sgd", "clip": 1.0}, "mad": None}
    assert without_later(values) == {"arm": "mad", "optim": {"optimizer": "sgd", "clip": 1.0}, "mad": None}


def test_every_default_is_the_one_that_the_schema_gives():
    """A typing error in a key or a default would let old and new runs drift apart without a word."""
    config = DistillConfig(mad={}, pre_phase={}).model_dump(mode="json")
    for key, default in LATER.items():
        value = config
        for part in key.split("."):
            assert part in value, key
            value = value[part]
        assert value == default, key
