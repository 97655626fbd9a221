"""A configuration written out in full says everything, and read again is the same configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import Field

from madkit.core.config import StrictModel, load_config
from madkit.core.documented import WIDTH, documented, keys_of
from madkit.distill.settings.arms import arm_names, load_arm
from madkit.distill.settings.config import DistillConfig
from madkit.distill.settings.recipes import Recipe, load_recipe, recipe_names


class Inner(StrictModel):
    """What an inner section is about. Not this."""

    size: int = Field(3, description="how large")
    names: tuple[str, ...] = ("a", "b")


class Outer(StrictModel):
    """A schema with every kind of key."""

    needed: str
    rate: float | None = Field(None, description="a very long description " + "that goes on and on " * 5)
    inner: Inner = Field(default_factory=lambda: Inner(size=5))
    other: Inner | None = None
    loose: dict[str, int] = Field(default_factory=dict)


def test_every_key_is_there_with_value_default_and_description() -> None:
    keys = {key.name: key for key in keys_of(Outer(needed="x", inner=Inner(size=7)))}
    assert list(keys) == [
        "needed", "rate", "inner", "inner.size", "inner.names", "other", "other.size", "other.names", "loose",
    ]  # fmt: skip
    assert keys["needed"].required
    assert not keys["rate"].required
    size = keys["inner.size"]
    assert (size.value, size.default, size.description, size.absent) == (7, 5, "how large", False)
    assert (keys["other.size"].value, keys["other.size"].absent) == (3, True)
    assert keys["inner"].description == "What an inner section is about"
    assert keys["inner"].section
    assert not keys["inner.size"].section


def test_the_text_is_the_configuration() -> None:
    config = Outer(needed="null", rate=1e-5, inner=Inner(size=7, names=()), loose={"b": 1, "a": 2})
    text = documented(config)
    assert Outer.model_validate(yaml.safe_load(text)) == config
    assert "size: 7  # default: 5" in text
    assert "keys as in inner" in text
    assert "#   steps: 3" in documented(DistillConfig())
    assert max(map(len, text.splitlines())) <= WIDTH


@pytest.mark.parametrize("name", arm_names())
def test_shipped_arms_read_again_are_the_same(name: str, tmp_path: Path) -> None:
    path = tmp_path / "arm.yaml"
    config = load_arm(name)
    path.write_text(documented(config), encoding="utf-8")
    assert load_config(DistillConfig, path, {}) == config


def test_a_shipped_recipe_read_again_is_the_same() -> None:
    recipe = load_recipe("villa-base-vcr")
    assert Recipe.model_validate(yaml.safe_load(documented(recipe))) == recipe


def test_nothing_goes_without_a_description() -> None:
    for config in (DistillConfig(), load_recipe(recipe_names()[0])):
        assert [key.name for key in keys_of(config) if not key.description] == []
