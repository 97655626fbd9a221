"""Measured coverage of the 95 % intervals on simulated scores whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from madkit.evaluate.statistics import (
    VarianceParts,
    cluster_sums,
    hierarchical_bootstrap,
    mean_interval,
    paired_difference,
    two_seed_critical,
)

TRIALS = 400
RESAMPLES = 2  # the interval does not depend on the draws, which would take most of the time


def simulate(random, seeds, images, spread_seeds, spread_images, per_image):
    """0/1 scores of two arms: a shared difficulty per example, a seed effect per arm, an image effect on the gain."""
    sizes = np.full(images, 1) if per_image == 1 else random.integers(1, 2 * per_image, images)
    index = np.repeat(np.arange(images), sizes)
    difficulty = np.repeat(random.normal(0, 1, images), sizes)
    gain = 0.1 + np.repeat(random.normal(0, spread_images, images), sizes)

    def answers(effect):
        noise = random.normal(0, 1, (seeds, len(index)))
        return (difficulty + effect + random.normal(0, spread_seeds, (seeds, 1)) + noise > 0).astype(float)

    return answers(gain) - answers(0.0), [str(image) for image in index]


def truth(spread_seeds, spread_images):
    arm = stats.norm.cdf(0.1 / np.sqrt(2 + spread_seeds**2 + spread_images**2))
    return float(arm - 0.5)


def coverage(seeds, spread_seeds, spread_images, per_image, trials=TRIALS):
    random = np.random.default_rng(20261122)
    expected = truth(spread_seeds, spread_images)
    hits = 0
    for _ in range(trials):
        gaps, images = simulate(random, seeds, 150, spread_seeds, spread_images, per_image)
        found = paired_difference(gaps, np.zeros_like(gaps), images, resamples=RESAMPLES)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= expected <= found.high
    return hits / trials


@pytest.mark.parametrize(
    ("seeds", "spread_seeds", "spread_images", "per_image"),
    [(2, 0.0, 0.0, 1), (2, 0.3, 0.3, 2), (3, 0.1, 0.0, 1), (3, 0.3, 0.3, 1), (5, 0.1, 0.3, 2)],
)
def test_paired_interval_covers_95_percent(seeds, spread_seeds, spread_images, per_image):
    assert 0.93 <= coverage(seeds, spread_seeds, spread_images, per_image) <= 0.97


@pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98, 1.0])
def test_two_seeds_are_covered_whatever_their_share_of_the_variance_is(share):
    """By integration over what one difference of two seeds says of their spread: scipy's chi-squared, one degree."""
    seen = share * stats.chi2.ppf((np.arange(400) + 0.5) / 400, 1)
    images = 1.0 - share
    reach = [two_seed_critical(VarianceParts(a, images, 0.0, 2, 5000)) * np.sqrt(a + images) for a in seen]
    assert 0.94 <= (2 * stats.norm.cdf(reach) - 1).mean() <= 0.965


@pytest.mark.parametrize("seeds", [2, 5])
def test_mean_interval_covers_95_percent(seeds):
    random = np.random.default_rng(seeds)
    hits = 0
    for _ in range(600):
        interval = mean_interval(list(random.normal(50.0, 2.0, seeds)))
        assert interval.low is not None
        assert interval.high is not None
        hits += interval.low <= 50.0 <= interval.high
    assert 0.93 <= hits / 600 <= 0.97


def test_percentile_bootstrap_is_too_narrow_with_three_seeds():
    """Why the percentile interval is not the headline: three seeds cannot show the spread they came from."""
    random = np.random.default_rng(7)
    expected = truth(0.3, 0.0)
    hits = 0
    for _ in range(200):
        table, sizes = cluster_sums(*simulate(random, 3, 100, 0.3, 0.0, 1))
        low, high = np.percentile(hierarchical_bootstrap(table, sizes, 400), [2.5, 97.5])
        hits += low <= expected <= high
    assert hits / 200 < 0.90
