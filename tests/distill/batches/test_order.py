from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from madkit.distill.batches.effective_batch import effective_batch
from madkit.distill.batches.order import BucketOrder, PlainOrder, micro_batches, rank_slice


def walk(order: PlainOrder | BucketOrder, steps: int, consumed: int = 0) -> list[list[int]]:
    batches = []
    for _ in range(steps):
        batch = order.at(consumed)
        consumed += len(batch)
        batches.append(batch.tolist())
    return batches


def lengths_of(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(5, 60, n)


def bucket_order(n: int = 300, seed: int = 1) -> BucketOrder:
    return BucketOrder(lengths_of(n).tolist(), [2] * n, 1000, 128, "order", seed)


@pytest.mark.parametrize("make", [lambda seed: PlainOrder(37, 8, "order", seed), lambda seed: bucket_order(seed=seed)])
def test_the_order_depends_on_the_seed_and_the_samples_consumed_alone(make):
    first = walk(make(1), 120)
    assert walk(make(1), 120) == first
    assert walk(make(2), 120) != first
    # jumping in at any place gives what the walk gave there, whatever was asked before
    places = np.cumsum([0, *(len(batch) for batch in first)])
    again = make(1)
    for k in (77, 3, 119, 0, 50):
        assert again.at(int(places[k])).tolist() == first[k]


def test_plain_batches_have_one_size_and_every_epoch_sees_every_example_once():
    batches = walk(PlainOrder(37, 8, "x"), 37)
    assert {len(batch) for batch in batches} == {8}
    flat = [index for batch in batches for index in batch]
    for epoch in range(8):
        assert sorted(flat[37 * epoch : 37 * (epoch + 1)]) == list(range(37))
    assert flat[:37] != flat[37:74]


def test_a_set_smaller_than_the_batch_is_its_own_batch():
    assert sorted(PlainOrder(5, 32, "x").at(0).tolist()) == [0, 1, 2, 3, 4]


def test_buckets_keep_to_the_budget_and_lose_nothing():
    lengths = lengths_of(300)
    batches = walk(bucket_order(), 1000)
    seen: list[int] = []
    for batch in batches:
        seen += batch
        assert len(batch) * 2 * lengths[batch].max() <= 1000
    assert sorted(seen[:300]) == list(range(300))
    assert sorted(seen[300:600]) == list(range(300))


def test_buckets_waste_far_less_than_shuffled_batches():
    lengths = lengths_of(300)

    def waste(batches: list[list[int]]) -> float:
        padded = sum(len(batch) * lengths[batch].max() for batch in batches)
        return 1 - sum(lengths[batch].sum() for batch in batches) / padded

    bucketed = walk(bucket_order(), 20)
    assert waste(bucketed) < 0.5 * waste(walk(PlainOrder(300, 16, "x"), 20))


def test_one_example_above_the_budget_is_a_batch_of_its_own():
    order = BucketOrder([10, 999, 10], [1, 1, 1], 100, 128, "x")
    assert sorted(map(sorted, walk(order, 2))) == [[0, 2], [1]]


def test_a_place_between_batches_is_refused():
    order = bucket_order()
    size = len(order.at(0))
    assert size > 1
    with pytest.raises(ValueError, match="no batch begins"):
        order.at(1)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 60), st.integers(1, 40), st.integers(1, 6))
def test_ranks_share_the_global_batch_without_overlap(n, batch_size, world):
    batch = PlainOrder(n, batch_size, "x").at(0)
    shares = [rank_slice(batch, rank, world) for rank in range(world)]
    assert sorted(index for share in shares for index in share) == sorted(batch.tolist())
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 300), st.integers(1, 4))
def test_micro_batches_keep_order_and_budget(lengths, tokens, rows):
    array = np.asarray(lengths, dtype=np.int64)
    sequences = np.full(len(lengths), rows, dtype=np.int64)
    batch = np.arange(len(lengths))
    pieces = micro_batches(batch, array, sequences, tokens)
    assert np.concatenate(pieces).tolist() == batch.tolist()
    assert all(len(piece) == 1 or len(piece) * rows * array[piece].max() <= tokens for piece in pieces)


def test_texts_and_regions_of_a_batch_are_alike():
    # VCR's lengths: four candidates, tokens and regions independent of each other
    rng = np.random.default_rng(0)
    texts, regions = np.repeat(rng.integers(40, 121, (20_000, 1)), 4, axis=1), rng.integers(20, 61, 20_000)
    lengths, four = texts[:, 0] + regions, np.full(20_000, 4)
    budget = 32_768
    by_sum = BucketOrder(lengths.tolist(), four.tolist(), budget, 8192, "order", 1)
    apart = BucketOrder(lengths.tolist(), four.tolist(), budget, 8192, "order", 1, regions=regions.tolist())
    # equal sums of unequal parts are padding, and it is counted
    assert effective_batch(by_sum, texts, regions, budget).padding > 0.15
    held = effective_batch(apart, texts, regions, budget)
    assert held.padding < 0.05
    assert 0.9 * budget < held.tokens <= budget
    seen: list[int] = []
    while len(seen) < 20_000:
        batch = apart.at(len(seen))
        seen += batch.tolist()
        assert len(batch) * 4 * (texts[batch].max() + regions[batch].max()) <= budget
    assert sorted(seen) == list(range(20_000))


def test_equal_numbers_of_regions_change_nothing():
    lengths = lengths_of(300).tolist()
    equal = BucketOrder(lengths, [2] * 300, 1000, 128, "order", 1, regions=[4] * 300, piece=500)
    assert walk(equal, 80) == walk(bucket_order(), 80)


@pytest.mark.parametrize(("regions", "bucket"), [("as many of each", 8192), ("10 to 100", 20000)])
def test_budget_batches_hold_less_than_five_percent_of_padding(regions, bucket):
    """Lengths like those of VQA, in steps of 8,192 tokens."""
    draw = np.random.default_rng(0)
    texts = draw.poisson(7, (20000, 1)) + 3
    counts = np.full(20000, 36) if regions == "as many of each" else draw.integers(10, 101, 20000)
    order = BucketOrder(
        (texts[:, 0] + counts).tolist(), [1] * 20000, 8192, bucket, "order", 0, regions=counts.tolist(), piece=8192
    )
    assert effective_batch(order, texts, counts, 8192).padding < 0.05
