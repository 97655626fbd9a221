from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.sandwich_covariance import cov_cluster_2groups

from madkit.evaluate.statistics import (
    cluster_sums,
    hierarchical_bootstrap,
    holm,
    image_difference,
    mean_interval,
    paired_difference,
    variance_parts,
)


def test_mean_interval_is_scipys_t_interval():
    values = [61.2, 63.9, 60.8, 65.0]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = mean_interval(values)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx(np.mean(values))


def test_one_seed_has_no_interval_and_equal_seeds_have_one_of_no_width():
    assert (mean_interval([50.0]).low, mean_interval([50.0]).high) == (None, None)
    assert mean_interval([50.0, 50.0]).low == 50.0


@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=6))
def test_holm_is_the_closed_test_with_bonferroni(p_values):
    """Marcus, Peritz and Gabriel (1976): a hypothesis falls when every intersection that holds it falls."""
    indices = range(len(p_values))
    for index, found in enumerate(holm(p_values)):
        subsets = (s for k in range(1, len(p_values) + 1) for s in combinations(indices, k) if index in s)
        assert found == pytest.approx(max(min(1.0, len(s) * min(p_values[i] for i in s)) for s in subsets))


def test_holm_known_vector():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def made_up_arms(seeds=4, images=120, gain=0.15, spread=0.08, seed=3):
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 4, images)
    names = np.repeat([f"image {index}" for index in range(images)], sizes)
    difficulty = np.repeat(random.normal(0, 1, images), sizes)

    def scores(effect):
        shift = random.normal(0, spread, (seeds, 1))
        return (difficulty + effect + shift + random.normal(0, 1, (seeds, len(names))) > 0).astype(float) * 100

    return scores(gain * 3), scores(0.0), list(names)


def test_without_image_effects_the_interval_is_the_paired_t_interval_of_the_seeds():
    gaps = np.array([[1.0], [3.0], [2.0], [6.0]])
    arm, baseline = 50 + np.repeat(gaps, 10, axis=1), np.full((4, 10), 50.0)
    found = paired_difference(arm, baseline, [str(index) for index in range(10)])
    expected = stats.ttest_rel(gaps[:, 0] + 50, np.full(4, 50.0))
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.p == pytest.approx(expected.pvalue)


def test_standard_error_is_that_of_the_bootstrap_parts():
    """V = A + B - E against brute resampling: seeds alone, images alone; E of the doubly centred cells."""
    arm, baseline, images = made_up_arms(seeds=6)
    table, sizes = cluster_sums(arm - baseline, images)
    n_seeds, n_images = table.shape
    random = np.random.default_rng(0)
    by_seeds = [table[random.integers(0, n_seeds, n_seeds)].sum() for _ in range(6000)] / (n_seeds * sizes.sum())
    picks = random.integers(0, n_images, (6000, n_images))
    by_images = table.sum(axis=0)[picks].sum(axis=1) / (n_seeds * sizes[picks].sum(axis=1))
    residual = (table - table.sum() / (n_seeds * sizes.sum()) * sizes) / (n_seeds * sizes.sum())
    inner = residual - residual.mean(0) - residual.mean(1, keepdims=True) + residual.mean()
    cells = (inner**2).sum() * n_seeds * n_images / ((n_seeds - 1) * (n_images - 1))
    expected = np.var(by_seeds) * n_seeds / (n_seeds - 1) + np.var(by_images) * n_images / (n_images - 1) - cells
    assert variance_parts(table, sizes).total()[0] == pytest.approx(expected, rel=0.06)


def test_hierarchical_bootstrap_draws_seeds_and_images_as_plain_loops_do():
    arm, baseline, images = made_up_arms(seeds=5, images=60)
    table, sizes = cluster_sums(arm - baseline, images)
    random = np.random.default_rng(1)
    plain = []
    for _ in range(4000):
        seeds = random.integers(0, table.shape[0], table.shape[0])
        picks = random.integers(0, table.shape[1], table.shape[1])
        plain.append(table[seeds][:, picks].sum() / (len(seeds) * sizes[picks].sum()))
    draws = hierarchical_bootstrap(table, sizes, 4000)
    assert draws.mean() == pytest.approx(np.mean(plain), abs=0.15)
    assert np.percentile(draws, [2.5, 97.5]) == pytest.approx(np.percentile(plain, [2.5, 97.5]), abs=0.5)


def test_images_that_share_questions_count_once():
    """The same answers as ten questions about ten images, and as ten about one: less is known from the latter."""
    random = np.random.default_rng(5)
    effects = random.normal(2, 10, 30)
    arm = np.repeat(effects, 10)[None, :] + random.normal(0, 1, (3, 300))
    zero = np.zeros((3, 300))
    apart = paired_difference(arm, zero, [str(index) for index in range(300)])
    together = paired_difference(arm, zero, [str(index // 10) for index in range(300)])
    assert together.n_images == 30
    assert together.high - together.mean > 2 * (apart.high - apart.mean)


def test_permutation_p_values_agree_with_exact_counts():
    gaps = np.array([[2.0, 1.0, 3.0, 0.0, 4.0]])
    found = paired_difference(np.repeat(gaps, 3, axis=0), np.zeros((3, 5)), list("abcde"), resamples=500)
    # all gaps are positive: of the 2**4 sign patterns of the four non-zero images, two are as extreme
    assert found.p_images == pytest.approx(2 / 16)
    assert found.p_seeds == pytest.approx(2 / 8)


def test_two_seeds_that_agree_by_chance_are_no_proof():
    """Each seed wins one question of sixty, not the same one: the seed means agree exactly, which is luck."""
    arm = np.zeros((2, 60))
    arm[0, 3] = arm[1, 40] = 100.0
    found = paired_difference(arm, np.zeros((2, 60)), [str(index) for index in range(60)])
    assert found.mean == pytest.approx(100 / 60)
    assert found.high - found.low > 2
    assert found.p > 0.05
    assert found.p_images == pytest.approx(0.5)


def test_one_changed_answer_is_no_proof():
    arm = np.zeros((3, 60))
    arm[0, 3] = 100.0
    found = paired_difference(arm, np.zeros((3, 60)), [str(index) for index in range(60)])
    assert found.low < 0 < found.high
    assert found.p_images == 1.0


def test_no_difference_at_all_is_no_effect():
    scores = np.ones((3, 8)) * 100
    found = paired_difference(scores, scores, [str(index) for index in range(8)])
    assert (found.mean, found.low, found.high, found.p, found.p_images) == (0.0, 0.0, 0.0, 1.0, 1.0)


def test_one_seed_gives_a_difference_without_interval():
    arm, baseline, images = made_up_arms(seeds=1)
    found = paired_difference(arm, baseline, images, resamples=200)
    assert found.low is None
    assert found.p is None
    assert found.mean == pytest.approx((arm - baseline).mean())


def test_pairing_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="same examples"):
        paired_difference(np.zeros((2, 3)), np.zeros((2, 4)), ["a"] * 3)


def test_equal_data_give_equal_intervals():
    arm, baseline, images = made_up_arms()
    assert paired_difference(arm, baseline, images) == paired_difference(arm, baseline, images)


def test_two_students_with_one_question_per_image_are_scipys_paired_t_test():
    random = np.random.default_rng(4)
    first, second = (random.integers(0, 2, 80) * 100.0 for _ in range(2))
    found = image_difference(first, second, [str(index) for index in range(80)])
    expected = stats.ttest_rel(first, second)
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.p == pytest.approx(expected.pvalue)


def test_the_flips_of_two_students_are_mcnemars_exact_test():
    """Right or wrong on 40 questions of 40 images: sign flips over the discordant ones are the binomial test."""
    first, second = np.zeros(40), np.zeros(40)
    first[:8] = 100.0
    second[8] = 100.0
    found = image_difference(first, second, [str(index) for index in range(40)])
    assert found.p_images == pytest.approx(stats.binomtest(8, 9).pvalue)


def test_questions_about_one_image_are_one_cluster():
    """Where all images have equally many questions, it is scipy's t-test of the means of the images."""
    random = np.random.default_rng(6)
    gaps = np.repeat(random.normal(1, 5, 30), 4) + random.normal(0, 1, 120)
    found = image_difference(gaps, np.zeros(120), [str(index // 4) for index in range(120)])
    interval = stats.ttest_1samp(gaps.reshape(30, 4).mean(axis=1), 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.n_images == 30
    assert image_difference(gaps[:4], np.zeros(4), ["one"] * 4).low is None


def test_holm_is_statsmodels():
    p_values = np.random.default_rng(8).uniform(0, 0.2, 12).tolist()
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist())


def test_two_students_are_compared_with_statsmodels_cluster_robust_error():
    """Images with one to five questions: the mean's error is that of least squares with errors clustered by image."""
    random = np.random.default_rng(9)
    images = np.repeat(np.arange(40), random.integers(1, 6, 40))
    gaps = random.normal(1, 5, 40)[images] + random.normal(0, 2, len(images))
    fit = OLS(gaps, np.ones_like(gaps)).fit(cov_type="cluster", cov_kwds={"groups": images}, use_t=True)
    found = image_difference(gaps, np.zeros_like(gaps), [str(image) for image in images])
    assert (found.low, found.high) == pytest.approx(tuple(fit.conf_int()[0]))
    assert found.p == pytest.approx(fit.pvalues[0])


def test_two_crossed_sources_are_statsmodels_two_way_clusters():
    """Seeds and images as two groupings of one regression: the same parts, but that ours has no noise in E's place."""
    arm, baseline, images = made_up_arms(seeds=12, images=200)
    gaps = arm - baseline
    seeds, named = np.indices(gaps.shape)[0], np.tile(np.unique(images, return_inverse=True)[1], (len(gaps), 1))
    fit = OLS(gaps.ravel(), np.ones(gaps.size)).fit()
    both, of_seeds, of_images = cov_cluster_2groups(fit, seeds.ravel(), named.ravel())
    table, sizes = cluster_sums(gaps, images)
    parts = variance_parts(table, sizes)
    assert parts.seeds == pytest.approx(of_seeds[0, 0], rel=0.01)
    assert parts.images == pytest.approx(of_images[0, 0], rel=0.01)
    assert parts.total()[0] == pytest.approx(both[0, 0], rel=0.05)


def test_sign_flips_over_images_are_scipys_permutation_test():
    random = np.random.default_rng(10)
    gaps = random.normal(0.6, 1, 9)
    exact = stats.permutation_test((gaps,), np.mean, permutation_type="samples", n_resamples=np.inf)
    found = image_difference(gaps, np.zeros(9), [str(index) for index in range(9)], resamples=20_000)
    assert found.p_images == pytest.approx(exact.pvalue, abs=0.01)


def test_the_interval_of_two_students_covers_95_percent_where_images_share_questions():
    random = np.random.default_rng(11)
    images = np.repeat(np.arange(80), random.integers(1, 5, 80))
    names = [str(image) for image in images]
    hits = 0
    for _ in range(500):
        # the effects of images with more questions count more, and are drawn anew each time
        gaps = 1.0 + random.normal(0, 3, 80)[images] + random.normal(0, 2, len(images))
        found = image_difference(gaps, np.zeros_like(gaps), names, resamples=2)
        hits += found.low <= 1.0 <= found.high
    assert 0.93 <= hits / 500 <= 0.97
