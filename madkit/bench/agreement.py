"""Whether two sides of a benchmark did the same work: their tokens, compared one by one."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from madkit.core.errors import RunError

Values = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far tokens are from a reference.

    Attributes:
        error: ||tokens - reference|| / ||reference|| of a token, mean over all tokens.
        worst_cosine: the lowest cosine of a token and its reference.
        unexplained: squared distance to the reference as a share of the reference's own variance. Random and trained
            encoders alike give tokens that have much in common, so that the cosine of two *different* tokens is high;
            this share is about 2 for tokens in the wrong order, whatever they have in common.
        finite: whether all values are finite numbers.
    """

    error: float
    worst_cosine: float
    unexplained: float
    finite: bool

    def as_row(self) -> dict[str, Any]:
        """Return plain values for JSON; None for what is not a number."""
        row = asdict(self)
        for name in ("error", "worst_cosine", "unexplained"):
            row[name] = float(f"{row[name]:.6g}") if np.isfinite(row[name]) else None
        return row


def compare(tokens: Values, reference: Values) -> Agreement:
    """Compare tokens [..., D] with a reference of the same shape.

    Raises:
        RunError: the shapes differ.
    """
    if tokens.shape != reference.shape:
        raise RunError(f"One side gives tokens of the shape {tokens.shape}, another {reference.shape}.")
    a = np.asarray(tokens, dtype=np.float64).reshape(-1, tokens.shape[-1])
    b = np.asarray(reference, dtype=np.float64).reshape(-1, tokens.shape[-1])
    if not np.isfinite(a).all():
        return Agreement(np.inf, np.nan, np.inf, finite=False)
    length_a, length_b = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    distance = np.linalg.norm(a - b, axis=1)
    tiny = np.finfo(np.float64).tiny
    cosine = (a * b).sum(1) / np.maximum(length_a * length_b, tiny)
    variance = ((b - b.mean(0)) ** 2).sum()
    return Agreement(
        error=float((distance / np.maximum(length_b, tiny)).mean()),
        worst_cosine=float(cosine.min()),
        unexplained=float((distance**2).sum() / max(variance, tiny)),
        finite=True,
    )


def must_agree(side: str, other: str, part: str, found: Agreement, most: float) -> None:
    """Refuse a side whose tokens are others.

    Args:
        side: its name.
        other: name of the side that it was compared with.
        part: what it read, in the plural.
        found: the comparison.
        most: the highest share of variance that may stay unexplained.

    Raises:
        RunError: the share is higher, or the values are not finite: the sides did different work, and a ratio of their
            speeds would say nothing.
    """
    if not found.finite:
        raise RunError(f"{side} gives values of {part} that are not finite numbers.")
    if not found.unexplained <= most:
        raise RunError(
            f"{side} gives other tokens of the same {part} than {other} ({found.unexplained:.1%} of their variance is "
            f"different, {most:.1%} allowed): a ratio of their speeds would say nothing.",
        )
