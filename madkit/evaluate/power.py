"""Power: how many seeds would a comparison need to show the difference that it found?

The question is asked of the very test that the tables use (`statistics.paired_difference`): a two-sided t-test of the
mean paired difference over crossed seeds and images. With the variance of the S seeds there are split into its sources,
A (seeds), B (images) and E (their interaction), n seeds would leave

    V(n) = A * S/n + max(B - E, 0)

as the images' own share stays whatever the number of seeds. The power at a true difference d is that of the noncentral
t distribution with noncentrality |d| / sqrt(V(n)); where images differ in nothing, this is the textbook power of the
paired t-test. The test has to reject for new images alone, too, so the smaller of the two powers counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from madkit.evaluate.statistics import VarianceParts

POWER = 0.8
ALPHA = 0.05
MOST_SEEDS = 1000


def power(effect: float, parts: VarianceParts, *, alpha: float = ALPHA) -> float:
    """The chance 0..1 that the paired test rejects at level `alpha`, were `effect` the true difference.

    Args:
        effect: true difference, in the units of the scores.
        parts: the variance of the mean, with the number of seeds that is asked about.
        alpha: level of the two-sided test.
    """
    found = _of_t(effect, *parts.total(), alpha)
    if parts.n_images > 1:
        found = min(found, _of_t(effect, parts.images, parts.n_images - 1.0, alpha))
    return found


def seeds_needed(
    effect: float, parts: VarianceParts, *, alpha: float = ALPHA, wanted: float = POWER, most: int = MOST_SEEDS
) -> int | None:
    """The least number of seeds with which the test shows `effect` with power `wanted`; None where `most` do not.

    None also for an effect of 0. That `most` seeds do not suffice usually means that the test set is too small: see the
    second term of V(n) above.
    """

    def enough(n_seeds: int) -> bool:
        return power(effect, parts.with_seeds(n_seeds), alpha=alpha) >= wanted

    if effect == 0 or not enough(most):
        return None
    low, high = 1, most  # `high` suffices, `low` does not: one seed has no test
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _of_t(effect: float, variance: float, freedom: float, alpha: float) -> float:
    from scipy import stats

    if variance <= 0:
        return 1.0 if effect else 0.0
    shift = abs(effect) / float(np.sqrt(variance))
    edge = float(stats.t.ppf(1 - alpha / 2, freedom))
    if shift > edge + 40:
        return 1.0
    # a large shift leaves nothing on the other side, and scipy's noncentral t gives NaN there
    other = float(stats.nct.cdf(-edge, freedom, shift)) if shift < 4 else 0.0
    return float(stats.nct.sf(edge, freedom, shift)) + other
