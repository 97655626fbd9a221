"""Classifiers that see only half of an example: what they can score is what the benchmark gives away."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from zlib import crc32

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BUCKETS = 2**15


def hashed(features: Sequence[str]) -> list[int]:
    """Bucket numbers of string features."""
    return [crc32(feature.encode()) % BUCKETS for feature in features]


def ngrams(words: Sequence[str]) -> list[str]:
    """Words and neighbouring pairs."""
    return [*words, *(f"{a} {b}" for a, b in pairwise(words))]


class Bags:
    """Bags of hashed features, ready for an EmbeddingBag."""

    def __init__(self, bags: Sequence[Sequence[str]]) -> None:
        numbers = [hashed(bag) for bag in bags]
        self.flat = torch.tensor([i for bag in numbers for i in bag])
        sizes = torch.tensor([len(bag) for bag in numbers])
        self.starts = torch.cat([torch.zeros(1, dtype=torch.long), sizes.cumsum(0)])

    def __len__(self) -> int:
        return len(self.starts) - 1

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """(flat features, offsets) of some rows."""
        parts = [self.flat[self.starts[i] : self.starts[i + 1]] for i in index.tolist()]
        sizes = torch.tensor([0, *(len(p) for p in parts[:-1])])
        return torch.cat(parts), sizes.cumsum(0)


def linear_accuracy(
    train: Sequence[Sequence[str]],
    truth: Tensor,
    test: Sequence[Sequence[str]],
    test_truth: Tensor,
    *,
    choices: int = 0,
) -> float:
    """Test accuracy in points of a linear classifier on hashed bags.

    With `choices` every example is that many consecutive bags, each gets one score, and the truth is the index of the
    right one; else the classifier gives one score a class.
    """
    torch.manual_seed(0)
    classes = 1 if choices else int(max(truth.max(), test_truth.max())) + 1
    weights = nn.EmbeddingBag(BUCKETS, classes, mode="sum")
    nn.init.zeros_(weights.weight)
    optimizer = torch.optim.Adam(weights.parameters(), lr=0.02)
    bags, width = Bags(train), max(choices, 1)

    def scores(source: Bags, examples: Tensor) -> Tensor:
        index = (examples[:, None] * width + torch.arange(width)).flatten()
        result: Tensor = weights(*source.rows(index))
        return result.view(len(examples), -1)

    for _ in range(3):
        for part in torch.randperm(len(truth)).split(256):
            loss = F.cross_entropy(scores(bags, part), truth[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        guesses = scores(Bags(test), torch.arange(len(test_truth))).argmax(1)
    return 100 * float(guesses.eq(test_truth).float().mean())


def majority_accuracy(
    forms: Sequence[str], truth: Sequence[str], test_forms: Sequence[str], test_truth: Sequence[str]
) -> float:
    """Test accuracy in points of the most frequent truth of each form."""
    counts: dict[str, dict[str, int]] = {}
    for form, value in zip(forms, truth, strict=True):
        counts.setdefault(form, {}).setdefault(value, 0)
        counts[form][value] += 1
    best = {form: max(table, key=lambda value: table[value]) for form, table in counts.items()}
    return 100 * sum(best.get(f) == v for f, v in zip(test_forms, test_truth, strict=True)) / len(test_truth)
