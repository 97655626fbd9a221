"""Tokens in int8: a float16 scale per token, and a power of two per channel of a unit for channels that stick out.

A token t is kept as integers q in -127..127 with t[c] = q[c] * scale * channel[c]. Encoders have a few channels that
are tens of times larger than the others; with one scale per token these alone would decide the step, and the other
channels would be lost. A channel whose root mean square over the unit is more than four times the median channel's
is therefore divided by the nearest power of two of that ratio first. Everything follows from the unit's own values,
so that a unit that is done again gives the same bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float16 = npt.NDArray[np.float16]
Float32 = npt.NDArray[np.float32]

OUTLIER = 4.0
"""A channel this many times the median channel is divided before rounding."""
COSINE_FLOOR = 0.995
"""Below this, rounding changed a token more than is good for a target; extraction warns."""
_BLOCK = 4096
_BLOCK_VALUES = 1 << 17
_LARGEST = 65504.0  # of float16


@dataclass(frozen=True, slots=True)
class Quantised:
    """Rounded tokens.

    Attributes:
        values: [n, D] int8.
        scales: [n] float16, 0 for a token of zeros.
        channels: [D] float32, powers of two, 1 for most channels.
        cosines: number of tokens, mean and worst cosine between a token and what decoding gives.
    """

    values: npt.NDArray[np.int8]
    scales: Float16
    channels: Float32
    cosines: tuple[float, float, float]


def quantise(tokens: Float16) -> Quantised:
    """Round tokens [n, D]. For no tokens: channels of 1 and cosines of (0, 1, 1)."""
    n, dim = tokens.shape
    channels = _channel_scales(tokens)
    values, scales = np.zeros((n, dim), np.int8), np.zeros(n, np.float16)
    total, worst = 0.0, 1.0
    for start in range(0, n, _BLOCK):
        block = tokens[start : start + _BLOCK].astype(np.float32)
        even = block / channels
        scale = _rounded_up(np.abs(even).max(axis=1) / 127)
        step = np.where(scale > 0, scale, 1).astype(np.float32)
        values[start : start + _BLOCK] = np.clip(np.rint(even / step[:, None]), -127, 127).astype(np.int8)
        scales[start : start + _BLOCK] = scale
        kept = dequantise(values[start : start + _BLOCK], scale, channels).astype(np.float64)
        cosines = _cosines(block.astype(np.float64), kept)
        total, worst = total + float(cosines.sum()), min(worst, float(cosines.min()))
    return Quantised(values, scales, channels, (float(n), total / n if n else 1.0, worst))


def dequantise(values: npt.NDArray[np.int8], scales: Float16, channels: Float32) -> Float16:
    """Return values [n, ..., D] times scales [n, ...] times channels (any shape that broadcasts) as float16."""
    decoded = np.empty(values.shape, np.float16)
    every = np.broadcast_to(channels, values.shape)
    step = max(1, _BLOCK_VALUES // max(1, math.prod(values.shape[1:])))
    for start in range(0, len(values), step):  # in parts that stay in the processor's cache from step to step
        part = slice(start, start + step)
        block = values[part].astype(np.float32)
        block *= scales[part].astype(np.float32)[..., None]
        block *= every[part]
        decoded[part] = np.clip(block, -_LARGEST, _LARGEST, out=block)
    return decoded


def _channel_scales(tokens: Float16) -> Float32:
    n, dim = tokens.shape
    if n == 0:
        return np.ones(dim, np.float32)
    squares = np.zeros(dim)
    for start in range(0, n, _BLOCK):
        squares += np.square(tokens[start : start + _BLOCK].astype(np.float64)).sum(axis=0)
    spread = np.sqrt(squares / n)
    usual = float(np.median(spread))
    ratio = spread / usual if usual > 0 else np.ones(dim)
    powers = np.exp2(np.rint(np.log2(np.where(ratio > OUTLIER, ratio, 1.0))))
    return powers.astype(np.float32)


def _rounded_up(scale: Float32) -> Float16:
    half = scale.astype(np.float16)
    return np.where(half.astype(np.float32) < scale, np.nextafter(half, np.float16(np.inf)), half)


def _cosines(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    both_zero = ~one.any(axis=1) & ~other.any(axis=1)
    cosines: npt.NDArray[np.float64] = np.where(both_zero, 1.0, (one * other).sum(axis=1) / np.maximum(norms, 1e-300))
    return np.minimum(cosines, 1.0)
