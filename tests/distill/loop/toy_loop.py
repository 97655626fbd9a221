"""A loop that trains in milliseconds: a toy network, forty samples, and ways to kill it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from madkit.distill.batches.order import PlainOrder
from madkit.distill.loop.loop import LoopSettings, StepLoss, make_accelerator, run_loop
from madkit.distill.loop.optimizer import OptimizerSettings

N = 40
LENGTHS = np.random.default_rng(3).integers(4, 12, N)
SEQUENCES = np.ones(N, dtype=np.int64)
SETTINGS = LoopSettings(
    steps=24,
    learning_rate=0.05,
    warmup=0.1,
    optimizer=OptimizerSettings(weight_decay=0.01, betas=(0.9, 0.98)),
    clip=1.0,
    micro_tokens=10_000,
    seed=5,
    checkpoint_every=4,
    checkpoint_keep=2,
)
GENERATOR = torch.Generator().manual_seed(1)
X = torch.randn(N, 6, generator=GENERATOR)
Y = torch.randint(0, 3, (N,), generator=GENERATOR)
IDS = [f"sample-{i}" for i in range(N)]


@dataclass
class Batch:
    x: torch.Tensor
    y: torch.Tensor
    step: int

    def to(self, device):
        return self


class Toy(nn.Module):
    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 3))

    def forward(self, batch: Batch) -> StepLoss:
        loss = nn.functional.cross_entropy(self.net(batch.x), batch.y)
        return StepLoss(loss, {"task": loss, "step": torch.tensor(float(batch.step))})


def make_batch(indices, step) -> Batch:
    rows = torch.from_numpy(np.asarray(indices))
    return Batch(X[rows], Y[rows], step)


class Killed(Exception):
    pass


def dying_after(batches: int) -> Callable[..., Batch]:
    """A `make_batch` that dies when it is asked once more."""
    calls = 0

    def dying(indices, step):
        nonlocal calls
        calls += 1
        if calls > batches:
            raise Killed
        return make_batch(indices, step)

    return dying


def dying_in(step: int) -> Callable[..., Batch]:
    """A `make_batch` that dies when it is asked for one of step `step`, counted from 0."""

    def dying(indices, asked):
        if asked == step:
            raise Killed
        return make_batch(indices, asked)

    return dying


def train(folder: Path, *, module=None, settings=SETTINGS, batch=make_batch, order=None, accelerator=None, **more):
    torch.set_num_threads(1)
    module = module or Toy()
    order = order or PlainOrder(N, 8, "toy", settings.seed)
    accelerator = accelerator or make_accelerator("fp32")
    result = run_loop(folder, module, order, batch, IDS, LENGTHS, SEQUENCES, settings, accelerator, **more)
    return module, result


def lines(folder: Path) -> list[str]:
    return (folder / "metrics.jsonl").read_text().splitlines()
