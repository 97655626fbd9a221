"""How well a teacher matches images and texts, on items that it does not learn from and on some that it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from madkit.adapt.config import ObjectiveConfig
from madkit.adapt.items import Item
from madkit.adapt.objective import contrast
from madkit.adapt.trained_pair import TrainedPair
from madkit.adapt.vectors import Vectors
from madkit.core.seeds import permutation


@dataclass(frozen=True, slots=True)
class Match:
    """A look at some items.

    Attributes:
        accuracy: how often a true text of an item comes before its false ones, 0..1 (VQA: the score of the first text
            as a share of the best); None where no item has both.
        retrieval: how often a true text, or the right image, is first among all of its batch, 0..1.
        loss: the objective.
        items: how many items were looked at.
        decided: how many of them choose among true and false texts of their own.
    """

    accuracy: float | None
    retrieval: float
    loss: float
    items: int
    decided: int

    @property
    def score(self) -> float:
        """What chooses the step: higher is better."""
        return self.retrieval if self.accuracy is None else self.accuracy

    def as_row(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def sample(items: Sequence[Item], limit: int, *name: object) -> list[Item]:
    """At most `limit` of some items, drawn by `name` alone, those that choose among their own texts first."""
    order = permutation(len(items), "adapt sample", *name).tolist()
    order.sort(key=lambda place: not items[place].decides)  # stable
    return [items[place] for place in order[:limit]]


@torch.no_grad()
def match(
    pair: TrainedPair, vectors: Vectors, items: Sequence[Item], batch_size: int, config: ObjectiveConfig
) -> Match:
    """Look at items, in batches as the training has them."""
    pair.eval()
    right = found = loss = 0.0
    decided = sought = 0
    batches = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    for batch in batches:
        images, words, pairing = vectors.of(batch)
        outcome = contrast(images, words, pair.scale, pairing, config)
        right, decided = right + float(outcome.right), decided + outcome.decided
        found, sought = found + float(outcome.found), sought + outcome.sought
        loss += float(outcome.loss) * len(batch)
    return Match(
        accuracy=right / decided if decided else None,
        retrieval=found / max(1, sought),
        loss=loss / max(1, len(items)),
        items=len(items),
        decided=decided,
    )
