"""The cross-fitted probe: its solution, its folds, and that no example is scored by a head that has seen it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax

from madkit.core.errors import DataError
from madkit.mad.probe import assign_folds, cross_fit_probe, fit_probe, probe_features

torch.set_num_threads(1)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_multinomial_solution_is_scipys() -> None:
    N, width, K, l2 = 60, 4, 3, 0.05
    x, y = normal(N, width), torch.arange(N) % K
    y[:30] = (x[:30, 0] > 0).long()

    def objective(flat: np.ndarray) -> float:
        w, b = flat[: width * K].reshape(width, K), flat[width * K :]
        scores = log_softmax(x.double().numpy() @ w + b, axis=-1)
        return float(-scores[np.arange(N), y.numpy()].mean() + 0.5 * l2 * (w**2).sum())

    best = minimize(objective, np.zeros(width * K + K), method="BFGS", options={"gtol": 1e-7}).x
    logits = fit_probe(x, y, K, l2=l2, iterations=200, standardise=False)(x)
    wanted = log_softmax(x.double().numpy() @ best[: width * K].reshape(width, K) + best[width * K :], axis=-1)
    torch.testing.assert_close(logits.softmax(-1), torch.tensor(wanted).exp().float(), atol=1e-3, rtol=0)


def test_multiple_choice_solution_is_scipys() -> None:
    N, C, width, l2 = 50, 4, 3, 0.05
    x, y = normal(N, C, width), torch.randint(0, C, (N,), generator=torch.Generator().manual_seed(1))
    x[torch.arange(N), y, 0] += 1.0

    def objective(w: np.ndarray) -> float:
        scores = log_softmax(x.double().numpy() @ w, axis=-1)
        return float(-scores[np.arange(N), y.numpy()].mean() + 0.5 * l2 * (w**2).sum())

    best = minimize(objective, np.zeros(width), method="BFGS", options={"gtol": 1e-7}).x
    got = fit_probe(x, y, C, l2=l2, iterations=200, standardise=False)(x).log_softmax(-1)
    torch.testing.assert_close(
        got, torch.tensor(log_softmax(x.double().numpy() @ best, axis=-1)).float(), atol=1e-3, rtol=0
    )


def test_standardisation_is_of_the_fitted_examples() -> None:
    x, y = normal(40, 3) * torch.tensor([1.0, 100.0, 0.01]) + 5.0, torch.arange(40) % 2
    scaled = (x - x.mean(0)) / x.std(0, correction=0)
    torch.testing.assert_close(
        fit_probe(x, y, 2, l2=0.1, iterations=100)(x).softmax(-1),
        fit_probe(scaled, y, 2, l2=0.1, iterations=100, standardise=False)(scaled).softmax(-1),
        atol=2e-3,
        rtol=0,
    )


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_no_example_is_scored_by_a_head_that_was_fitted_on_it(kind: str) -> None:
    # Features that name the example, labels by lot: whoever has seen an example knows its label, nobody else can.
    N, K = 60, 3
    features, labels = torch.eye(N) * 10, torch.randint(0, K, (N,), generator=torch.Generator().manual_seed(0))
    inside = fit_probe(features, labels, K, kind=kind, l2=1e-3)(features).softmax(-1)
    assert inside[torch.arange(N), labels].mean() > 0.9
    outside = cross_fit_probe(features, labels, kind=kind, l2=1e-3)
    assert outside.confidence.mean() < 0.45
    if kind == "linear":  # choosing a penalty looks at no more than the fit does
        assert cross_fit_probe(features, labels).confidence.mean() < 0.45


def test_examples_of_one_image_never_help_each_other() -> None:
    # Three examples per image share a label and features that name the image.
    images = torch.arange(40).repeat_interleave(3)
    labels = torch.randint(0, 2, (40,), generator=torch.Generator().manual_seed(0))[images]
    features = torch.eye(40)[images] * 10
    leaky = cross_fit_probe(features, labels, l2=1e-3)
    grouped = cross_fit_probe(features, labels, groups=images, l2=1e-3)
    assert leaky.confidence.mean() > 0.8
    assert grouped.confidence.mean() < 0.6
    assert all(grouped.fold[images == image].unique().numel() == 1 for image in range(40))


def test_changing_an_example_changes_no_score_of_its_own_fold() -> None:
    features, labels = normal(30, 4), torch.arange(30) % 2
    before = cross_fit_probe(features, labels, l2=0.1)
    labels[7] = 1 - labels[7]
    after = cross_fit_probe(features, labels, l2=0.1)
    same = before.fold == before.fold[7]
    assert torch.equal(before.probabilities[same], after.probabilities[same])
    assert not torch.equal(before.probabilities[~same], after.probabilities[~same])


def test_a_teacher_that_knows_is_believed() -> None:
    labels = torch.arange(300) % 3
    features = torch.eye(3)[labels] + 0.3 * normal(300, 3)
    fit = cross_fit_probe(features, labels)
    assert fit.confidence.mean() > 0.85
    torch.testing.assert_close(fit.probabilities.sum(-1), torch.ones(300))
    assert len(fit.l2) == 5


def test_the_penalty_grows_when_features_are_noise() -> None:
    labels = torch.randint(0, 2, (200,), generator=torch.Generator().manual_seed(0))
    noise = cross_fit_probe(normal(200, 64), labels)
    informed = cross_fit_probe(torch.eye(2)[labels] + 0.5 * normal(200, 2), labels)
    assert min(noise.l2) > 10 * max(informed.l2)
    assert noise.confidence.mean() == pytest.approx(0.5, abs=0.06)


def test_multiple_choice() -> None:
    N, C = 200, 4
    labels = torch.randint(0, C, (N,), generator=torch.Generator().manual_seed(2))
    features = normal(N, C, 5)
    features[torch.arange(N), labels, 1] += 3.0
    fit = cross_fit_probe(features, labels)
    assert fit.probabilities.shape == (N, C)
    assert (fit.probabilities.argmax(-1) == labels).float().mean() > 0.85


def test_soft_targets_of_vqa() -> None:
    kinds = torch.arange(150) % 3
    features = torch.eye(3)[kinds] + 0.1 * normal(150, 3)
    soft = torch.tensor([[1.0, 0.3, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.6]])[kinds]
    fit = cross_fit_probe(features, soft)
    torch.testing.assert_close(fit.probabilities[kinds == 0].mean(0)[0], torch.tensor(1 / 1.3), atol=0.08, rtol=0)
    expected = (fit.probabilities * soft).sum(-1)  # the score that the head's answers would earn
    torch.testing.assert_close(fit.confidence, expected)
    assert fit.confidence[kinds == 2].mean() > 0.8 * 0.6


def test_unlabelled_examples_are_scored_but_never_fitted() -> None:
    labels = torch.arange(120) % 2
    features = torch.eye(2)[labels] * 3 + 0.3 * normal(120, 2)
    known = labels.clone()
    known[100:] = -1
    first = cross_fit_probe(features, known, l2=0.1)
    features[100:] *= -1  # what no head reads while it is fitted
    second = cross_fit_probe(features, known, l2=0.1)
    assert torch.equal(first.probabilities[:100], second.probabilities[:100])
    assert (first.probabilities[100:].argmax(-1) == labels[100:]).all()
    assert torch.equal(first.confidence[100:], first.probabilities[100:].amax(-1))


def test_folds_depend_on_names_alone_and_are_even() -> None:
    names = [f"image-{n}" for n in range(23)]
    fold = dict(zip(names, assign_folds(names, 5, 0).tolist(), strict=True))
    again = dict(zip(reversed(names), assign_folds(list(reversed(names)), 5, 0).tolist(), strict=True))
    assert fold == again
    assert sorted(list(fold.values()).count(part) for part in range(5)) == [4, 4, 5, 5, 5]


def test_same_seed_same_scores() -> None:
    features, labels = normal(50, 4), torch.arange(50) % 2
    first, second = (cross_fit_probe(features, labels, fit_limit=20, seed=3) for _ in range(2))
    assert torch.equal(first.probabilities, second.probabilities)


def test_one_image_alone_cannot_be_held_out() -> None:
    with pytest.raises(DataError, match="two different images") as caught:
        cross_fit_probe(normal(4, 2), torch.tensor([0, 1, 0, 1]), groups=["a"] * 4)
    assert caught.value.hint


def test_features_of_one_space_and_of_two() -> None:
    v, t = normal(3, 4), normal(3, 2, 4, seed=1)
    got = probe_features(v, t)
    assert got.shape == (3, 2, 16)
    unit_v, unit_t = v / v.norm(dim=-1, keepdim=True), t / t.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(got[1, 0, 8:12], unit_v[1] * unit_t[1, 0] * 4)
    torch.testing.assert_close(got[..., 8:12].sum(-1) / 4, (unit_v.unsqueeze(1) * unit_t).sum(-1))
    other = probe_features(v, normal(3, 6))
    assert other.shape == (3, 4 + 6 + 2 * 4)
    assert torch.equal(other, probe_features(v, normal(3, 6)))


def test_runs_where_gradients_are_off() -> None:
    with torch.no_grad():
        fit = cross_fit_probe(normal(20, 3), torch.arange(20) % 2)
    assert not fit.probabilities.requires_grad
