"""Projection heads from the student's width to a teacher's: used in training only, never part of a student."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn


class ProjectionHead(nn.Module):
    """Maps student states [..., H] to teacher embeddings [..., D].

    Args:
        student_dim: H.
        teacher_dim: D.
        kind: ``linear``, or ``mlp`` (linear to max(H, D), GELU, linear).
    """

    def __init__(self, student_dim: int, teacher_dim: int, kind: Literal["linear", "mlp"] = "linear") -> None:
        super().__init__()
        self.net: nn.Module
        if kind == "linear":
            self.net = nn.Linear(student_dim, teacher_dim)
        else:
            inner = max(student_dim, teacher_dim)
            self.net = nn.Sequential(nn.Linear(student_dim, inner), nn.GELU(), nn.Linear(inner, teacher_dim))

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        first = self.net if isinstance(self.net, nn.Linear) else self.net.get_submodule("0")
        assert isinstance(first, nn.Linear)
        return first.weight.dtype

    def forward(self, states: Tensor) -> Tensor:
        """[..., H] to [..., D]."""
        projected: Tensor = self.net(states)
        return projected
