"""Classifiers that see only half of an example: what they can score is what the benchmark gives away."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, pairwise
from zlib import crc32

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.sparse import csr_matrix
from torch import Tensor

BUCKETS = 2**15


def hashed(features: Sequence[str]) -> list[int]:
    """Bucket numbers of string features."""
    return [crc32(feature.encode()) % BUCKETS for feature in features]


def ngrams(words: Sequence[str]) -> list[str]:
    """Words and neighbouring pairs."""
    return [*words, *(f"{a} {b}" for a, b in pairwise(words))]


class Bags:
    """Counts of hashed features, one row a bag, in the columns of the buckets that training bags use.

    A bucket that no training bag has would keep its first weight, zero, for ever: it has no column.
    """

    def __init__(self, bags: Sequence[Sequence[str]], buckets: npt.NDArray[np.int64] | None = None) -> None:
        numbers = [hashed(bag) for bag in bags]
        flat = np.fromiter(chain.from_iterable(numbers), dtype=np.int64)
        owners = np.repeat(np.arange(len(bags)), [len(bag) for bag in numbers])
        self.buckets = np.unique(flat) if buckets is None else buckets
        columns = np.searchsorted(self.buckets, flat).clip(max=len(self.buckets) - 1)
        known = self.buckets[columns] == flat
        shape = (len(bags), len(self.buckets))
        ones = np.ones(int(known.sum()), dtype=np.float32)
        self.counts = csr_matrix((ones, (owners[known], columns[known])), shape=shape)


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
    bags, width = Bags(train), max(choices, 1)
    weights = torch.zeros(len(bags.buckets), classes)
    optimizer = torch.optim.Adam([weights], lr=0.02)

    def scores(counts: csr_matrix, examples: int) -> Tensor:
        return torch.from_numpy(counts @ weights.numpy()).view(examples, -1)

    for _ in range(3):
        for part in torch.randperm(len(truth)).split(256):
            rows = (part[:, None] * width + torch.arange(width)).flatten().numpy()
            counts = bags.counts[rows]
            # the gradient of the mean cross-entropy: by autograd it would be a table of every feature
            slope = scores(counts, len(part)).softmax(1) - F.one_hot(truth[part], max(classes, width))
            weights.grad = torch.from_numpy(counts.T @ (slope / len(part)).view(len(rows), classes).numpy())
            optimizer.step()
    guesses = scores(Bags(test, bags.buckets).counts, len(test_truth)).argmax(1)
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
