"""The scorer: a small transformer that reads query and choice, without the picture, and says how right they sound."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from madkit.shifts.masked.sequences import MAX_LENGTH, N_ORDERS, Sequences
from madkit.shifts.masked.words import MASK, MASKED_TAG, PAD

_LARGE = 50_000  # questions from which on a larger network pays, and a GPU is expected
_SMALL = 64


@dataclass(frozen=True, slots=True)
class ScorerConfig:
    """Sizes of the network and of its training."""

    dim: int
    layers: int
    heads: int
    epochs: int
    batch: int  # questions
    rate: float
    dropout: float = 0.1
    masking: float = 0.1  # share of the choices' tokens that are masked while training, so that masks are known
    min_count: int = 2
    max_words: int = 30_000

    @classmethod
    def for_questions(cls, questions: int, epochs: int | None = None) -> ScorerConfig:
        """Sizes that fit the training split: minutes on a CPU for the embedded benchmark, on a GPU for VCR."""
        if questions >= _LARGE:
            return cls(dim=256, layers=4, heads=8, epochs=epochs or 4, batch=128, rate=3e-4)
        wanted = epochs or min(20, max(2, round(24_000 / max(questions, 1))))
        return cls(dim=_SMALL, layers=2, heads=4, epochs=wanted, batch=64 if questions > 2000 else 16, rate=1e-3)

    @property
    def for_gpu(self) -> bool:
        """Whether this is the larger network."""
        return self.dim > _SMALL

    def to_dict(self) -> dict[str, Any]:
        """The values by name."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded sequences: `ids`, `orders` and `segments` int64 [B, L], `real` bool [B, L]; segment 1 is the choice."""

    ids: Tensor
    orders: Tensor
    segments: Tensor
    real: Tensor

    def masked(self, where: Tensor) -> Batch:
        """The same with the tokens `where` (bool [B, L]) masked: words and tags each in their way."""
        mask = torch.where(self.orders > 0, MASKED_TAG, MASK)
        ids = torch.where(where, mask, self.ids)
        return Batch(ids, self.orders.masked_fill(where, 0), self.segments, self.real)


class DeviceSequences:
    """Sequences as tensors on a device, from which batches are gathered."""

    def __init__(self, sequences: Sequences, device: torch.device) -> None:
        self.ids = torch.from_numpy(sequences.ids).to(device)
        self.orders = torch.from_numpy(sequences.orders).to(device)
        self.starts = torch.from_numpy(sequences.starts).to(device)
        self.choice_starts = torch.from_numpy(sequences.choice_starts).to(device)
        self.device = device

    def batch(self, which: Tensor) -> Batch:
        """The sequences `which`, int64 [B] on the device, padded to the longest of them."""
        starts = self.starts[which]
        lengths = self.starts[which + 1] - starts
        positions = torch.arange(int(lengths.max()), device=self.device)
        real = positions < lengths[:, None]
        at = (starts[:, None] + positions).clamp_(max=len(self.ids) - 1)
        ids = torch.where(real, self.ids[at].long(), PAD)
        orders = torch.where(real, self.orders[at].long(), 0)
        segments = ((positions >= self.choice_starts[which][:, None]) & real).long()
        return Batch(ids, orders, segments, real)


class Scorer(nn.Module):
    """Transformer encoder over a sequence; the score is read from [CLS] and the mean of the choice."""

    def __init__(self, config: ScorerConfig, words: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words, config.dim, padding_idx=PAD)
        self.orders = nn.Embedding(N_ORDERS, config.dim)
        self.segments = nn.Embedding(2, config.dim)
        self.positions = nn.Embedding(MAX_LENGTH, config.dim)
        for table in (self.words, self.orders, self.segments, self.positions):
            nn.init.normal_(table.weight, std=0.02)
        nn.init.normal_(self.orders.weight, std=0.2)  # twelve rows that tell most: they should not drown at the start
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.dim)
        self.read = nn.Linear(2 * config.dim, 1)

    def forward(self, batch: Batch) -> Tensor:
        """Scores (logits of "this choice is right"), float [B]."""
        places = torch.arange(batch.ids.shape[1], device=batch.ids.device)
        x = self.words(batch.ids) + self.orders(batch.orders) + self.segments(batch.segments) + self.positions(places)
        x = self.dropout(x)
        seen = batch.real[:, None, None, :]
        for layer in self.layers:
            x = layer(x, seen)
        x = self.norm(x)
        choice = batch.segments.unsqueeze(2).to(x.dtype)
        mean = (x * choice).sum(1) / choice.sum(1).clamp(min=1)
        scores: Tensor = self.read(torch.cat([x[:, 0], mean], dim=1)).squeeze(1)
        return scores


class _Layer(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, config: ScorerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.before_attention = nn.LayerNorm(config.dim)
        self.mix = nn.Linear(config.dim, 3 * config.dim)
        self.out = nn.Linear(config.dim, config.dim)
        self.before_feed = nn.LayerNorm(config.dim)
        self.feed = nn.Sequential(
            nn.Linear(config.dim, 4 * config.dim), nn.GELU(), nn.Linear(4 * config.dim, config.dim)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        b, length, dim = x.shape
        q, k, v = self.mix(self.before_attention(x)).view(b, length, 3, self.heads, dim // self.heads).unbind(2)
        mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=seen)
        x = x + self.dropout(self.out(mixed.transpose(1, 2).reshape(b, length, dim)))
        fed: Tensor = x + self.dropout(self.feed(self.before_feed(x)))
        return fed
