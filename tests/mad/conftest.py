"""A small batch for the criterion: random teacher and student tensors with every irregularity that a real one has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from madkit.mad.criterion import CriterionOutput, MADCriterion
from madkit.mad.targets import ChannelStats, TeacherTargets

torch.set_num_threads(1)
H, D = 8, 6


@dataclass(frozen=True)
class Batch:
    """Inputs of one call of the criterion; B examples of C candidates over as many images."""

    hidden: tuple[torch.Tensor, ...]
    targets: TeacherTargets
    inputs: dict[str, Any] = field(default_factory=dict)
    readers: tuple[torch.Tensor, ...] = ()  # of a distillation token, asked by `global_source: token` alone

    def run(self, criterion: MADCriterion, **changes: Any) -> CriterionOutput:
        given = {"distillation_states": self.readers, **self.inputs, **changes}
        return criterion(self.hidden, self.inputs["text_mask"].shape[1], self.targets, **given)

    def change(self, **targets: Any) -> Batch:
        return replace(self, targets=replace(self.targets, **targets))

    def pad(self, text: int, regions: int, fill: float = 5.0) -> Batch:
        """The same batch with more padding, filled with something that would show."""
        t, i = self.targets, self.inputs
        T = i["text_mask"].shape[1]

        def widen(states: torch.Tensor) -> torch.Tensor:
            return torch.cat(
                [
                    F.pad(states[:, :T], (0, 0, 0, text), value=fill),
                    F.pad(states[:, T:], (0, 0, 0, regions), value=fill),
                ],
                1,
            )

        targets = replace(
            t,
            text_tokens=F.pad(t.text_tokens, (0, 0, 0, text), value=fill),
            text_mask=F.pad(t.text_mask, (0, text)),
            text_content=None if t.text_content is None else F.pad(t.text_content, (0, text), value=True),
            regions=F.pad(t.regions, (0, 0, 0, regions), value=fill),
            region_mask=F.pad(t.region_mask, (0, regions)),
        )
        inputs = {
            **i,
            "text_mask": F.pad(i["text_mask"], (0, text)),
            "region_mask": F.pad(i["region_mask"], (0, regions)),
            "tag_regions": F.pad(i["tag_regions"], (0, text), value=-1),
        }
        return Batch(tuple(widen(states) for states in self.hidden), targets, inputs, self.readers)

    def permute(self, order: torch.Tensor) -> Batch:
        """Examples in another order (images stay where they are and are found by index)."""
        C = self.inputs["n_candidates"]
        sequences = (order.unsqueeze(1) * C + torch.arange(C)).flatten()
        t = self.targets
        targets = replace(
            t,
            **{
                name: getattr(t, name)[sequences]
                for name in ("text_tokens", "text_mask", "text_global", "image_index", "text_content", "example_key")
            },
        )
        per_example = ("label", "teacher_confidence", "student_confidence")
        per_sequence = ("text_mask", "region_mask", "tag_regions")
        inputs = {
            **self.inputs,
            **{name: self.inputs[name][order] for name in per_example},
            **{name: self.inputs[name][sequences] for name in per_sequence},
        }
        hidden, readers = (tuple(states[sequences] for states in one) for one in (self.hidden, self.readers))
        return Batch(hidden, targets, inputs, readers)

    def halve(self) -> Batch:
        """Everything that floats, in float16."""

        def half(value: Any) -> Any:
            return value.half() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

        names = ("text_tokens", "text_global", "regions", "image_global")
        targets = replace(self.targets, **{name: half(getattr(self.targets, name)) for name in names})
        hidden, readers = (tuple(half(states) for states in one) for one in (self.hidden, self.readers))
        return Batch(hidden, targets, self.inputs, readers)


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """Factory of batches: make_batch(B=4, C=1, ...)."""

    def make(B: int = 4, C: int = 1, T: int = 7, R: int = 4, layers: int = 3, seed: int = 0) -> Batch:
        g = torch.Generator().manual_seed(seed)
        S = B * C
        lengths = torch.randint(4, T + 1, (S, 1), generator=g)
        text_mask = torch.arange(T) < lengths
        special = (torch.arange(T) == 0) | (torch.arange(T) == lengths - 1)
        image_index = torch.arange(B).repeat_interleave(C)
        counts = torch.tensor([R, 2, 1, 0])[torch.arange(B) % 4].unsqueeze(1)
        region_mask = torch.arange(R) < counts
        tags = torch.where(torch.rand(S, T, generator=g) > 0.7, torch.randint(0, R, (S, T), generator=g), -1)
        tags = torch.where(text_mask & ~special, tags, -1)
        stats = ChannelStats(torch.randn(D, generator=g), torch.rand(D, generator=g) + 0.5)
        targets = TeacherTargets(
            text_tokens=torch.randn(S, T, D, generator=g),
            text_mask=text_mask & ~special,
            text_global=torch.randn(S, D, generator=g),
            regions=torch.randn(B, R, D, generator=g),
            region_mask=region_mask,
            image_global=torch.randn(B, D, generator=g),
            image_index=image_index,
            shared_space=True,
            text_content=torch.rand(S, T, generator=g) > 0.3,
            text_stats=stats,
            vision_stats=stats,
            example_key=torch.randint(0, 2**62, (B,), generator=g).repeat_interleave(C),
        )
        inputs = {
            "text_mask": text_mask,
            "region_mask": region_mask[image_index],
            "tag_regions": tags,
            "label": torch.randint(0, max(C, 2), (B,), generator=g),
            "n_candidates": C,
            "teacher_confidence": torch.rand(B, generator=g),
            "student_confidence": torch.rand(B, generator=g).clamp_min(0.1),
        }
        hidden = tuple(torch.randn(S, T + R, H, generator=g) for _ in range(layers + 1))
        readers = tuple(torch.randn(S, 1, H, generator=g) for _ in hidden)
        return Batch(hidden, targets, inputs, readers)

    return make


@pytest.fixture
def make_criterion() -> Callable[..., MADCriterion]:
    """Factory of criteria for the batches above; the same heads for the same config."""

    def make(**config: Any) -> MADCriterion:
        from madkit.mad.config import MADConfig

        torch.manual_seed(0)
        return MADCriterion(MADConfig(**config), H, D, D)

    return make
