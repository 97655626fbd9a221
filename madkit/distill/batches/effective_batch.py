"""What a step really holds, in samples and in tokens, whatever way the batch was asked for."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from madkit.distill.batches.order import Indices, Order

_STEPS = 32


@dataclass(frozen=True, slots=True)
class EffectiveBatch:
    """Means over the first steps of a run.

    Attributes:
        samples: examples of a step.
        sequences: sequences that pass through the student.
        tokens: their tokens and regions, padding left out.
        padding: share of padding among all positions of a step, in forward passes of at most `micro_tokens`, whose
            texts and regions are padded apart.
    """

    samples: float
    sequences: float
    tokens: float
    padding: float

    def as_row(self) -> dict[str, Any]:
        """Return plain values for a manifest."""
        return {name: round(value, 4) for name, value in asdict(self).items()}

    def __str__(self) -> str:
        return (
            f"{self.samples:,.0f} examples, {self.sequences:,.0f} sequences, {self.tokens:,.0f} tokens and regions "
            f"({100 * self.padding:.1f} % padding)"
        )


def effective_batch(order: Order, texts: Indices, regions: Indices, micro_tokens: int) -> EffectiveBatch:
    """Measure the first steps of an order.

    Args:
        order: the run's global batches.
        texts: [n, C] tokens of each of an example's C sequences.
        regions: [n] regions of its image, which every sequence sees.
        micro_tokens: padded tokens of a forward pass.
    """
    from madkit.distill.batches.order import micro_batches

    n_candidates = texts.shape[1]
    longest = texts.max(1)
    lengths, sequences = longest + regions, np.full(len(texts), n_candidates, dtype=np.int64)
    samples, rows, real, padded, consumed = 0, 0, 0, 0, 0
    for _ in range(_STEPS):
        batch = order.at(consumed)
        consumed += len(batch)
        samples += len(batch)
        rows += int(sequences[batch].sum())
        real += int(texts[batch].sum()) + n_candidates * int(regions[batch].sum())
        for piece in micro_batches(batch, lengths, sequences, micro_tokens):
            padded += int(longest[piece].max() + regions[piece].max()) * n_candidates * len(piece)
    return EffectiveBatch(samples / _STEPS, rows / _STEPS, real / _STEPS, 1 - real / max(1, padded))
