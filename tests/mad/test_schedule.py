from __future__ import annotations

import pytest

from madkit.mad.schedule import schedule_factor


def test_without_progress_lambda_is_whole() -> None:
    assert schedule_factor("linear", None, warmup=0.5) == 1.0


@pytest.mark.parametrize(
    ("schedule", "progress", "wanted"),
    [
        ("constant", 0.9, 1.0),
        ("linear", 0.0, 1.0),
        ("linear", 0.25, 0.75),
        ("linear", 1.0, 0.0),
        ("linear", 7.0, 0.0),
        ("cosine", 0.0, 1.0),
        ("cosine", 0.5, 0.5),
        ("cosine", 1.0, 0.0),
    ],
)
def test_decays(schedule: str, progress: float, wanted: float) -> None:
    assert schedule_factor(schedule, progress) == pytest.approx(wanted)


def test_warmup_rises_and_then_the_decay_begins() -> None:
    values = [schedule_factor("linear", p, warmup=0.2) for p in (0.0, 0.1, 0.2, 0.6, 1.0)]
    assert values == pytest.approx([0.0, 0.5, 1.0, 0.5, 0.0])
    assert schedule_factor("cosine", 1.0, warmup=1.0) == 1.0


def test_decay_ends_at_the_final_share() -> None:
    assert schedule_factor("linear", 1.0, final=0.1) == pytest.approx(0.1)
    assert schedule_factor("cosine", 0.5, final=0.2) == pytest.approx(0.6)
