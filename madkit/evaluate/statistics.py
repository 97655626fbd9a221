"""Intervals, paired differences and tests for scores over seeds and images.

Three questions, three answers:

- *What would another seed score on these examples?* `mean_interval`: Student's t over the seeds (scipy).
- *How much better is an arm than its baseline, for new seeds and new images?* `paired_difference`: the same seeds and
  examples in both arms, two crossed sources of chance. See there for the formula.
- *Many comparisons in one table?* `holm`.

All of them take scores in any unit and give back the same unit. Coverage of the 95 % intervals is measured in
`tests/evaluate/test_coverage.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from madkit.core.seeds import derive_seed

CONFIDENCE = 0.95
RESAMPLES = 2000

FloatArray = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Interval:
    """A mean with its interval; `low` and `high` are None where one value says nothing about its own spread."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class PairedDifference:
    """Arm minus baseline over the same seeds and examples.

    `mean`, `low`, `high`: the difference and its interval for new seeds and new images. `p`: two-sided, of the same
    statistic. `p_images`: permutation test with sign flips over images, given these very students. `p_seeds`: exact
    sign flips over seeds (its smallest possible value is 2 / 2**n_seeds). `bootstrap_low`, `bootstrap_high`: percentile
    interval of the hierarchical bootstrap. `parts`: where its variance comes from. Everything but `mean` and `p_images`
    is None with one seed.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    p_images: float | None
    p_seeds: float | None
    bootstrap_low: float | None
    bootstrap_high: float | None
    n_seeds: int
    n_examples: int
    n_images: int
    parts: VarianceParts | None = None


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Mean of per-seed scores with the interval of Student's t distribution (scipy.stats.t)."""
    from scipy import stats

    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError("no values")
    mean = float(array.mean())
    if array.size == 1:
        return Interval(mean, None, None)
    error = float(stats.sem(array))
    if error == 0.0:
        return Interval(mean, mean, mean)
    low, high = stats.t.interval(confidence, array.size - 1, loc=mean, scale=error)
    return Interval(mean, float(low), float(high))


def paired_difference(
    arm: FloatArray,
    baseline: FloatArray,
    images: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> PairedDifference:
    """Compare two arms on the same seeds and examples.

    Args:
        arm: [S, N] scores; row s is seed s, column n is example n.
        baseline: [S, N], the same seeds and examples in the same order.
        images: [N] image id of each example; examples that share one are resampled together.
        resamples: number of bootstrap and permutation draws.
        confidence: level of the intervals.

    Seeds and images are crossed: every seed is scored on the same images. With A the variance of the mean when seeds
    are resampled, B when images are, and E the part of both that is neither (interaction), its variance is
    V = A + B - E (Cameron, Gelbach and Miller 2011, multiway clustering; the same identity as in the two-way analysis
    of variance), each term with its small-sample correction. The interval is mean +- t * sqrt(V); its degrees of
    freedom lie between S - 1 and those of Satterthwaite (1946). With two seeds t is `two_seed_critical`, made for 95 %,
    and p keeps S - 1 degrees of freedom. p is the larger of this statistic's and that of new images alone. The
    percentile interval of the hierarchical bootstrap is given beside it; with few seeds it is too narrow, because S
    values cannot show the spread they came from.
    """
    if arm.shape != baseline.shape or arm.ndim != 2 or arm.shape[1] != len(images) or not arm.size:
        raise ValueError("arm and baseline must be [seeds, examples] over the same examples, with an image for each")
    table, sizes = cluster_sums(arm - baseline, images)
    n_seeds, n_images = table.shape
    mean = float(table.sum() / (n_seeds * sizes.sum()))
    p_images = _flip_images(table.sum(axis=0), resamples) if n_images > 1 else None
    if n_seeds == 1:
        return PairedDifference(mean, None, None, None, p_images, None, None, None, 1, arm.shape[1], n_images)

    parts = variance_parts(table, sizes)
    half, p = _two_sided(mean, *parts.total(), confidence)
    if n_seeds == 2 and confidence == CONFIDENCE:
        half = two_seed_critical(parts) * float(np.sqrt(parts.total()[0]))
    # Few seeds can agree by luck. New images alone already leave this much open: half of it keeps the interval from
    # vanishing and its measured coverage between 93 and 97 %, and the test has to pass for the whole of it.
    half_images, p_of_images = _two_sided(mean, *image_variance(table, sizes), confidence)
    half, p = max(half, half_images / 2), max(p, p_of_images)
    draws = hierarchical_bootstrap(table, sizes, resamples)
    tail = (1 - confidence) / 2 * 100
    bootstrap_low, bootstrap_high = (float(value) for value in np.percentile(draws, [tail, 100 - tail]))
    return PairedDifference(
        mean=mean,
        low=mean - half,
        high=mean + half,
        p=p,
        p_images=p_images,
        p_seeds=_flip_seeds(table.sum(axis=1)),
        bootstrap_low=bootstrap_low,
        bootstrap_high=bootstrap_high,
        n_seeds=n_seeds,
        n_examples=arm.shape[1],
        n_images=n_images,
        parts=parts,
    )


def image_difference(
    first: FloatArray,
    second: FloatArray,
    images: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> PairedDifference:
    """Compare two students (not two arms) on the same examples: `first` minus `second`, both [N].

    The interval and `p` are for new images and these very students, `p_images` is the permutation test with sign flips
    over images; of other seeds nothing is known. With one question per image this is the paired t-test. `images` as in
    `paired_difference`. With one image there is neither interval nor `p`.
    """
    if first.shape != second.shape or first.ndim != 1 or len(first) != len(images) or not first.size:
        raise ValueError("both must be [examples] over the same examples, with an image for each")
    table, sizes = cluster_sums((first - second)[None], images)
    mean = float(table.sum() / sizes.sum())
    low = high = p = p_images = None
    if len(sizes) > 1:
        half, p = _two_sided(mean, *image_variance(table, sizes), confidence)
        low, high = mean - half, mean + half
        p_images = _flip_images(table[0], resamples)
    return PairedDifference(mean, low, high, p, p_images, None, None, None, 1, len(first), len(sizes))


def _two_sided(mean: float, variance: float, freedom: float, confidence: float) -> tuple[float, float]:
    """Half the width of Student's interval and the two-sided p of a mean; 0 and 1 or 0 where nothing varies."""
    from scipy import stats

    if variance == 0:
        return 0.0, 1.0 if mean == 0 else 0.0
    error = float(np.sqrt(variance))
    return float(stats.t.ppf((1 + confidence) / 2, freedom)) * error, float(2 * stats.t.sf(abs(mean) / error, freedom))


def cluster_sums(values: FloatArray, images: Sequence[str]) -> tuple[FloatArray, FloatArray]:
    """Sum [S, N] values within images: sums [S, C] and the number of examples [C] of each image."""
    _, index, sizes = np.unique(np.asarray(images), return_inverse=True, return_counts=True)
    rows = [np.bincount(index, weights=row, minlength=len(sizes)) for row in values]
    table = np.stack(rows).astype(np.float64)
    return table, sizes.astype(np.float64)


@dataclass(frozen=True)
class VarianceParts:
    """The variance of a mean over seeds and images by its sources, in squared units of the scores.

    `seeds`: when the `n_seeds` seeds are resampled; `images`: when the `n_images` images are; `both`: the interaction
    that the two contain.
    """

    seeds: float
    images: float
    both: float
    n_seeds: int
    n_images: int

    def with_seeds(self, n_seeds: int) -> VarianceParts:
        """What another number of seeds would leave of each part: all but the images' own goes as 1 / n_seeds."""
        share = self.n_seeds / n_seeds
        own = max(self.images - self.both, 0.0)
        return VarianceParts(
            self.seeds * share, own + (self.images - own) * share, self.both * share, n_seeds, self.n_images
        )

    def total(self) -> tuple[float, float]:
        """The variance of the mean, and its degrees of freedom (see `paired_difference`)."""
        least = self.n_seeds - 1.0
        if self.n_images == 1:
            return self.seeds, least
        variance = self.seeds + max(self.images - self.both, 0.0)
        if variance == 0 or self.n_seeds == 2:
            return variance, least
        cells = (self.n_seeds - 1) * (self.n_images - 1)
        spread = self.seeds**2 / (self.n_seeds - 1) + self.images**2 / (self.n_images - 1) + self.both**2 / cells
        # Satterthwaite's value alone covers 92.5 % with three seeds, its lower bound up to 99 %: their geometric mean
        # keeps the measured coverage between 93 and 97 %.
        return variance, float(np.sqrt(least * max(variance**2 / spread, least)))


def two_seed_critical(parts: VarianceParts) -> float:
    """How many standard errors the 95 % interval of a difference reaches to each side with two seeds.

    With u the share of the variance that the seeds have, it goes from the t of the images (u = 0, where images are all
    that varies) to 12.7, the t of one degree of freedom (u = 1), by the weight 257 u**4 / (256 u**4 + 1). No mixture
    of degrees of freedom does it: one difference of two seeds is often small where their spread is large. The weight
    was chosen by numerical integration over the true share, where its coverage lies between 94.1 and 96.3 % everywhere.
    That is for 95 % only; at other levels the weight would be another.
    """
    from scipy import stats

    seeds, images = parts.seeds, max(parts.images - parts.both, 0.0)
    of_seeds, of_images = stats.t.ppf((1 + CONFIDENCE) / 2, [1.0, max(parts.n_images - 1.0, 1.0)])
    share = seeds / (seeds + images) if seeds + images > 0 else 1.0
    weight = 257 * share**4 / (256 * share**4 + 1)
    return float(of_images + (of_seeds - of_images) * weight)


def variance_parts(table: FloatArray, sizes: FloatArray) -> VarianceParts:
    """Where the variance of the overall mean comes from; `table` [S, C] sums with S > 1, `sizes` [C] (see above)."""
    n_seeds, n_images = table.shape
    total = n_seeds * sizes.sum()
    residual = (table - table.sum() / total * sizes) / total
    seeds = float((residual.sum(axis=1) ** 2).sum()) * n_seeds / (n_seeds - 1)
    if n_images == 1:
        return VarianceParts(seeds, 0.0, 0.0, n_seeds, 1)
    images, _ = image_variance(table, sizes)
    inner = residual - residual.mean(axis=0) - residual.mean(axis=1, keepdims=True) + residual.mean()
    cells = (n_seeds - 1) * (n_images - 1)
    both = float((inner**2).sum()) * n_seeds * n_images / cells
    return VarianceParts(seeds, images, both, n_seeds, n_images)


def image_variance(table: FloatArray, sizes: FloatArray) -> tuple[float, float]:
    """Variance of the overall mean for new images and these very seeds, and its degrees of freedom."""
    n_seeds, n_images = table.shape
    if n_images == 1:
        return 0.0, 1.0
    total = n_seeds * sizes.sum()
    residual = (table - table.sum() / total * sizes) / total
    return float((residual.sum(axis=0) ** 2).sum()) * n_images / (n_images - 1), n_images - 1.0


def hierarchical_bootstrap(table: FloatArray, sizes: FloatArray, resamples: int = RESAMPLES) -> FloatArray:
    """Means [resamples] of a crossed bootstrap: seeds and images are each drawn with replacement, jointly.

    `table` [S, C] holds sums within images, `sizes` [C] their numbers of examples. An image is drawn for all seeds at
    once, because all seeds were scored on it (Owen 2007, the pigeonhole bootstrap). The draws are a pure function of
    the shape of the table, so equal data give equal intervals.
    """
    n_seeds, n_images = table.shape
    of_seeds, of_images = _draws(n_seeds, n_images, resamples)
    sums = np.einsum("bs,bs->b", of_seeds, of_images @ table.T)
    means: FloatArray = sums / (n_seeds * (of_images @ sizes))
    return means


@lru_cache(maxsize=2)
def _draws(n_seeds: int, n_images: int, resamples: int) -> tuple[FloatArray, Any]:
    random = np.random.default_rng(derive_seed("hierarchical bootstrap", n_seeds, n_images, resamples))
    of_seeds = random.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), size=resamples)
    picks = random.integers(0, n_images, size=(resamples, n_images))
    of_images = np.zeros((resamples, n_images), dtype=np.float32)
    for row, pick in zip(of_images, picks, strict=True):
        row += np.bincount(pick, minlength=n_images)
    return of_seeds.astype(np.float64), of_images


def _flip_images(sums: FloatArray, resamples: int) -> float:
    """Two-sided p of the sign-flip permutation test over images; `sums` [C], the differences summed within images."""
    from scipy import stats

    sums = sums[sums != 0]  # a flip of zero changes nothing, and most images are of this kind
    if sums.size < 2:  # a single flip gives the same extreme value again
        return 1.0
    if np.ptp(np.abs(sums)) == 0:  # only signs matter: the exact test of signs, which for right and wrong is McNemar's
        return float(stats.binomtest(int((sums > 0).sum()), sums.size).pvalue)
    test = stats.permutation_test(
        (sums, np.zeros_like(sums)),
        _mean_gap,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, 2_000_000 // sums.size),
        rng=np.random.default_rng(derive_seed("image flips", sums.size, resamples)),
    )
    return float(test.pvalue)


def _flip_seeds(sums: FloatArray) -> float:
    """Two-sided p of sign flips over seeds; exact up to 10 seeds, 4096 draws beyond."""
    from scipy import stats

    test = stats.permutation_test(
        (sums, np.zeros_like(sums)),
        _mean_gap,
        permutation_type="samples",
        vectorized=True,
        n_resamples=4096,
        rng=np.random.default_rng(derive_seed("seed flips", sums.size)),
    )
    return float(test.pvalue)


def _mean_gap(first: FloatArray, second: FloatArray, axis: int = -1) -> Any:
    return np.mean(first, axis=axis) - np.mean(second, axis=axis)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values (Holm 1979), in the order given."""
    order = np.argsort(np.asarray(p_values, dtype=np.float64), kind="stable")
    adjusted = [0.0] * len(order)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * float(p_values[index])))
        adjusted[index] = running
    return adjusted
