"""Confidence weights over micro-batches and processes, and what sharing a batch changes in a training: nothing."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from madkit.distill.batches.order import PlainOrder, micro_batches
from madkit.distill.loop.loop import StepLoss
from madkit.distill.loop.weight_mean import MOMENTUM, WeightMean, weight_means
from madkit.mad.config import MADConfig
from madkit.mad.criterion import MADCriterion
from madkit.mad.weigh import confidence_weights
from tests.distill.loop.threaded_ranks import on_ranks
from tests.distill.loop.toy_loop import LENGTHS, SEQUENCES, SETTINGS, Killed, N, Toy, X, dying_in, lines, train

TEACHER = torch.rand(N, generator=torch.Generator().manual_seed(7))
CUT = replace(SETTINGS, micro_tokens=30)  # three or four micro-batches of eight samples


class Weighted(Toy):
    """Weighs its samples as the criterion does, and notes the raw and the final weights of each step."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0)
        self.whole: WeightMean | None = None
        self.raw: dict[int, list[float]] = {}
        self.used: dict[int, list[float]] = {}

    def forward(self, batch) -> StepLoss:
        logits = self.net(batch.x)
        student = logits.detach().softmax(-1).gather(1, batch.y[:, None]).squeeze(1)
        rows = [int(torch.nonzero((x == X).all(1)).item()) for x in batch.x]
        weights = confidence_weights(TEACHER[rows], student, whole=self.whole)
        if torch.is_grad_enabled():
            self.raw.setdefault(batch.step, []).extend((TEACHER[rows] / student).clamp(0, 3).tolist())
            self.used.setdefault(batch.step, []).extend(weights.tolist())
        each = nn.functional.cross_entropy(logits, batch.y, reduction="none")
        return StepLoss(each.mean() + (weights * each).mean(), {"task": each.mean()})


def run(folder, *, world: int = 1, settings=SETTINGS, **more):
    modules = [Weighted() for _ in range(world)]  # here, where no other thread draws random numbers

    def work(accelerator):
        module = modules[accelerator.process_index]
        module.whole = mean = WeightMean(accelerator, 3.0)
        train(folder, module=module, settings=settings, accelerator=accelerator, weights=[mean], **more)
        return module

    return on_ranks(world, work)


def losses(folder) -> list[float]:
    return [json.loads(line)["loss"] for line in lines(folder)]


def digests(folder) -> list[str]:
    return [json.loads(line)["ids"] for line in lines(folder)]


def test_one_micro_batch_on_one_process_is_as_ever_to_the_last_bit(tmp_path):
    run(tmp_path / "with")
    train(tmp_path / "without", module=Weighted())
    assert lines(tmp_path / "with") == lines(tmp_path / "without")


@pytest.mark.parametrize("world", [2, 3])
def test_weights_have_mean_one_over_all_processes(tmp_path, world):
    (alone,) = run(tmp_path / "alone")
    ranks = run(tmp_path / "shared", world=world)
    assert losses(tmp_path / "shared") == pytest.approx(losses(tmp_path / "alone"), abs=1e-5)
    for step in range(24):
        together = [weight for rank in ranks for weight in rank.used[step]]
        assert sum(together) / len(together) == pytest.approx(1.0, abs=1e-5)
        assert sorted(together) == pytest.approx(sorted(alone.used[step]), abs=1e-4)


def test_micro_batches_of_a_step_share_one_divisor(tmp_path):
    (module,) = run(tmp_path / "cut", settings=CUT)
    batch = PlainOrder(N, 8, "toy", 5).at(0)
    assert len(micro_batches(batch, LENGTHS, SEQUENCES, 30)) > 2
    total = count = 0.0
    for step in range(24):
        raw, used = module.raw[step], module.used[step]
        divisor = sum(raw) / len(raw) if step == 0 else total / count  # the first step's is its own
        assert used == pytest.approx([weight / divisor for weight in raw], rel=1e-4)
        keep = 0.0 if step == 0 else MOMENTUM
        total = keep * total + (1 - keep) * sum(raw)
        count = keep * count + (1 - keep) * len(raw)
    mean = sum(sum(module.used[step]) for step in range(24)) / (24 * 8)
    assert mean == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(("world", "tokens"), [(1, 45), (2, 30), (3, 30)])
def test_the_divisor_asks_neither_for_micro_batches_nor_for_processes(tmp_path, world, tokens):
    run(tmp_path / "a", settings=CUT)
    run(tmp_path / "b", world=world, settings=replace(CUT, micro_tokens=tokens))
    assert losses(tmp_path / "b") == pytest.approx(losses(tmp_path / "a"), abs=1e-5)


def test_a_killed_run_goes_on_with_the_same_divisors(tmp_path):
    run(tmp_path / "whole", settings=CUT)
    with pytest.raises(Killed):
        run(tmp_path / "killed", settings=CUT, batch=dying_in(13))
    run(tmp_path / "killed", settings=CUT)
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")


@pytest.mark.parametrize("settings", [SETTINGS, CUT], ids=["whole", "cut"])
@pytest.mark.parametrize(("before", "after"), [(1, 2), (3, 1)])
def test_a_run_goes_on_with_another_number_of_processes(tmp_path, before, after, settings):
    run(tmp_path / "calm", settings=settings)
    with pytest.raises(Killed):
        run(tmp_path / "moved", world=before, settings=settings, batch=dying_in(13))
    run(tmp_path / "moved", world=after, settings=settings)
    assert digests(tmp_path / "moved") == digests(tmp_path / "calm")
    assert losses(tmp_path / "moved") == pytest.approx(losses(tmp_path / "calm"), abs=1e-5)


def test_a_process_without_a_share_takes_part_and_counts_nothing(tmp_path):
    order = PlainOrder(N, 2, "toy", 5)
    run(tmp_path / "alone", order=order)
    ranks = run(tmp_path / "shared", world=3, order=PlainOrder(N, 2, "toy", 5))
    assert digests(tmp_path / "shared") == digests(tmp_path / "alone")
    assert losses(tmp_path / "shared") == pytest.approx(losses(tmp_path / "alone"), abs=1e-5)
    for a, b in zip(ranks[0].parameters(), ranks[2].parameters(), strict=True):
        assert torch.equal(a, b)


def test_each_weighing_criterion_asks_a_mean_of_its_own():
    def check(accelerator):
        weighing = [MADCriterion(MADConfig(), 8, 4, 4) for _ in range(2)]
        uniform = MADCriterion(MADConfig(weighting="uniform"), 8, 4, 4)
        means = weight_means(nn.ModuleList([*weighing, uniform]), accelerator)
        assert [criterion.whole_batch for criterion in weighing] == means
        assert len(means) == 2
        assert uniform.whole_batch is None

    on_ranks(1, check)
