from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower

from madkit.evaluate.power import power, seeds_needed
from madkit.evaluate.statistics import VarianceParts, cluster_sums, paired_difference, variance_parts


def of_seeds(spread: float, n_seeds: int = 5) -> VarianceParts:
    """Scores that differ between seeds only, with that standard deviation."""
    return VarianceParts(seeds=spread**2 / n_seeds, images=0.0, both=0.0, n_seeds=n_seeds, n_images=100)


@pytest.mark.parametrize(("effect", "expected"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10), (1.5, 6)])
def test_without_images_it_is_the_textbook_sample_size_of_the_paired_t_test(effect, expected):
    """Two-sided, level 0.05, power 0.8: the values that power tables and programs give for standardised effects."""
    assert seeds_needed(effect, of_seeds(1.0)) == expected
    assert seeds_needed(10 * effect, of_seeds(10.0, n_seeds=3)) == expected


def test_statsmodels_says_the_same():
    solver = TTestPower()
    for effect in (0.3, 0.7, 1.2):
        assert seeds_needed(effect, of_seeds(1.0)) == int(np.ceil(solver.solve_power(effect, alpha=0.05, power=0.8)))


def test_power_is_the_share_of_t_tests_that_reject():
    random = np.random.default_rng(0)
    draws = random.normal(0.6, 1.0, (20_000, 12))
    rejected = float((stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean())
    assert power(0.6, of_seeds(1.0).with_seeds(12)) == pytest.approx(rejected, abs=0.015)


def simulate(random, n_seeds, n_images, gain, spread_seeds, spread_images, noise=20.0):
    gaps = gain + random.normal(0, spread_seeds, (n_seeds, 1)) + random.normal(0, spread_images, n_images)
    return gaps + random.normal(0, noise, (n_seeds, n_images))


def test_the_number_of_seeds_that_is_named_shows_the_difference_four_times_in_five():
    """Seeds, images and noise with known spreads: the true parts name n, and n seeds are then tried."""
    random = np.random.default_rng(1)
    gain, spread_seeds, spread_images, noise, n_images = 2.0, 1.5, 4.0, 20.0, 200
    true = VarianceParts(
        seeds=(spread_seeds**2 + noise**2 / n_images) / 4,
        images=spread_images**2 / n_images + noise**2 / (4 * n_images),
        both=noise**2 / (4 * n_images),
        n_seeds=4,
        n_images=n_images,
    )
    needed = seeds_needed(gain, true)
    assert needed is not None
    sizes = np.ones(n_images)

    def p_of(table):  # the p of `paired_difference`, without its draws
        parts = variance_parts(table, sizes)
        found = [parts.total(), (parts.images, n_images - 1)]
        return max(2 * stats.t.sf(abs(table.mean()) / np.sqrt(variance), freedom) for variance, freedom in found)

    one = simulate(random, 4, n_images, gain, spread_seeds, spread_images)
    whole = paired_difference(one, np.zeros_like(one), [str(index) for index in range(n_images)], resamples=2)
    assert p_of(one) == pytest.approx(whole.p)

    def shown(n_seeds):
        trials = (simulate(random, n_seeds, n_images, gain, spread_seeds, spread_images) for _ in range(300))
        return np.mean([p_of(one) < 0.05 for one in trials])

    assert 0.72 <= shown(needed) <= 0.92
    assert shown(needed - 3) < 0.72


def test_parts_of_fewer_seeds_foretell_those_of_more():
    random = np.random.default_rng(2)
    few, many = [], []
    for _ in range(150):
        for found, n_seeds in ((few, 4), (many, 16)):
            table, sizes = cluster_sums(simulate(random, n_seeds, 60, 1.0, 2.0, 5.0), [str(i) for i in range(60)])
            parts = variance_parts(table, sizes)
            found.append(parts.with_seeds(16) if n_seeds == 4 else parts)
    for name in ("seeds", "images", "both"):
        foretold, measured = (np.mean([getattr(one, name) for one in found]) for found in (few, many))
        assert foretold == pytest.approx(measured, rel=0.12), name


def test_no_number_of_seeds_mends_a_small_test_set():
    parts = VarianceParts(seeds=0.1, images=4.0, both=0.1, n_seeds=5, n_images=50)
    assert seeds_needed(2.0, parts) is None
    assert seeds_needed(0.0, parts) is None
    assert seeds_needed(20.0, parts) == 3


def test_a_stricter_level_needs_more_seeds():
    assert seeds_needed(1.0, of_seeds(1.0), alpha=0.005) > seeds_needed(1.0, of_seeds(1.0))


def test_differences_that_vary_nowhere_are_shown_by_two_seeds():
    assert seeds_needed(1.0, VarianceParts(0.0, 0.0, 0.0, 3, 10)) == 2
