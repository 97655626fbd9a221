"""Soft scores over thousands of answers, of which each question has a handful: kept as such, dense by the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


class SoftTargets:
    """Scores [n, K] of n questions over K answers. VQA v2 in full would take 5 GB as one array, and takes 20 MB here.

    Args:
        scores: position -> score in 0..1 of every question; what is not there is 0.
        answers: K.
    """

    def __init__(self, scores: Sequence[Mapping[int, float]], answers: int) -> None:
        counts = [len(one) for one in scores]
        self.answers = answers
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self._positions = np.fromiter((p for one in scores for p in one), dtype=np.int64, count=int(self._starts[-1]))
        self._values = np.fromiter(
            (value for one in scores for value in one.values()), dtype=np.float32, count=int(self._starts[-1])
        )

    @classmethod
    def of_rows(cls, positions: Tensor, values: Tensor, answers: int) -> SoftTargets:
        """The scores `values` [n, M] of the answers at `positions` [n, M], the same number for every question."""
        n, most = positions.shape
        made = cls([], answers)
        made._starts = np.arange(n + 1, dtype=np.int64) * most
        made._positions = positions.to(torch.int32).flatten().numpy()
        made._values = values.float().flatten().numpy()
        return made

    def __len__(self) -> int:
        return len(self._starts) - 1

    @property
    def shape(self) -> tuple[int, int]:
        """(n, K)."""
        return len(self), self.answers

    @property
    def answered(self) -> Tensor:
        """[n] bool: which questions have an answer with a score above 0."""
        counts = np.diff(self._starts)
        question = np.repeat(np.arange(len(self)), counts)
        return torch.from_numpy(np.bincount(question[self._values > 0], minlength=len(self)) > 0)

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """[B, K] float32 of some questions, by their numbers [B]."""
        chosen = rows.cpu().numpy()
        starts = self._starts[chosen]
        counts = self._starts[chosen + 1] - starts
        total = int(counts.sum())
        # places of all their scores, question after question
        places = np.repeat(starts - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts) + np.arange(total)
        dense = torch.zeros(len(chosen), self.answers)
        where = torch.from_numpy(np.repeat(np.arange(len(chosen)), counts))
        dense[where, torch.from_numpy(self._positions[places].astype(np.int64))] = torch.from_numpy(
            self._values[places]
        )
        return dense

    def dense(self) -> Tensor:
        """[n, K], for whoever needs everything at once."""
        return self[torch.arange(len(self))]
