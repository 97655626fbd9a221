"""What a journal writes of a step's numbers."""

from __future__ import annotations

import torch

from madkit.distill.loop.journal import together


def test_numbers_read_at_once_are_those_read_one_by_one():
    values = [torch.rand(()) / 3, torch.tensor(-0.0), torch.tensor(1e-30), torch.tensor(7), torch.tensor(float("nan"))]
    found = together(values)
    assert str(found) == str([float(value) + 0.0 for value in values])  # as the journal's lines have them
    assert str(found[1]) == "0.0"
