"""How many runs fit this machine side by side."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from madkit.core.free_memory import free_memory

# A training process with torch, transformers and the embedded benchmark, measured at its peak: 1.1 GB. The rest is for
# features that are read into memory where they fit (`region_features`).
PROCESS_BYTES = 2_000_000_000
# Weights, gradients, two moments and activations, for each byte of a student's float32 file.
PER_STUDENT_BYTE = 8


@dataclass(frozen=True, slots=True)
class Fit:
    """Processes side by side, the devices they share, and why not more.

    `gpus` are names as CUDA_VISIBLE_DEVICES has them; with several each process gets one, and with none the processes
    compute on CPUs.
    """

    processes: int
    gpus: tuple[str, ...]
    reason: str


def fit(runs: int, threads_each: int, *, student_bytes: int = 0) -> Fit:
    """How many of so many runs go side by side: one for each GPU, or as many as cores and free memory bear.

    Args:
        runs: how many there are.
        threads_each: compute threads of each.
        student_bytes: size of the largest student's weights, in float32.
    """
    gpus = visible_gpus()
    if gpus:
        count = min(len(gpus), runs)
        return Fit(count, gpus, f"{len(gpus)} GPU" + ("s" if len(gpus) > 1 else ""))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    by_cores = max(1, cores // max(1, threads_each))
    free = free_memory()
    need = PROCESS_BYTES + PER_STUDENT_BYTE * student_bytes
    by_memory = by_cores if free is None else max(1, free // need)
    reason = f"{cores} cores" if by_cores <= by_memory else f"{(free or 0) / 1e9:.0f} GB of free memory"
    return Fit(max(1, min(by_cores, by_memory, runs)), (), reason)


def visible_gpus() -> tuple[str, ...]:
    """The CUDA devices that this process may use, by the names that CUDA_VISIBLE_DEVICES takes."""
    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return tuple(named[:count]) if named else tuple(str(index) for index in range(count))
