"""What beside its settings decides the last bits of a run: the number of compute threads, and madkit's own code."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch

import madkit
from madkit.core.console import warn

# Below so many parameters a student computes with one thread by default: the matrices of a small one are done before a
# second thread has woken up, and waiting for it costs most where other work keeps the cores busy. Measured for
# mini-uniter alone (docs/distill.md); where the line runs is a guess between it and BERT-base.
SMALL = 20_000_000


@lru_cache(maxsize=1)
def code_identity() -> dict[str, str]:
    """Madkit's version, and 16 hex digits over the Python and YAML files of the package as they are installed."""
    root = Path(str(resources.files(madkit)))
    digest = hashlib.sha256()
    for path in sorted(path for kind in ("*.py", "*.yaml") for path in root.rglob(kind)):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return {"version": madkit.__version__, "sources": digest.hexdigest()[:16]}


def parameter_count(weights: Path) -> int:
    """Parameters in a safetensors file, from its header."""
    from safetensors import safe_open

    with safe_open(weights, framework="np") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118  # no iterator
    total = 0
    for shape in shapes:
        size = 1
        for length in shape:
            size *= int(length)
        total += size
    return total


def settle_threads(asked: int, parameters: int, device: torch.device, begun: Mapping[str, Any] | None) -> int:
    """Set torch's compute threads for a run, and return their number.

    A run that goes on takes the number it began with, because another one rounds differently; whoever asks for another
    is warned. Otherwise small students get one thread on a CPU, all else torch's own choice.

    Args:
        asked: what the user wants; 0: nothing in particular.
        parameters: of the student.
        device: where it computes.
        begun: the manifest of a run that goes on, else None.
    """
    before = None if begun is None else begun.get("threads")
    if asked:
        if before is not None and before != asked:
            warn(
                f"This run began with {before} compute threads and goes on with {asked}: "
                "its losses will differ in the last digits."
            )
        threads = asked
    elif before is not None:
        threads = int(before)
    elif device.type == "cpu" and parameters < SMALL:
        threads = 1
    else:
        threads = torch.get_num_threads()
    torch.set_num_threads(threads)
    return threads


def check_code(begun: Mapping[str, Any] | None) -> None:
    """Warn where a run goes on with other code than it began with."""
    before = None if begun is None else begun.get("code")
    if before is not None and before != code_identity():
        warn("madkit's code has changed since this run began, so its losses may differ from an undisturbed run's.")
