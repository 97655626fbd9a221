from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from madkit.distill.batches.soft_targets import SoftTargets

SCORES = st.lists(st.dictionaries(st.integers(0, 6), st.sampled_from([0.3, 0.6, 0.9, 1.0])), min_size=1, max_size=8)


@given(SCORES, st.data())
def test_rows_are_those_of_the_dense_array(scores: list[dict[int, float]], data: st.DataObject) -> None:
    dense = torch.zeros(len(scores), 7)
    for row, one in enumerate(scores):
        for position, value in one.items():
            dense[row, position] = value
    targets = SoftTargets(scores, 7)
    rows = torch.tensor(data.draw(st.lists(st.integers(0, len(scores) - 1), max_size=10)), dtype=torch.long)
    assert torch.equal(targets[rows], dense[rows])
    assert torch.equal(targets.dense(), dense)
    assert len(targets) == len(scores)
    assert torch.equal(targets.answered, (dense > 0).any(-1))
