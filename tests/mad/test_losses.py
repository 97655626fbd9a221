from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from madkit.mad import losses

torch.set_num_threads(1)


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 4, 6, generator=generator), torch.randn(3, 4, 6, generator=generator)


def test_distances_against_torch(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    p, t = pair
    torch.testing.assert_close(losses.cosine_distance(p, t), 1 - F.cosine_similarity(p, t, dim=-1))
    torch.testing.assert_close(losses.mse_distance(p, t), ((p - t) ** 2).mean(-1))
    wanted = F.huber_loss(p, t, reduction="none", delta=0.5).mean(-1) / 0.5
    torch.testing.assert_close(losses.smooth_l1_distance(p, t, beta=0.5), wanted)


def test_half_precision_is_computed_in_full(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    p, t = (x.half() for x in pair)
    for distance in (losses.cosine_distance, losses.mse_distance, losses.smooth_l1_distance):
        got = distance(p, t)
        assert got.dtype == torch.float32
        assert torch.equal(got, distance(p.float(), t.float()))
    assert (
        losses.mse_distance(torch.full((1, 8), 300.0).half(), torch.zeros(1, 8)).item() == 90000.0
    )  # beyond half's range


def test_cosine_of_zero_vectors_has_finite_gradient() -> None:
    p = torch.zeros(2, 4, requires_grad=True)
    losses.cosine_distance(p, torch.ones(2, 4)).sum().backward()
    assert p.grad is not None
    assert bool(p.grad.isfinite().all())


def test_masked_mean() -> None:
    values = torch.tensor([[1.0, 3.0, math.nan], [5.0, math.inf, 1.0]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert losses.masked_mean(values, mask).tolist() == [2.0, 0.0]


def naive_nce(p: torch.Tensor, t: torch.Tensor, mask: list[bool], names: list[int], temperature: float) -> list[float]:
    p, t = F.normalize(p, dim=-1).double(), F.normalize(t, dim=-1).double()
    found = []
    for i in range(len(mask)):
        if not mask[i]:
            found.append(0.0)
            continue
        positive = math.exp(float(p[i] @ t[i]) / temperature)
        others = sum(
            math.exp(float(p[i] @ t[j]) / temperature)
            for j in range(len(mask))
            if mask[j] and names[j] != names[i] and float(t[i] @ t[j]) < 0.999
        )
        found.append(-math.log(positive / (positive + others)))
    return found


def test_info_nce_is_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    p, t = torch.randn(10, 5, generator=generator), torch.randn(10, 5, generator=generator)
    t[7] = 2 * t[2]  # the same word again, not named as such
    mask = torch.tensor([True] * 8 + [False, True])
    names = [0, 1, 2, 3, 0, 5, 6, 7, 8, 9]
    got = losses.info_nce(p, t, mask, identity=torch.tensor(names), temperature=0.3)
    torch.testing.assert_close(got, torch.tensor(naive_nce(p, t, mask.tolist(), names, 0.3)), atol=1e-5, rtol=1e-4)


def test_a_repeated_target_is_no_negative() -> None:
    p = torch.eye(3)[[0, 0, 1]].requires_grad_()
    t = torch.eye(3)[[0, 2, 1]].clone()
    t[1] = t[0]
    own = losses.info_nce(p, t, torch.ones(3, dtype=torch.bool), duplicate_cosine=2.0)
    by_identity = losses.info_nce(
        p, t, torch.ones(3, dtype=torch.bool), identity=torch.tensor([7, 7, 8]), duplicate_cosine=2.0
    )
    by_value = losses.info_nce(p, t, torch.ones(3, dtype=torch.bool))
    assert own[0] > 0.69  # the twin counted as a negative costs log 2
    assert by_identity[0] < 1e-5
    assert by_value[0] < 1e-5


def test_alone_in_the_batch_there_is_nothing_to_tell_apart() -> None:
    got = losses.info_nce(torch.randn(1, 4), torch.randn(1, 4), torch.tensor([True]))
    assert got.abs().item() < 1e-6
    assert losses.info_nce(torch.zeros(0, 3, 4), torch.zeros(0, 3, 4), torch.zeros(0, 3, dtype=torch.bool)).shape == (
        0,
        3,
    )


@pytest.mark.parametrize("limit", [3, 5, 64])
def test_padding_does_not_change_which_negatives_are_used(limit: int) -> None:
    generator = torch.Generator().manual_seed(0)
    p, t = torch.randn(4, 5, 6, generator=generator), torch.randn(4, 5, 6, generator=generator)
    mask = torch.rand(4, 5, generator=generator) > 0.3
    got = losses.info_nce(p, t, mask, max_negatives=limit)
    padded = losses.info_nce(
        F.pad(p, (0, 0, 0, 3), value=9.0), F.pad(t, (0, 0, 0, 3), value=9.0), F.pad(mask, (0, 3)), max_negatives=limit
    )
    torch.testing.assert_close(padded[:, :5], got)
    assert not padded[:, 5:].any()


def test_info_nce_sends_no_gradient_to_the_teacher() -> None:
    p, t = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    losses.info_nce(p, t, torch.ones(5, dtype=torch.bool)).sum().backward()
    assert p.grad is not None
    assert t.grad is None
