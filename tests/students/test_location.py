"""Locations of every layout, by hand."""

from __future__ import annotations

import pytest
import torch

from madkit.students.location import location_features

BOX = torch.tensor([[0.1, 0.2, 0.5, 0.8], [0.0, 0.0, 1.0, 1.0]])
WANTED = {
    4: [[0.1, 0.2, 0.5, 0.8], [0, 0, 1, 1]],
    5: [[0.1, 0.2, 0.5, 0.8, 0.24], [0, 0, 1, 1, 1]],
    6: [[0.1, 0.2, 0.5, 0.8, 0.4, 0.6], [0, 0, 1, 1, 1, 1]],
    7: [[0.1, 0.2, 0.5, 0.8, 0.4, 0.6, 0.24], [0, 0, 1, 1, 1, 1, 1]],
}


@pytest.mark.parametrize("dim", WANTED)
def test_locations(dim: int) -> None:
    assert torch.allclose(location_features(BOX, dim), torch.tensor(WANTED[dim]))
    assert location_features(BOX.expand(3, 2, 4), dim).shape == (3, 2, dim)


def test_no_other_layout() -> None:
    with pytest.raises(ValueError, match="no location of 8"):
        location_features(BOX, 8)
