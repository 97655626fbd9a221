"""Checkpoints of an adaptation: one safetensors file each, whole or absent, its state of affairs in the metadata.

Only what is trained is in it: the frozen weights come from the teacher. A damaged file (its digest does not match) is
passed over in favour of the one before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from madkit.core.files import write_bytes_atomic
from madkit.core.metrics_log import disk_problem
from madkit.teachers.digest import weights_digest

KEEP = 2


def write_tensors(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write tensors and plain values into one file. Raises RunError where the disk refuses."""
    from safetensors.torch import save

    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata = {"state": json.dumps(state, allow_nan=False), "digest": weights_digest(plain)}
    try:
        write_bytes_atomic(path, save(plain, metadata=metadata))
    except OSError as error:
        raise disk_problem(error, path) from None


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read what `write_tensors` wrote; None where it is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
        if weights_digest(tensors) != metadata["digest"]:
            return None
        state = json.loads(metadata["state"])
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    return tensors, state


def write_checkpoint(folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write the checkpoint of `step`, then remove all but the last two. Raises RunError where the disk refuses."""
    write_tensors(folder / f"step-{step:06d}.safetensors", tensors, {**state, "step": step})
    for old in _checkpoints(folder)[:-KEEP]:
        old.unlink(missing_ok=True)


def latest_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest whole checkpoint, None where there is none."""
    for path in reversed(_checkpoints(folder)):
        found = read_tensors(path)
        if found is not None:
            return found
    return None


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.safetensors"))


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> dict[str, Tensor]:
    """The optimiser's moments by the names of its parameters (`names` by their identity)."""
    return {
        f"{names[id(parameter)]}::{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Put the moments of `optimizer_tensors` back."""
    for full, value in tensors.items():
        name, mark, key = full.rpartition("::")
        if mark:
            parameter = parameters[name]
            optimizer.state[parameter][key] = value.to(parameter.device)
