"""Parameter groups and optimisers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """Which optimiser; see `config.OptimConfig` for the meaning of each."""

    kind: Literal["adamw", "sgd"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.98)
    momentum: float = 0.9
    weight_decay: float = 0.01


def parameter_groups(module: nn.Module, weight_decay: float, fresh: Callable[[str], bool]) -> list[dict[str, Any]]:
    """Parameters by (decayed or not, fresh or not). Biases, norms and other vectors are not decayed."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((parameter.ndim >= 2, fresh(name)), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if decayed else 0.0, "fresh": is_fresh}
        for (decayed, is_fresh), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def make_optimizer(
    module: nn.Module,
    settings: OptimizerSettings,
    learning_rate: float,
    device: torch.device,
    fresh: Callable[[str], bool],
) -> torch.optim.Optimizer:
    """AdamW, or SGD with momentum (VL-BERT's VCR recipe), fused where the device has it."""
    groups = parameter_groups(module, settings.weight_decay, fresh)
    fused = device.type in ("cuda", "cpu")
    if settings.kind == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=settings.momentum, fused=fused)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=settings.betas, eps=1e-6, fused=fused)
