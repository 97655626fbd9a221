"""Tables that are read by rows: what is read of them is what a tensor would give, and never much at once."""

from __future__ import annotations

import pytest
import torch

from madkit.mad import rows as tables
from madkit.mad.probe import cross_fit_probe, fit_cross_probe, fit_probe
from madkit.mad.rows import RowsRead, blocks, row_bytes, table_of

torch.set_num_threads(1)
N, C, F = 60, 3, 4


class Source:
    """Features that note how many of them were asked for at once."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values
        self.asked: list[int] = []

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        self.asked.append(len(rows))
        return self.values[rows]


def made(*shape: int) -> Source:
    return Source(torch.randn(*shape, generator=torch.Generator().manual_seed(0)))


@pytest.fixture
def small(monkeypatch):
    """A fit holds 20 rows of [C, F], a block 8, and 2 are made at once."""
    monkeypatch.setattr(tables, "HELD_BYTES", 20 * 4 * C * F)
    monkeypatch.setattr(tables, "BLOCK_BYTES", 8 * 4 * C * F)


def test_a_table_is_a_tensor_where_it_fits(small) -> None:
    source = made(20, C, F)
    held = table_of(20, source)
    assert isinstance(held, torch.Tensor)
    assert torch.equal(held, source.values)
    source = made(21, C, F)
    lazy = table_of(21, source)
    assert isinstance(lazy, RowsRead)
    assert lazy.shape == (21, C, F)
    wanted = torch.tensor([20, 3, 3, 0, 7])
    assert torch.equal(lazy[wanted], source.values[wanted])
    assert max(source.asked) == 2


def test_blocks_are_all_rows_in_turn(small) -> None:
    features, labels = torch.zeros(21, C, F), torch.zeros(21)
    assert [len(rows) for rows in blocks(features)] == [8, 8, 5]
    assert torch.cat(list(blocks(features, labels))).tolist() == list(range(21))
    assert row_bytes(features, labels) == 4 * (C * F + 1)
    assert len(next(blocks(labels))) == 21


@pytest.mark.parametrize(("soft", "choice"), [(False, True), (True, False)])
def test_a_probe_of_a_table_that_is_read_is_that_of_a_tensor(small, soft, choice) -> None:
    source = made(N, C, F) if choice else made(N, C * F)
    labels = torch.arange(N) % C
    targets = torch.nn.functional.one_hot(labels, C).float() * 0.6 if soft else labels
    groups = [f"image-{row // 2}" for row in range(N)]
    whole = fit_cross_probe(source.values, targets, groups=groups, seed=2)
    source.asked.clear()
    lazy = RowsRead(N, source)
    lazy_targets = RowsRead(N, lambda rows: targets[rows]) if soft else targets
    read = fit_cross_probe(lazy, lazy_targets, groups=groups, seed=2)
    assert max(source.asked) <= 2
    assert torch.equal(read.fold, whole.fold)
    assert read.l2 == whole.l2
    for rows in blocks(lazy):
        names = [groups[row] for row in rows.tolist()]
        torch.testing.assert_close(
            read.probabilities(lazy[rows], names), whole.probabilities(source.values, groups)[rows], rtol=0, atol=1e-6
        )


def test_a_fit_reads_no_more_than_may_be_held(small, monkeypatch) -> None:
    seen: list[int] = []

    def counting(features: torch.Tensor, *args: object, **more: object) -> object:
        seen.append(len(features))
        return fit_probe(features, *args, **more)

    monkeypatch.setattr("madkit.mad.probe.fit_probe", counting)
    values, labels = made(N, C, F).values, torch.arange(N) % C
    cross_fit_probe(values, labels, l2=0.1)
    assert seen == [20] * 5  # of the 48 outside of each fold
    seen.clear()
    answers = torch.nn.functional.one_hot(labels, C).float()
    cross_fit_probe(values[:, 0], answers, l2=0.1)
    assert seen == [20 * C * F // (F + 6 * C)] * 5  # tables of scores and of what is worked out from them count, too
    monkeypatch.setattr(tables, "HELD_BYTES", 1 << 30)
    seen.clear()
    cross_fit_probe(values, labels, l2=0.1)
    assert seen == [48] * 5


def test_a_large_table_is_standardised_piece_by_piece(small) -> None:
    values, labels = made(N, F).values * 3 + 1, torch.arange(N) % C
    pieces = fit_probe(values, labels, C, l2=0.1)(values)
    tables.BLOCK_BYTES = 1 << 28  # the fixture puts it back
    torch.testing.assert_close(pieces, fit_probe(values, labels, C, l2=0.1)(values), rtol=0, atol=1e-4)
