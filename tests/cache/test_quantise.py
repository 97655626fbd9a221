"""Rounding to int8 keeps what a token points at, outlier channels or not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from madkit.cache.quantise import COSINE_FLOOR, dequantise, quantise


@given(st.integers(0, 40), st.integers(1, 64), st.floats(1e-3, 500), st.integers(0, 9))
def test_every_value_is_within_half_a_step(n: int, dim: int, size: float, seed: int) -> None:
    tokens = (np.random.default_rng(seed).standard_normal((n, dim)) * size).astype(np.float16)
    kept = quantise(tokens)
    back = dequantise(kept.values, kept.scales, kept.channels)
    step = kept.scales.astype(np.float64)[:, None] * kept.channels
    error = np.abs(back.astype(np.float64) - tokens.astype(np.float64))
    assert (error <= 0.5 * step + 2e-3 * np.abs(tokens.astype(np.float64)) + 1e-7).all()
    assert kept.cosines[0] == n
    assert 0.9 < kept.cosines[2] <= kept.cosines[1] + 1e-12 <= 1 + 1e-12


def test_outlier_channels_do_not_drown_the_others() -> None:
    """Real encoders have channels tens of times larger than the rest: the others must stay distinguishable."""
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((500, 768)) * 0.4
    tokens[:, [7, 133]] += [90.0, -45.0]
    tokens = tokens.astype(np.float16)
    kept = quantise(tokens)
    assert set(np.flatnonzero(kept.channels > 1)) == {7, 133}
    assert set(np.log2(kept.channels) % 1) == {0.0}
    assert kept.cosines[2] > 0.9999
    back = dequantise(kept.values, kept.scales, kept.channels)
    rest = np.delete(np.arange(768), [7, 133])
    a, b = back[:, rest].astype(np.float64), tokens[:, rest].astype(np.float64)
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosines.min() > COSINE_FLOOR
    plain = np.rint(tokens.astype(np.float32) / (np.abs(tokens).max(1, keepdims=True) / 127))[:, rest]
    cosines = (plain * b).sum(1) / np.maximum(np.linalg.norm(plain, axis=1), 1e-9) / np.linalg.norm(b, axis=1)
    assert cosines.max() < COSINE_FLOOR  # what one scale per token alone would have kept of them


def test_zeros_and_extremes() -> None:
    tokens = np.zeros((3, 4), np.float16)
    tokens[1] = [65504, -65504, 1, 0]
    tokens[2] = 6e-8
    kept = quantise(tokens)
    back = dequantise(kept.values, kept.scales, kept.channels)
    assert np.isfinite(back).all()
    assert not back[0].any()
    assert back[1, 0] == pytest.approx(65504, rel=0.01)
