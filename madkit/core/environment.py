"""What this machine runs, read from package metadata: nothing heavy is imported to ask for its version."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "torchvision",
    "transformers",
    "tokenizers",
    "open_clip_torch",
    "accelerate",
    "safetensors",
    "zarr",
    "numpy",
    "scipy",
    "pydantic",
    "typer",
)


def environment() -> dict[str, Any]:
    """Return versions and hardware as plain JSON values; a missing package or GPU is None."""
    from madkit import __version__

    facts: dict[str, Any] = {"madkit": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        facts[package] = _version(package)
    facts["platform"] = platform.platform()
    facts["cpus"] = usable_cpus()
    facts["gpu"] = _gpu()
    return facts


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def usable_cpus() -> int:
    """Processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpu() -> str | None:
    """Name the first NVIDIA GPU: asked of torch where it is loaded already, else of the driver's files."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name(0))
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in file.read_text(errors="replace").splitlines():
            if line.startswith("Model:"):
                return line.removeprefix("Model:").strip()
    return None
