"""A classifier that reads the hypothesis and nothing else: words and pairs of neighbouring words, averaged.

It is the kind of classifier with which the published hard sets of NLI were made (fastText: Joulin et al. 2017, arXiv
1607.01759; hard sets: Gururangan et al. 2018, arXiv 1803.02324): every word and bigram is hashed to a row of an
embedding table, the rows of a text are averaged, and one linear layer gives the logits. 530,000 sentences train in
about a minute on one CPU core.

The result is a function of data, settings and seed: training runs on one thread of the CPU, whatever the machine has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from madkit.core.console import progress
from madkit.core.errors import DataError
from madkit.core.seeds import derive_seed, permutation

_TOKEN = re.compile(r"\w+|[^\w\s]")
_PATIENCE = 2  # epochs
_START, _END = crc32(b"\x02"), crc32(b"\x03")  # control characters, which no token is


@dataclass(frozen=True)
class Settings:
    """How the classifier is trained.

    Attributes:
        buckets: rows of the embedding table that words and bigrams are hashed to.
        dim: width of a row.
        batch: texts per step.
        epochs: most passes over the texts for each learning rate; a rate is left after two that did not better its
            development accuracy.
        rates: learning rates (Adam) that are tried; the development split decides between them and between epochs.
    """

    buckets: int = 1 << 20
    dim: int = 8
    batch: int = 2048
    epochs: int = 4
    rates: tuple[float, ...] = (0.004, 0.001)

    @classmethod
    def for_size(cls, n: int) -> Settings:
        """The settings for n training texts: with few of them, smaller batches and more passes (1,000 steps or so)."""
        batch = min(cls.batch, max(16, n // 128))
        steps = max(1, -(-n // batch))
        return cls(batch=batch, epochs=max(cls.epochs, min(50, 1000 // steps)))

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {**asdict(self), "rates": list(self.rates)}


@dataclass(frozen=True, slots=True)
class Texts:
    """Hashed features of n texts: those of text i are `rows[starts[i]:starts[i + 1]]` (int64, table rows)."""

    rows: NDArray[np.int64]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def batches(self, order: NDArray[np.int64], size: int) -> Iterator[tuple[NDArray[np.int64], Tensor, Tensor]]:
        """(texts of the batch, their rows one after the other, where each text's rows begin)."""
        lengths = np.diff(self.starts)
        for first in range(0, len(order), size):
            chosen = order[first : first + size]
            length = lengths[chosen]
            ends = np.cumsum(length)
            begins = ends - length
            # Position within the batch, moved to the text's place in `rows`.
            index = np.arange(ends[-1]) + np.repeat(self.starts[chosen] - begins, length)
            yield chosen, torch.from_numpy(self.rows[index]), torch.from_numpy(begins)


def hash_texts(texts: Iterable[str], buckets: int) -> Texts:
    """Words and bigrams (with the text's start and end as words of their own) as table rows."""
    known: dict[str, int] = {}
    hashes: list[int] = []
    lengths: list[int] = []
    for text in texts:
        before = len(hashes)
        hashes.append(_START)
        for token in _TOKEN.findall(text.lower()):
            value = known.get(token)
            if value is None:
                value = known[token] = crc32(token.encode("utf-8", "surrogatepass"))
            hashes.append(value)
        hashes.append(_END)
        lengths.append(len(hashes) - before)
    words = np.array(hashes, dtype=np.uint64)
    n = np.array(lengths, dtype=np.int64)
    ends = np.cumsum(n)
    first, last = np.zeros(len(words), dtype=bool), np.zeros(len(words), dtype=bool)
    first[ends - n], last[ends - 1] = True, True
    # A text of k words has k single features and k + 1 bigrams; both are written in place: at each marker or word the
    # bigram that starts there (not for the end), and at each word itself.
    single = ~(first | last)
    pairs = _mix(words[:-1] * np.uint64(0x9E3779B97F4A7C15) + words[1:]) if len(words) else words
    room = single.astype(np.int64) + (~last)
    places = np.cumsum(room) - room
    rows = np.empty(int(room.sum()), dtype=np.uint64)
    rows[places[single]] = _mix(words[single])
    rows[(places + single)[~last]] = pairs[~last[:-1]]
    starts = np.concatenate([[0], np.cumsum(2 * n - 3)])
    return Texts((rows % np.uint64(buckets)).astype(np.int64), starts)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread the bits of 64-bit numbers (the finaliser of SplitMix64), so that a remainder is a fair hash."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@dataclass(slots=True)
class Fitted:
    """A trained classifier.

    Attributes:
        rate, epoch: what the development split chose.
        dev_accuracy: of the chosen state, 0..1.
        tried: development accuracy after every epoch of every rate.
    """

    settings: Settings
    rate: float
    epoch: int
    dev_accuracy: float
    tried: list[dict[str, float]]
    _table: Tensor = field(repr=False)
    _weight: Tensor = field(repr=False)
    _bias: Tensor = field(repr=False)

    def predict(self, texts: Iterable[str]) -> NDArray[np.int64]:
        """The class of every text, int64 [n]."""
        with _one_thread(), torch.no_grad():
            return _predict(hash_texts(texts, self.settings.buckets), self._table, self._weight, self._bias)


def fit(
    train: Sequence[str],
    labels: Sequence[int],
    dev: Sequence[str],
    dev_labels: Sequence[int],
    *,
    n_labels: int,
    seed: int = 0,
    settings: Settings | None = None,
) -> Fitted:
    """Train on `train`, choosing learning rate and number of epochs on `dev`.

    Raises DataError for no texts, and for training labels that are all the same.
    """
    settings = settings or Settings()
    if not train or not dev:
        raise DataError("A classifier needs texts to train on and texts to choose its settings on.")
    if len(set(labels)) < 2:
        raise DataError("All hypotheses of the train split have the same label, so there is nothing to learn.")
    texts, target = hash_texts(train, settings.buckets), torch.tensor(labels)
    held, truth = hash_texts(dev, settings.buckets), np.asarray(dev_labels)
    best: Fitted | None = None
    tried: list[dict[str, float]] = []
    steps = -(-len(texts) // settings.batch)
    total = steps * settings.epochs * len(settings.rates)
    with _one_thread(), progress("Training on hypotheses alone", total, unit="steps") as bar:
        for rate in settings.rates:
            table, head = _new(settings, n_labels, seed)
            optimizers: tuple[torch.optim.Optimizer, ...] = (
                torch.optim.SparseAdam([table], lr=rate),
                torch.optim.Adam(head.parameters(), lr=rate),
            )
            highest, since = -1.0, 0
            for epoch in range(1, settings.epochs + 1):
                order = permutation(len(texts), "hypothesis-only", seed, epoch)
                for chosen, rows, begins in texts.batches(order, settings.batch):
                    logits = head(nn.functional.embedding_bag(rows, table, begins, mode="mean", sparse=True))
                    loss = nn.functional.cross_entropy(logits, target[chosen])
                    for optimizer in optimizers:
                        optimizer.zero_grad()
                    loss.backward()
                    for optimizer in optimizers:
                        optimizer.step()
                    bar.advance()
                with torch.no_grad():
                    accuracy = float((_predict(held, table, head.weight, head.bias) == truth).mean())
                tried.append({"rate": rate, "epoch": epoch, "dev_accuracy": round(accuracy, 6)})
                bar.update(f"dev {100 * accuracy:.1f} %")
                if best is None or accuracy > best.dev_accuracy:
                    state = (tensor.detach().clone() for tensor in (table, head.weight, head.bias))
                    best = Fitted(settings, rate, epoch, accuracy, tried, *state)
                highest, since = (accuracy, 0) if accuracy > highest else (highest, since + 1)
                if since == _PATIENCE:
                    break
    assert best is not None
    return best


def _new(settings: Settings, n_labels: int, seed: int) -> tuple[nn.Parameter, nn.Linear]:
    """An empty table (a feature that training never saw says nothing) and a random linear layer."""
    table = nn.Parameter(torch.zeros(settings.buckets, settings.dim))
    head = nn.Linear(settings.dim, n_labels)
    generator = torch.Generator().manual_seed(derive_seed("hypothesis-only", seed))
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * settings.dim**-0.5)
        head.bias.zero_()
    return table, head


def _predict(texts: Texts, table: Tensor, weight: Tensor, bias: Tensor) -> NDArray[np.int64]:
    found = []
    for _, rows, begins in texts.batches(np.arange(len(texts)), 8192):
        mean = nn.functional.embedding_bag(rows, table, begins, mode="mean")
        found.append(nn.functional.linear(mean, weight, bias).argmax(dim=1))
    return torch.cat(found).numpy() if found else np.zeros(0, dtype=np.int64)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums come out in one order on every machine; the work is too small to gain from more threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
