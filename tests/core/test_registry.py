"""Lazy names and near misses."""

from __future__ import annotations

import sys

import pytest

from madkit.core.errors import UsageProblem
from madkit.core.registry import Registry, suggest


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("snlive", " Did you mean 'snli-ve'?"),
        ("VCR", " Did you mean 'vcr'?"),
        ("vcrr", " Did you mean 'vcr'?"),
        ("imagenet", ""),
        ("", ""),
    ],
)
def test_suggestions(name: str, expected: str) -> None:
    assert suggest(name, ["vcr", "snli-ve", "vqa"]) == expected


def test_suggestions_keep_the_spelling_of_the_name() -> None:
    assert suggest("vit-l14", ["ViT-L-14"]) == " Did you mean 'ViT-L-14'?"
    assert suggest("x", []) == ""


def test_entries_are_imported_on_first_use() -> None:
    registry: Registry[object] = Registry("codec")
    sys.modules.pop("xdrlib_absent", None)
    registry.register("wave", "wave:Wave_read", channels=2)
    registry.register("here", object)
    registry.register("broken", "xdrlib_absent:X")
    sys.modules.pop("wave", None)
    assert registry.names() == ["wave", "here", "broken"]
    assert registry.info("wave") == {"channels": 2}
    assert "wave" not in sys.modules
    import wave

    assert registry.get("wave") is wave.Wave_read
    assert registry.get("wave") is wave.Wave_read
    assert registry.get("here") is object
    assert "here" in registry
    assert "there" not in registry
    with pytest.raises(ModuleNotFoundError):
        registry.get("broken")


def test_unknown_names_are_answered_with_a_suggestion_and_the_list() -> None:
    registry: Registry[object] = Registry("teacher")
    registry.register("mini", object)
    registry.register("clip-vit-l14", object)
    for ask in (registry.get, registry.info):
        with pytest.raises(UsageProblem) as caught:
            ask("clip-vitl14")
        assert str(caught.value) == "There is no teacher 'clip-vitl14'. Did you mean 'clip-vit-l14'?"
        assert caught.value.hint == "one of: mini, clip-vit-l14."
        assert caught.value.exit_code == 2


def test_a_name_is_given_once() -> None:
    registry: Registry[object] = Registry("teacher")
    registry.register("mini", object)
    with pytest.raises(ValueError, match="teacher 'mini' is registered twice"):
        registry.register("mini", object)
