"""What is averaged of distances, and its gradients by hand, against autograd on the formulas: not a bit may differ."""

from __future__ import annotations

import pytest
import torch

from madkit.mad.example_means import CosineDistances, WeightedMeans
from madkit.mad.losses import cosine_distance, masked_mean

torch.set_num_threads(1)


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def same(left: torch.Tensor | None, right: torch.Tensor | None) -> bool:
    assert left is not None
    assert right is not None
    return left.dtype == right.dtype and torch.equal(left, right)


@pytest.mark.parametrize("D", [1, 6, 128, 257])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cosine_distances_are_those_of_autograd(D: int, dtype: torch.dtype) -> None:
    sizes = (5, 1, 12)
    made = [draw(n, D, seed=n).to(dtype) for n in sizes]
    made[0][1] = 0.0  # no direction at all, and one too short to count
    made[2][3] *= 1e-8
    targets = [draw(5, D, seed=7), draw(1, D, seed=8).half(), draw(12, D, seed=9).half()]
    targets[2][4] = 0.0
    mine = [one.clone().requires_grad_() for one in made]
    plain = [one.clone().requires_grad_() for one in made]
    got = CosineDistances.apply(targets, *mine)
    want = torch.cat([cosine_distance(one, target) for one, target in zip(plain, targets, strict=True)])
    assert same(got, want)
    outer = draw(sum(sizes), seed=11)
    got.backward(outer)
    want.backward(outer)
    assert all(same(one.grad, other.grad) for one, other in zip(mine, plain, strict=True))


@pytest.mark.parametrize("N", [1, 2, 33])
@pytest.mark.parametrize("widths", [(1, 1, 4, 4), (1, 7, 7, 1), (4,), (0, 3), (12, 12, 30)])
def test_weighted_means_are_those_of_autograd(N: int, widths: tuple[int, ...]) -> None:
    coefficients = [(1.0, 0.3, 2.0, 0.7)[kind] for kind in range(len(widths))]
    masks = [draw(N, K, seed=kind) > -0.3 for kind, K in enumerate(widths)]
    masks[-1][0] = False  # an example that lacks a kind
    weight = draw(N, seed=50).abs()
    values = [draw(N * K, seed=20 + kind).abs() for kind, K in enumerate(widths)]

    plain = [one.clone().requires_grad_() for one in values]
    total, present, shares = 0.0, torch.zeros(N), []
    for a, mask, one in zip(coefficients, masks, plain, strict=True):
        mean = masked_mean(one.view(mask.shape), mask)
        has = a * mask.any(-1)
        total, present = total + has * mean, present + has
        shares.append((mean * weight).sum())
    want = (weight * total / present.clamp_min(1e-12)).sum()

    for joined in (False, True):
        mine = [one.clone().requires_grad_() for one in ([torch.cat(values)] if joined else values)]
        got, found = WeightedMeans.apply(coefficients, masks, weight, *mine)
        assert same(got, want)
        assert not found.requires_grad
        torch.testing.assert_close(found, torch.stack(shares))
        (3 * got).backward()
        gradient = torch.cat([one.grad for one in mine if one.grad is not None])
        want_gradient = torch.autograd.grad(3 * want, plain, retain_graph=True)
        assert same(gradient, torch.cat(want_gradient))


def test_a_second_derivative_is_refused_and_not_wrong() -> None:
    prediction = draw(3, 4, seed=1).requires_grad_()
    distance = CosineDistances.apply([draw(3, 4, seed=2)], prediction).square().sum()
    (first,) = torch.autograd.grad(distance, prediction, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
