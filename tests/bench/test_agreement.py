"""Sides that did other work are told from sides that rounded."""

from __future__ import annotations

import numpy as np
import pytest

from madkit.bench.agreement import compare, must_agree
from madkit.core.errors import RunError


def tokens() -> np.ndarray:
    """Tokens [8, 5, 16] that have much in common, as those of an encoder do: any two have a cosine above 0.9."""
    return np.random.default_rng(0).normal(3.0, 0.5, (8, 5, 16))


def test_the_figures_are_what_they_say() -> None:
    reference = np.array([[3.0, 4.0], [0.0, 2.0]])
    found = compare(np.array([[3.0, 4.5], [0.0, 2.0]]), reference)
    assert found.error == pytest.approx((0.5 / 5 + 0) / 2)
    assert found.worst_cosine == pytest.approx((9 + 18) / (5 * np.sqrt(9 + 20.25)))
    assert found.unexplained == pytest.approx(0.25 / (2 * 1.5**2 + 2 * 1.0**2))
    assert found.finite
    with pytest.raises(RunError, match="shape"):
        compare(reference[:1], reference)


def test_rounding_passes_and_other_tokens_do_not() -> None:
    reference = tokens()
    rounded = reference.astype(np.float16).astype(np.float64)
    must_agree("it", "the other", "images", compare(rounded, reference), 0.01)
    shifted = compare(reference[:, ::-1], reference)
    assert shifted.worst_cosine > 0.8  # a cosine would have let this pass
    with pytest.raises(RunError, match=r"it gives other tokens of the same images than the other \(1\d\d\.\d%"):
        must_agree("it", "the other", "images", shifted, 0.01)


def test_what_is_not_finite_is_refused_and_written_as_none() -> None:
    broken = tokens()
    broken[3, 1, 2] = np.inf
    found = compare(broken, tokens())
    assert found.as_row() == {"error": None, "worst_cosine": None, "unexplained": None, "finite": False}
    with pytest.raises(RunError, match="not finite"):
        must_agree("it", "the other", "images", found, 0.01)
