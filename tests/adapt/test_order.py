from __future__ import annotations

from madkit.adapt.order import BatchOrder


def test_a_batch_follows_from_seed_and_step_alone() -> None:
    forward = [BatchOrder(11, 4, 3).at(step) for step in range(9)]
    order = BatchOrder(11, 4, 3)
    assert [order.at(step) for step in reversed(range(9))] == forward[::-1]
    assert [BatchOrder(11, 4, 4).at(step) for step in range(9)] != forward


def test_an_epoch_shows_no_item_twice() -> None:
    order = BatchOrder(11, 4, 0)
    for epoch in range(3):
        seen = [place for step in (0, 1) for place in order.at(2 * epoch + step)]
        assert len(set(seen)) == 8
        assert set(seen) <= set(range(11))


def test_a_set_smaller_than_a_batch_is_a_batch() -> None:
    assert sorted(BatchOrder(3, 32, 0).at(5)) == [0, 1, 2]
