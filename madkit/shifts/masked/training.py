"""Training a scorer, and how often its highest score is the right choice."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from madkit.core.console import progress
from madkit.core.interrupts import StopSignals
from madkit.core.seeds import derive_seed, permutation
from madkit.shifts.masked.scorer import DeviceSequences, Scorer, ScorerConfig
from madkit.shifts.masked.sequences import N_CHOICES, Sequences

_TOKENS_CPU, _TOKENS_GPU = 1 << 14, 1 << 19  # padded tokens of one forward pass without gradients


@dataclass(frozen=True, slots=True)
class Trained:
    """A scorer with the weights of its best epoch, the accuracy of every epoch and of the best one (0 to 1)."""

    scorer: Scorer
    accuracies: list[float]
    accuracy: float
    epoch: int


def train_scorer(
    config: ScorerConfig,
    train: Sequences,
    dev: Sequences,
    words: int,
    *,
    seed: int,
    device: torch.device,
    title: str,
    stop: StopSignals | None = None,
) -> Trained:
    """Train on `train` with sigmoid cross-entropy on every choice's own score; the epoch best on `dev` is kept.

    The same seed gives the same weights on the same machine. `stop` is asked after every batch; its error is raised.
    """
    devices = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive_seed("masked-scorer", title, seed))
        scorer = Scorer(config, words).to(device)
        held, held_dev = DeviceSequences(train, device), DeviceSequences(dev, device)
        labels = torch.from_numpy(train.labels).to(device)
        steps = config.epochs * math.ceil(len(train.labels) / config.batch)
        optimiser = torch.optim.AdamW(scorer.parameters(), lr=config.rate, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, steps))
        accuracies: list[float] = []
        best: dict[str, Tensor] = {}
        with progress(f"Training the scorer of {title}s", steps, "steps") as bar:
            for epoch in range(config.epochs):
                scorer.train()
                for questions in _batches(train, config.batch, seed, epoch):
                    which = torch.from_numpy(questions).to(device)
                    loss = _loss(scorer, held, which, labels, config.masking)
                    optimiser.zero_grad(set_to_none=True)
                    loss.backward()
                    torch.nn.utils.clip_grad_norm_(scorer.parameters(), 1.0)
                    optimiser.step()
                    schedule.step()
                    bar.advance()
                    if stop is not None and stop.requested:
                        raise stop.error()
                accuracies.append(accuracy(scorer, held_dev, dev))
                bar.update(f"accuracy {100 * accuracies[-1]:.1f}")
                if accuracies[-1] > max(accuracies[:-1], default=-1.0):
                    best = {name: value.detach().clone() for name, value in scorer.state_dict().items()}
    scorer.load_state_dict(best)
    top = max(accuracies)
    return Trained(scorer.eval(), accuracies, top, accuracies.index(top) + 1)


def _rate(step: int, steps: int) -> float:
    """Share of the full rate: up over the first twentieth, then down to nothing."""
    warm = max(1, steps // 20)
    return min((step + 1) / warm, max(0.0, (steps - step) / max(1, steps - warm)))


def _batches(train: Sequences, size: int, seed: int, epoch: int) -> Iterator[NDArray[np.int64]]:
    """Question numbers in batches of about equal length, in an order that depends on seed and epoch alone."""
    order = permutation(len(train.labels), "masked-order", seed, epoch)
    longest = train.lengths.reshape(-1, N_CHOICES).max(axis=1)
    batches = []
    for start in range(0, len(order), size * 32):
        block = order[start : start + size * 32]
        block = block[np.argsort(longest[block], kind="stable")]
        batches += [block[i : i + size] for i in range(0, len(block), size)]
    for number in permutation(len(batches), "masked-batches", seed, epoch):
        yield batches[number]


def _loss(scorer: Scorer, held: DeviceSequences, questions: Tensor, labels: Tensor, masking: float) -> Tensor:
    choices = torch.arange(N_CHOICES, device=held.device)
    batch = held.batch((questions[:, None] * N_CHOICES + choices).flatten())
    masked = (torch.rand(batch.ids.shape, device=held.device) < masking) & (batch.segments == 1)
    targets = (choices == labels[questions][:, None]).float()
    return F.binary_cross_entropy_with_logits(scorer(batch.masked(masked)), targets.flatten())


@torch.inference_mode()
def accuracy(scorer: Scorer, held: DeviceSequences, sequences: Sequences) -> float:
    """Share of the questions whose right choice has the highest score; the first of equal ones counts."""
    scorer.eval()
    scores = np.empty(len(sequences.starts) - 1, dtype=np.float32)
    lengths = sequences.lengths
    budget = _TOKENS_CPU if held.device.type == "cpu" else _TOKENS_GPU
    for group in by_length(lengths, lengths, budget):
        scores[group] = scorer(held.batch(torch.from_numpy(group).to(held.device))).float().cpu().numpy()
    return float((scores.reshape(-1, N_CHOICES).argmax(axis=1) == sequences.labels).mean())


def by_length(lengths: NDArray[np.int64], costs: NDArray[np.int64], budget: int) -> Iterator[NDArray[np.int64]]:
    """Sequence numbers in groups of like length, whose costs add up to about `budget` and at least to one sequence."""
    order = np.argsort(lengths, kind="stable").astype(np.int64)
    ends = np.cumsum(costs[order])
    start = 0
    while start < len(order):
        base = ends[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(ends, base + budget, side="right")))
        yield order[start:end]
        start = end


def is_chance(share: float, questions: int, looks: int = 1) -> bool:
    """Whether guessing would reach such an accuracy, as the best of `looks`, in one of a hundred cases or more."""
    chance = 1 / N_CHOICES
    deviations = NormalDist().inv_cdf(1 - 0.01 / looks)
    return share <= chance + deviations * math.sqrt(chance * (1 - chance) / max(questions, 1))
