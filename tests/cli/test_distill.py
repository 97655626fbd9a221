"""Flags of `madkit distill` that stand for settings, beside the settings themselves."""

from __future__ import annotations

from typing import Any

import pytest

from madkit.cli.main import main
from madkit.core.errors import RunError


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        (["--adversarial"], {"adversarial.steps": 3}),
        (["--adversarial", "--set", "adversarial.steps=5"], {"adversarial.steps": 5}),
        (["--adversarial", "--set", "adversarial={steps: 5}"], {"adversarial.steps": 5}),
        (["--steps", "7", "--set", "optim={steps: 3, clip: 0}"], {"optim.steps": 7, "optim.clip": 0}),
        (["--set", "optim={steps: 3}", "--set", "optim.steps=4"], {"optim.steps": 4}),
    ],
)
def test_a_flag_finds_what_is_set_in_either_spelling(
    words: list[str], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def remember(*_: Any, **named: Any) -> None:
        asked.update(named)
        raise RunError("Nothing is trained here.")

    monkeypatch.setattr("madkit.distill.stage.distill", remember)
    assert main(["distill", "--task", "vqa", *words]) == 1
    assert asked["config_overrides"] == settings
