from __future__ import annotations

from pathlib import Path

import pytest

from madkit.core.errors import UsageProblem
from madkit.tasks.example import Example, ImageRef, Segment
from madkit.tasks.spec import TASKS, get_task


def test_texts_are_unique_and_in_order() -> None:
    a, b, c = Segment("a"), Segment("b"), Segment("c")
    example = Example("1", "vcr", "1", ImageRef("i", Path("i")), context=(b, a), candidates=(a, c, b, Segment("a")))
    assert example.texts() == ("b", "a", "c")


def test_tasks() -> None:
    assert [spec.kind for spec in TASKS.values()] == ["multiple-choice", "classification", "vqa"]
    assert all(get_task(name).name == name and spec.metric == spec.metrics[0] for name, spec in TASKS.items())
    assert get_task("snli-ve").labels == ("contradiction", "entailment", "neutral")


def test_an_unknown_task_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(UsageProblem, match=r"no task named 'snlive'\. Did you mean 'snli-ve'\?") as caught:
        get_task("snlive")
    assert caught.value.hint == "use one of: vcr, snli-ve, vqa"
