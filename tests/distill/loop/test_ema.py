"""The moving average of the weights against its formula, written out, and through the loop."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from madkit.distill.loop.ema import WeightAverage, decay_at
from madkit.distill.loop.loop import Look
from tests.distill.loop.toy_loop import SETTINGS, Killed, Toy, dying_after, lines, train

EMA = replace(SETTINGS, ema=0.9)


def test_the_decay_warms_up_to_its_value():
    assert [decay_at(step, 0.9) for step in (1, 2, 90)] == [2 / 11, 3 / 12, 0.9]


def test_the_average_is_its_formula_and_comes_and_goes_exactly():
    module = nn.Linear(3, 2)
    frozen = module.bias.requires_grad_(False).clone()
    average = WeightAverage(module, 0.5)
    wanted = module.weight.detach().clone().double()
    for step in range(1, 9):
        module.weight.data.normal_()
        d = min(0.5, (1 + step) / (10 + step))
        wanted = d * wanted + (1 - d) * module.weight.detach().double()
        average.update(step)
    own = module.weight.detach().clone()
    with average.applied():
        torch.testing.assert_close(module.weight.double(), wanted, atol=1e-6, rtol=0)
        assert torch.equal(module.bias, frozen)
    assert torch.equal(module.weight, own)


def test_half_precision_weights_are_averaged_in_float32():
    module = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    module.weight.data.fill_(1.0)
    average = WeightAverage(module, 0.999)
    for step in range(10_000, 10_200):  # beyond the warm-up
        module.weight.data.fill_(1.0078125)  # the next number of bfloat16
        average.update(step)
    (kept,) = average.state()["average"].values()
    assert float(kept.detach()) == pytest.approx(1.0078125 - 0.0078125 * 0.999**200, abs=1e-6)


def test_looks_and_what_is_kept_are_the_average_and_the_losses_are_as_without(tmp_path):
    seen = {}
    module = Toy()

    def look(step: int) -> Look:
        seen[step] = module.net[0].weight.detach().clone()
        return Look(-step if step > 8 else step, {"score": step})

    plain, _ = train(tmp_path / "plain")
    _, result = train(tmp_path / "last", module=module, settings=replace(EMA, look_every=8), look=look)
    assert [line for line in lines(tmp_path / "last") if '"dev"' not in line] == lines(tmp_path / "plain")
    assert torch.equal(module.net[0].weight, seen[24])
    assert not torch.equal(module.net[0].weight, plain.net[0].weight)
    assert result.kept_step == 24

    module = Toy()
    _, result = train(tmp_path / "best", module=module, settings=replace(EMA, look_every=8, keep="best"), look=look)
    assert result.kept_step == 8
    assert torch.equal(module.net[0].weight, seen[8])


@pytest.mark.parametrize("at", [3, 13, 23])
def test_a_killed_loop_has_the_same_average(tmp_path, at):
    whole, _ = train(tmp_path / "whole", settings=EMA)
    with pytest.raises(Killed):
        train(tmp_path / "killed", settings=EMA, batch=dying_after(at))
    resumed, result = train(tmp_path / "killed", settings=EMA)
    assert result.resumed_from == at - at % 4
    again, _ = train(tmp_path / "killed", settings=EMA)  # nothing to do, and the average all the same
    for a, b, c in zip(whole.parameters(), resumed.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
