from __future__ import annotations

from dataclasses import replace

import pytest

from madkit.core.errors import RunError
from madkit.distill.loop.divergence import DivergenceWatch
from madkit.distill.loop.loop import StepLoss
from madkit.distill.settings.config import DivergenceConfig
from tests.distill.loop.toy_loop import SETTINGS, Killed, Toy, dying_after, train

CONFIG = DivergenceConfig(factor=3.0, steps=4, window=10)


def see(losses: list[float], config: DivergenceConfig = CONFIG) -> int:
    """The step in which the watch stops, 0 where it does not."""
    watch = DivergenceWatch(config)
    for step, loss in enumerate(losses, 1):
        try:
            watch.see(step, loss, [f"s{step}"])
        except RunError:
            return step
    return 0


def test_a_loss_that_stays_high_stops_and_names_where_it_began():
    calm = [1.4] * 10 + [1.0] * 10
    assert see([*calm, 5.0, 6.0, 7.0, 8.0, 9.0]) == 24
    watch = DivergenceWatch(CONFIG)
    with pytest.raises(
        RunError, match=r"since step 21 above 3 times its running median of 1; .* of step 21 are s21\."
    ) as error:
        for step, loss in enumerate([*calm, 5.0, 6.0, 7.0, 8.0], 1):
            watch.see(step, loss, [f"s{step}"])
    assert error.value.hint is not None
    assert "optim.learning_rate" in error.value.hint


@pytest.mark.parametrize(
    "losses",
    [
        [1.4] * 10 + [1.0] * 10 + [5.0, 5.0, 5.0, 1.0] * 5,  # noise, never four in a row
        [1.4] * 10 + [0.01] * 20 + [0.5] * 50,  # fifty times the median, and still below the beginning
        [1.4, *[0.5] * 8, 4.0] + [1.0] * 30,
        [9.0] * 3,
    ],
)
def test_noise_is_no_divergence(losses):
    assert see(losses) == 0


def test_it_can_be_switched_off():
    assert see([1.0] * 20 + [100.0] * 50, DivergenceConfig(factor=3.0, steps=0)) == 0


class Exploding(Toy):
    def forward(self, batch) -> StepLoss:
        out = super().forward(batch)
        scale = 100.0 if batch.step >= 13 else 1.0
        return StepLoss(out.loss * scale, out.terms)


def test_a_resumed_loop_stops_where_the_undisturbed_one_does(tmp_path):
    settings = replace(SETTINGS, divergence=CONFIG)
    with pytest.raises(RunError, match=r"in step 17 and since step 14 .* samples of step 14 are sample-") as whole:
        train(tmp_path / "whole", module=Exploding(), settings=settings)
    with pytest.raises(Killed):
        train(tmp_path / "killed", module=Exploding(), settings=settings, batch=dying_after(16))
    with pytest.raises(RunError) as resumed:  # from step 16, when three of the four steps have been
        train(tmp_path / "killed", module=Exploding(), settings=settings)
    assert resumed.value.message == whole.value.message
